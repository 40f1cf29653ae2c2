"""Reads what a search writes at its end and on the way: data, checked against its schema."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmscale.arch import Arch, Scaling
from mmscale.arch.checks import check_keys, check_schema, choice, integer, is_number, number
from mmscale.arch.json_files import read_json
from mmscale.arch.origin import KEY, Origin
from mmscale.cost import CONVENTIONS, Cost
from mmscale.errors import UsageError
from mmscale.search.entry import Score
from mmscale.search.result import SCHEMA

_METRICS = ('flops', 'params', 'acts', 'latency')
# What is larger is no count and no cost: floats have it no longer exactly.
LARGEST = 2**53
_MOST_STAGES = 1000
# Of a generation, a chain step or a list of a result.
_MOST_ENTRIES = 2**17
_MOST_GROUPS = 2**14
_MOST_CHARACTERS = 1000


def _text(owner: str, value: object) -> None:
    if not isinstance(value, str) or len(value) > _MOST_CHARACTERS:
        raise UsageError(
            f'{owner}={value!r:.40} must be a text of up to {_MOST_CHARACTERS} characters'
        )


def _list(owner: str, value: object, fewest: int = 0, most: int = _MOST_ENTRIES) -> list:
    if not isinstance(value, list):
        raise UsageError(f'{owner}={value!r:.40} must be a list')
    if not fewest <= len(value) <= most:
        raise UsageError(f'{owner} must have {fewest} to {most} entries, not {len(value)}')
    return value


def _numbers(owner: str, values: object, length: int | None = None) -> None:
    for i, value in enumerate(_list(owner, values)):
        # Populations have millions of numbers: of one that is right no name is made.
        if not (is_number(value) and 0 <= value <= LARGEST):
            number(f'{owner}[{i}]', value, 0, LARGEST)
    if length not in (None, len(values)):
        raise UsageError(f'{owner}={values!r:.40} must be {length} numbers')


def _scaling(owner: str, value: object) -> None:
    check_keys(owner, value, None, Scaling().to_json())
    Scaling.from_json(owner, value)


def _cost(owner: str, value: object) -> None:
    cost = check_keys(owner, value, None, asdict(Cost()))
    for key in asdict(Cost()):
        integer(f'{owner}.{key}', cost[key], 1, LARGEST)
    if 'latency' in cost:
        number(f'{owner}.latency', cost['latency'], 0, LARGEST)


def _score(owner: str, value: object) -> None:
    score = check_keys(f'{owner}: score', value, (), ('correct', 'total'))
    try:
        Score(**score)
    except ValueError as error:
        raise UsageError(f'{owner}: {error}') from None


def _member(owner: str, value: object, needed: Collection[str]) -> None:
    """A network of a result."""
    member = check_keys(owner, value, None, {'arch', *needed})
    if 'scaling_stage' in member:
        integer(f'{owner}: scaling_stage', member['scaling_stage'], 0, _MOST_STAGES - 1)
    if 'scaling' in member:
        _scaling(f'{owner}: scaling', member['scaling'])
    if 'cost' in member:
        _cost(f'{owner}: cost', member['cost'])
    for key in ('score', 'final_score'):
        if member.get(key) is not None:
            _score(f'{owner}: {key}', member[key])
    try:
        Arch.from_json(member['arch'])
    except ValueError as error:
        raise UsageError(f'{owner}: {error}') from None


def _noise(owner: str, data: dict[str, Any]) -> None:
    """What a result says of its errors; nothing in those of earlier releases."""
    if data.get('counted', True) not in (True, False):
        raise UsageError(f'{owner}: counted={data["counted"]!r:.40} must be true or false')
    if data.get('fitness_error') is not None:
        number(f'{owner}: fitness_error', data['fitness_error'], 0, 1)
    _list(f'{owner}: runners_up', data.get('runners_up', []))
    within = check_keys(f'{owner}: within_error', data.get('within_error', {}), None)
    integer(f'{owner}: within_error.runners_up', within.get('runners_up', 0), 0, LARGEST)
    if data.get('final') is None:
        return
    name = f'{owner}: final'
    final = check_keys(name, data['final'], None, ('images', 'leaders', 'within_error'))
    integer(f'{name}.images', final['images'], 1, LARGEST)
    integer(f'{name}.within_error', final['within_error'], 0, LARGEST)
    for i, leader in enumerate(_list(f'{name}.leaders', final['leaders'], 1)):
        known = check_keys(f'{name}.leaders[{i}]', leader, None, ('final_fitness', 'final_error'))
        for key in ('final_fitness', 'final_error'):
            number(f'{name}.leaders[{i}].{key}', known[key], 0, 1)


def check_settings(owner: str, value: object) -> None:
    """Checks those settings of a search that a report reads.

    Raises:
        ValueError: A value is not allowed; the message names its key.
    """
    settings = check_keys(owner, value, None)
    for key in ('budget', 'tolerance'):
        if key in settings:
            number(f'{owner}.{key}', settings[key], 0, LARGEST)
    if 'metric' in settings:
        choice(f'{owner}.metric', settings['metric'], _METRICS)
    for key in ('budgets', 'caps'):
        for metric, limit in check_keys(f'{owner}.{key}', settings.get(key, {}), _METRICS).items():
            for one in limit if isinstance(limit, (list, tuple)) else [limit]:
                if one is not None:
                    number(f'{owner}.{key}.{metric}', one, 0, LARGEST)
    if settings.get('cost_range') is not None:
        _numbers(f'{owner}.cost_range', settings['cost_range'], 2)


def check_event(owner: str, value: object) -> dict[str, Any]:
    """Checks a step of a chain, or a generation: a line of ``history.jsonl``.

    Returns:
        What was checked of it.

    Raises:
        ValueError: A key is missing or its value is not allowed; the message names it.
    """
    needed = ['kind', 'round', 'evaluations']
    event = check_keys(owner, value, None, needed)
    _text(f'{owner}.kind', event['kind'])
    integer(f'{owner}.round', event['round'], 0, LARGEST)
    integer(f'{owner}.evaluations', event['evaluations'], 0, LARGEST)
    if event['kind'] == 'generation':
        needed += ['step', 'population']
        check_keys(owner, event, None, needed)
        _text(f'{owner}.step', event['step'])
        for i, point in enumerate(_list(f'{owner}.population', event['population'])):
            _numbers(f'{owner}.population[{i}]', point, 2)
    else:
        needed += ['fitness', 'strategy', 'history']
        check_keys(owner, event, None, needed)
        if event['fitness'] is not None:
            number(f'{owner}.fitness', event['fitness'], 0, LARGEST)
        stages = _list(f'{owner}.strategy', event['strategy'], most=_MOST_STAGES)
        for j, scaling in enumerate(stages):
            _scaling(f'{owner}.strategy[{j}]', scaling)
        _numbers(f'{owner}.history', event['history'])
    return {key: event[key] for key in needed}


def check_structure(owner: str, value: object) -> dict[str, Any]:
    """Checks a line of ``structure.jsonl``, of a search by gradient.

    Returns:
        What was checked of it.

    Raises:
        ValueError: A key is missing or its value is not allowed; the message names it.
    """
    integers = ('iteration', *asdict(Cost()))
    needed = ('structure', 'metric', 'value', 'budget', *integers)
    line = check_keys(owner, value, None, needed)
    for key in integers:
        integer(f'{owner}.{key}', line[key], 0, LARGEST)
    choice(f'{owner}.metric', line['metric'], _METRICS)
    number(f'{owner}.value', line['value'], 0, LARGEST)
    number(f'{owner}.budget', line['budget'], above=0, most=LARGEST)
    structure = check_keys(f'{owner}.structure', line['structure'], None)
    sizes = check_keys(f'{owner}.sizes', line.get('sizes', {}), None)
    if not 0 < len(structure) <= _MOST_GROUPS:
        raise UsageError(f'{owner}.structure must have 1 to {_MOST_GROUPS} groups')
    for name, kept in structure.items():
        for one in kept if isinstance(kept, list) else [kept]:
            integer(f'{owner}.structure.{name!s:.60}', one, 0, LARGEST)
    for name, size in sizes.items():
        integer(f'{owner}.sizes.{name!s:.60}', size, 1, LARGEST)
    shares = check_keys(f'{owner}.task_shares', line.get('task_shares', {}), None)
    for name, share in shares.items():
        number(f'{owner}.task_shares.{name!s:.60}', share, 0, most=1)
    return {key: line[key] for key in needed} | {'sizes': sizes, 'task_shares': shares}


def read_result(path: str | Path, needed: Collection[str] = ()) -> dict[str, Any]:
    """Reads the ``result.json`` of a search, a family or (``kind`` is ``pareto``) a front.

    Keys of which nothing is known here may be there.

    Args:
        path: The file.
        needed: Keys that each of its networks must have besides ``arch``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not the result of a search; the message names the key.
    """
    owner = str(path)
    data = check_keys(owner, read_json(path), None, ('schema', 'settings'))
    check_schema(owner, data['schema'], SCHEMA)
    is_front = data.get('kind') == 'pareto'
    if not is_front and 'kind' in data:
        raise UsageError(f'{owner}: kind={data["kind"]!r:.40} is not pareto')
    networks = 'front' if is_front else 'scaling_stages'
    check_keys(owner, data, None, (networks,))
    check_settings(f'{owner}: settings', data['settings'])
    if 'convention' in data:
        choice(f'{owner}: convention', data['convention'], CONVENTIONS)
    if 'metric' in data:
        choice(f'{owner}: metric', data['metric'], _METRICS)
    if KEY in data:
        Origin.from_json(owner, data[KEY])
    if 'fitness' in data:
        number(f'{owner}: fitness', data['fitness'], 0, LARGEST)
    _noise(owner, data)
    _numbers(f'{owner}: hypervolume', data.get('hypervolume', []))
    for i, step in enumerate(_list(f'{owner}: chain', data.get('chain', []))):
        check_event(f'{owner}: chain[{i}]', step)
    most = _MOST_ENTRIES if is_front else _MOST_STAGES
    for j, member in enumerate(_list(f'{owner}: {networks}', data[networks], 1, most)):
        _member(f'{owner}: {networks}[{j}]', member, needed)
    return data
