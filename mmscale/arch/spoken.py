"""A search space in words, and genotypes by the names of what they choose."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from mmscale.arch.arch import aligned
from mmscale.arch.checks import check_keys
from mmscale.arch.choices import AXES, Axis, SEChoice, StageChoices
from mmscale.arch.rounding import Rounding
from mmscale.errors import UsageError

if TYPE_CHECKING:
    from mmscale.arch.space import SearchSpace

_NETWORK = ('resolution', 'stem', 'head_channels', 'head_hidden_channels')


def spoken(value: Any) -> str:
    """A value of a gene in words."""
    if value is None or isinstance(value, SEChoice):
        return 'no' if value is None else str(value)
    if isinstance(value, tuple):
        return '+'.join(f'{key}={spoken(part)}' for key, part in value)
    return f'{value:g}' if isinstance(value, (int, float)) else str(value)


def _listed(values: Sequence[Any]) -> str:
    """Choices for printing: all of a few, the range of many."""
    if len(values) > 5 and isinstance(values[0], (int, float)):
        return f'{spoken(values[0])} to {spoken(values[-1])} ({len(values)})'
    return ' '.join(map(spoken, values))


def shown_number(number: int) -> str:
    """A number of networks, which may be larger than any float, in a few digits.

    Example:
        >>> shown_number(16464), shown_number(10**400)
        ('1.646e+04', '1.000e+400')
    """
    return f'{number:.4g}' if number < 1e300 else f'{Decimal(number):.4g}'


def describe_space(space: SearchSpace) -> str:
    """What a space chooses from: a line, its network stages, its scaling stages."""
    choices = space.ends.choices
    pixels = _listed(choices['resolution'])
    size = shown_number(space.size)
    if len(space.scaling_stages) == 1:
        title = (
            f'SearchSpace: {size} networks at {pixels} px, {space.num_genes} genes; '
            'one scaling stage: an ordinary search space'
        )
    else:
        families = space.size * math.prod(
            len(space.scalings(j)) for j in range(len(space.scaling_stages))
        )
        title = (
            f'SearchSpace: {size} base models at {pixels} px, {space.num_genes} genes; '
            f'{shown_number(families)} families over {len(space.scaling_stages)} scaling stages'
        )
    lines = [title]
    ends = [
        f'{name} {_listed(values)}'
        for name, values in (
            ('stem', choices['stem']),
            ('head', choices['head_channels']),
            ('hidden layer of the head', choices['head_hidden_channels']),
        )
        if len(values) > 1
    ]
    if ends:
        lines.append(f'channels of {", ".join(ends)}')
    excites = 'no SE' if space.se is None else f'SE {space.se}'
    lines.append(f'activation {space.act} and {excites} where nothing else is said')
    if space.rounding != Rounding():
        rounding = space.rounding
        lines.append(
            f'widths are rounded to multiples of {rounding.channel_divisor}, mode {rounding.mode}'
        )
    lines.append(aligned(_stage_rows(space.stages)))
    if len(space.scaling_stages) > 1:
        rows = [('scaling stage', 'depth', 'width', 'resolution', 'nominal scalings')]
        for j, stage in enumerate(space.scaling_stages):
            listed = (_listed(c) for c in (stage.depth, stage.width, stage.resolution))
            rows.append((str(j), *listed, str(len(space.scalings(j)))))
        lines.append(aligned(rows))
    return '\n'.join(lines)


def _stage_rows(stages: Sequence[StageChoices]) -> list[tuple[str, ...]]:
    """A row a network stage, with those columns in which something is to be said."""
    plain = {'kind': ('mbconv',), 'group_width': (None,), 'block': ()}
    columns: dict[str, list[str]] = {
        'channels': [_listed(stage.channels) for stage in stages],
        'stride': [str(stage.stride) for stage in stages],
    }
    for name in ('kind', 'expand', 'depth', 'kernel', 'group_width', 'se', 'act', 'block'):
        if name == 'depth':
            columns['depths'] = [
                _listed(stage.depths) + (' anywhere' if stage.skips == 'anywhere' else '')
                for stage in stages
            ]
            continue
        values = [_axis_values(stage, name) for stage in stages]
        usual = {'se': (stages[0].defaults.se,), 'act': (stages[0].defaults.act,)} | plain
        always = name in ('expand', 'kernel') and any(values)
        firsts = [_axis(stage.first, name) for stage in stages]
        told = [*values, *(axis.values for axis in firsts if axis is not None)]
        if always or any(own not in (usual.get(name), ()) for own in told):
            title = {'expand': 'expand', 'kernel': 'kernels'}.get(name, name.replace('_', ' '))
            columns[title] = [
                ('-' if not own or (own == (None,) and name != 'se') else _listed(own))
                + _remark(stage, name)
                for own, stage in zip(values, stages, strict=True)
            ]
    rows = zip(*columns.values(), strict=True)
    return [
        ('network stage', *columns),
        *((str(i), *row) for i, row in enumerate(rows, start=1)),
    ]


def _axis(axes: Sequence[Axis], name: str) -> Axis | None:
    return next((axis for axis in axes if axis.name == name and axis.used), None)


def _axis_values(stage: StageChoices, name: str) -> tuple:
    axis, tied = _axis(stage.axes, name), _axis(stage.axes, 'block')
    if tied is not None and all(name in dict(value) for value in tied.values):
        return ()
    return () if axis is None else axis.values


def _remark(stage: StageChoices, name: str) -> str:
    """How a network stage shares a choice, and what its first block has instead."""
    axis, first = _axis(stage.axes, name), _axis(stage.first, name)
    remark = ' a stage' if axis is not None and axis.shared and len(axis.values) > 1 else ''
    if first is not None and first.values != (axis.values if axis is not None else ()):
        remark += f', first {_listed(first.values)}'
    return remark


def choices_of(space: SearchSpace, row: Sequence[int]) -> dict[str, Any]:
    """What a checked genotype chooses, by name; see :meth:`SearchSpace.choices`."""
    found: dict[str, Any] = {}
    stages: list[dict[str, Any]] = []
    for stage in space.stage_genes:
        depth = stage.choices.depths[row[stage.depth]]
        stages.append({'blocks': [{} for _ in range(depth)]})
    for index, (gene, choice) in enumerate(zip(space.genes, row, strict=True)):
        value = gene.values[choice]
        own = stages[gene.stage]
        if gene.name in _NETWORK:
            found[gene.name] = value
        elif gene.slot >= len(own['blocks']) or index == space.stage_genes[gene.stage].depth:
            continue
        else:
            target = own if gene.slot < 0 else own['blocks'][gene.slot]
            target[gene.name] = _plain(gene.name, value)
    for stage, own in zip(space.stage_genes, stages, strict=True):
        for slot, block in enumerate(own['blocks']):
            # What the tied choice decides: its own, that of the network stage, or the only one.
            for name in _tied(stage.options(slot).axes, {**own, **block}):
                block.pop(name, None)
    return {**found, 'stages': stages}


def _plain(name: str, value: Any) -> Any:
    """A value as a config would say it."""
    if name == 'block':
        return {key: _plain(key, part) for key, part in value}
    if isinstance(value, SEChoice):
        return asdict(value)
    return value is not None if name == 'se' else value


def genes_of(space: SearchSpace, choices: Mapping[str, Any]) -> list[int]:
    """The genes of choices by name; see :meth:`SearchSpace.genotype_of`."""
    given = check_keys('choices', choices, _NETWORK, ('stages',))
    listed = given['stages']
    if not isinstance(listed, (list, tuple)) or len(listed) != len(space.stages):
        raise UsageError(f'choices.stages={listed!r:.60} must be {len(space.stages)} dicts')
    genes = [0] * space.num_genes
    for name in _NETWORK:
        _set(genes, space.ends.columns[name], 'choices', name, space.ends.choices[name], given)
    for i, (stage, own) in enumerate(zip(space.stage_genes, listed, strict=True)):
        where = f'choices.stages[{i}]'
        own = check_keys(where, own, ('channels', *AXES), ('blocks',))
        _set(genes, stage.channels, where, 'channels', stage.choices.channels, own)
        blocks = own.pop('blocks')
        if not isinstance(blocks, (list, tuple)) or not blocks or blocks[0] is None:
            raise UsageError(f'{where}.blocks={blocks!r:.60} must be a list with a first block')
        blocks = [block for block in blocks if block is not None]
        depths = stage.choices.depths
        if len(blocks) not in depths:
            raise UsageError(
                f'{where}.blocks: {len(blocks)} blocks are none of the depths {list(depths)}'
            )
        genes[stage.depth] = depths.index(len(blocks))
        own.pop('channels', None)
        for slot, block in enumerate(blocks):
            place = f'{where}.blocks[{slot}]'
            block = check_keys(place, block, AXES)
            options = stage.options(slot)
            axes = [axis for axis in options.axes if axis.used]
            tied = _tied(axes, {**own, **block})
            if tied:
                block['block'] = tied
            for name in tied.keys() & block.keys():
                if block[name] != tied[name]:
                    raise UsageError(
                        f'{place}.{name}={block[name]!r:.60}: the tied choice says {tied[name]!r}'
                    )
            for axis, column in zip(options.axes, stage.columns[slot], strict=True):
                if axis.used and axis.name not in tied:
                    # What is said of the network stage may not be meant for its first block.
                    is_one = len(axis.values) == 1 and not axis.shared
                    said = block if is_one else {**own, **block}
                    _set(genes, column, place, axis.name, axis.values, said)
            if 'block' in block and all(axis.name != 'block' for axis in axes):
                raise UsageError(f'{place}.block={block["block"]!r:.60}: nothing is tied here')
    return genes


def _set(
    genes: list[int],
    column: int | None,
    where: str,
    name: str,
    values: Sequence[Any],
    given: Mapping[str, Any],
) -> None:
    """Writes the gene of one choice; what has one value may be left out, not said wrongly."""
    if name not in given:
        if len(values) > 1:
            raise UsageError(f'{where}: missing key {name}')
        return
    plain = [_plain(name, value) for value in values]
    if name == 'se' and given[name] is True and len([v for v in plain if v is not False]) == 1:
        # Short for the only one there is.
        plain = [value is not False for value in plain]
    if given[name] not in plain:
        raise UsageError(f'{where}.{name}={given[name]!r:.60} is none of {plain!r:.200}')
    if column is not None:
        genes[column] = plain.index(given[name])


def _tied(axes: Sequence[Axis], said: Mapping[str, Any]) -> dict[str, Any]:
    """The tied choice that is said of a block, by its name or by all that it decides."""
    tied = _axis(axes, 'block')
    if tied is None:
        return {}
    plain = [_plain('block', value) for value in tied.values]
    if len(plain) == 1 and 'block' not in said:
        return plain[0]
    if 'block' in said:
        return dict(said['block']) if said['block'] in plain else {}
    return max((value for value in plain if value.items() <= said.items()), key=len, default={})
