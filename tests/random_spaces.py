"""Random small search spaces, of all that a config can say, for property tests."""

import math
import re
from random import Random
from typing import Any

from hypothesis import strategies as st

from mmscale.arch import SearchSpace
from mmscale.arch.arch import ACTS, KINDS

# Group widths divide all hidden widths of these.
VALUES = {
    'kind': KINDS,
    'kernels': (1, 3, 5),
    'expands': (0.5, 1, 1.5, 2, 3),
    'group_widths': (0, 1, 4),
    'act': ACTS,
}
NAMED = (False, True, dict(ratio=0.25, of='input', divisor=8), dict(ratio=0.1, gate='sigmoid'))
UNNAMED = (False, True, dict(act='silu', gate='sigmoid'))
DEPTHS = ([1], [2], [1, 2], [1, 3], [2, 3], [1, 2, 3])
NAMES = {'kernels': 'kernel', 'expands': 'expand', 'group_widths': 'group_width'}


def some(rng: Random, values: tuple, most: int = 3) -> Any:
    """One value, or a list of up to `most` in their order."""
    count = rng.randint(1, min(most, len(values)))
    found = [values[i] for i in sorted(rng.sample(range(len(values)), count))]
    return found if count > 1 or rng.random() < 0.5 else found[0]


def block_keys(rng: Random, excites: tuple, chance: float) -> dict[str, Any]:
    """What a config says of blocks: a kernel, perhaps tied, and each other key by chance."""
    values = {**VALUES, 'se': excites}
    given = {
        key: some(rng, own)
        for key, own in values.items()
        if key != 'kernels' and rng.random() < chance
    }
    if rng.random() < 0.75:
        given['kernels'] = some(rng, VALUES['kernels'])
        return given
    tied: list[dict[str, Any]] = []
    for _ in range(rng.randint(1, 3)):
        block = {'kernel': rng.choice(VALUES['kernels'])}
        for key in rng.sample(sorted(values.keys() - {'kernels'}), rng.randint(0, 2)):
            block[NAMES.get(key, key)] = rng.choice(values[key])
        if block not in tied:
            tied.append(block)
    return {**given, 'blocks': tied}


def stage_config(rng: Random, excites: tuple) -> dict[str, Any]:
    """One network stage."""
    stage: dict[str, Any] = {
        'channels': some(rng, (8, 16, 24)),
        'stride': rng.choice((1, 2)),
        'depths': rng.choice(DEPTHS),
        'skips': rng.choice(('end', 'anywhere')),
        **block_keys(rng, excites, 0.4),
    }
    share = rng.choice(('block', 'stage', 'some'))
    if share == 'some':
        keys = [key for key in ('blocks', *VALUES, 'se') if key in stage]
        share = {key: rng.choice(('block', 'stage')) for key in keys}
    stage['share'] = share
    if rng.random() < 0.3:
        stage['first'] = block_keys(rng, excites, 0.2)
    return stage


def drop_unused(config: dict[str, Any]) -> None:
    """Takes out keys that say what no kind of block there has, which a space refuses."""
    while True:
        try:
            SearchSpace(**config)
            return
        except ValueError as error:
            found = re.match(
                r'space\.stages\[(\d+)\](\.first)?\.(\w+): .* (have none|name their own)',
                str(error),
            )
            if found is None:
                raise
        stage = config['stages'][int(found[1])]
        part = stage['first'] if found[2] else stage
        part.pop(found[3])


def trim(rng: Random, config: dict[str, Any], most: int) -> None:
    """Takes choices away until a config has at most so many raw genotypes."""
    drop_unused(config)
    while math.prod(SearchSpace(**config).num_choices.tolist()) > most:
        parts = [config['head'], config['stem']]
        for stage in config['stages']:
            parts += [stage, stage.get('first', {})]
        lists = [
            (part, key)
            for part in parts
            for key, value in part.items()
            if isinstance(value, list) and len(value) > 1
        ]
        part, key = rng.choice(lists)
        part[key].pop(rng.randrange(len(part[key])))
        drop_unused(config)


def space_config(seed: int, most: int = 2000, scaling_stages: int | None = None) -> dict[str, Any]:
    """The config of a small valid space: every kind of block, tied and shared choices, skips.

    Args:
        seed: Of all choices.
        most: Largest number of raw genotypes, which is the product of all numbers of choices.
        scaling_stages: One or two; by default either.
    """
    rng = Random(seed)
    excites = rng.choice((NAMED, UNNAMED))
    rules = ('proportional',) if excites is NAMED else ('search', 'retraining', 'proportional')
    config: dict[str, Any] = {
        'stages': [stage_config(rng, excites) for _ in range(rng.randint(1, 3))],
        'stem': {
            'channels': some(rng, (8, 16)),
            'stride': rng.choice((1, 2)),
            'max_pool': rng.random() < 0.3,
        },
        'head': {
            'channels': rng.choice((0, some(rng, (16, 24)))),
            'hidden_channels': rng.choice((0, some(rng, (8, 12)))),
        },
        'num_classes': 4,
        'in_channels': rng.choice((1, 3)),
        'act': rng.choice(ACTS),
        'se': rng.choice((None, {'act': 'hswish'})),
        'rule': rng.choice(rules),
        'rounding': {
            'mode': rng.choice(('ceil', 'nearest', 'divisible')),
            'channel_divisor': rng.choice((4, 8)),
        },
        'padding': rng.choice(('half', 'same')),
    }
    pixels = some(rng, (24, 32, 45), 2)
    if (scaling_stages or rng.randint(1, 2)) == 1:
        config['resolution'] = pixels
    else:
        config['scaling_stages'] = [
            {'depth': [1], 'width': [1], 'resolution': pixels},
            {
                'depth': rng.choice(([1], [1, 1.5], [1.2, 1.3, 2])),
                'width': rng.choice(([1], [1, 1.1, 1.2], [1.5])),
                'resolution': rng.choice(([32], [45, 46, 64])),
            },
        ]
    trim(rng, config, most)
    return config


def space_configs(
    most: int = 2000, scaling_stages: int | None = None
) -> st.SearchStrategy[dict[str, Any]]:
    """Strategy of :func:`space_config`."""
    seeds = st.integers(0, 2**32)
    return seeds.map(lambda seed: space_config(seed, most, scaling_stages))


def spaces(most: int = 2000, scaling_stages: int | None = None) -> st.SearchStrategy[SearchSpace]:
    """The spaces of :func:`space_configs`."""
    return space_configs(most, scaling_stages).map(lambda config: SearchSpace(**config))
