"""Spaces of public benchmarks, said as configs, have the benchmarks' networks and their costs."""

import csv
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config

from mmscale.arch import SearchSpace
from mmscale.cost import CostTable, count

SPACES = Path(__file__).parents[2] / 'configs' / '_base_' / 'search_spaces'
DATA = Path(__file__).parents[1] / 'data'


def space_of(name):
    return SearchSpace(**Config.fromfile(SPACES / f'{name}.py').space)


def rows_of(name):
    with (DATA / f'{name}.csv').open(encoding='utf-8', newline='') as file:
        return list(csv.DictReader(file))


# ---------------------------------------------------------------- NAS-Bench-Macro

LETTERS = {'0': None, '1': {'kernel': 3, 'expand': 3}, '2': {'kernel': 5, 'expand': 6}}
STRIDED_SKIP = {'kind': 'conv', 'kernel': 1}


def macro_choices(letters):
    """What a row of NAS-Bench-Macro chooses: a letter per place of 2 + 3 + 3."""
    stages = []
    for part in (letters[:2], letters[2:5], letters[5:]):
        first = LETTERS[part[0]] or STRIDED_SKIP
        blocks = [{'block': first}]
        blocks += [LETTERS[letter] and {'block': LETTERS[letter]} for letter in part[1:]]
        stages.append({'blocks': blocks})
    return {'stages': stages}


@pytest.fixture(scope='module')
def macro():
    """The space of NAS-Bench-Macro, its rows, and their genotypes."""
    space, rows = space_of('nas-bench-macro'), rows_of('nas_bench_macro')
    return space, rows, [space.genotype_of(macro_choices(row['arch'])) for row in rows]


def test_macro_has_as_many_networks_as_the_benchmark(macro):
    space, rows, genotypes = macro
    by_canonical = dict(zip([row['canonical'] for row in rows], genotypes, strict=True))
    assert len(rows) == 3**8
    assert len(by_canonical) == len(set(genotypes)) == space.size == 3969
    for row, genotype in zip(rows, genotypes, strict=True):
        assert genotype == by_canonical[row['canonical']], row['arch']


def test_macro_counts_what_the_benchmark_counts(macro):
    space, rows, genotypes = macro
    costs = {genotype: count(space.decode(genotype)) for genotype in set(genotypes)}
    wrong = [
        row['arch']
        for row, genotype in zip(rows, genotypes, strict=True)
        if (costs[genotype].flops, costs[genotype].params)
        != (int(row['flops']), int(row['params']))
    ]
    assert not wrong


def test_macro_by_the_cost_table(macro):
    space, rows, genotypes = macro
    costs = CostTable(space).costs(np.array([genotype.genes for genotype in genotypes]))
    for key in ('flops', 'params'):
        assert getattr(costs, key).tolist() == [int(row[key]) for row in rows]


def test_macro_says_its_genotypes_by_name(macro):
    space, rows, genotypes = macro
    for genotype in genotypes[:: len(rows) // 50]:
        assert space.genotype_of(space.choices(genotype)) == genotype
        assert space.encode(space.decode(genotype)) == genotype


# ---------------------------------------------------------------- Once-for-All

# Width, stride, SE and activation of the searched network stages of MobileNetV3-Large.
OFA_STAGES = (
    (24, 2, False, 'relu'),
    (40, 2, True, 'relu'),
    (80, 2, False, 'hswish'),
    (112, 1, True, 'hswish'),
    (160, 2, True, 'hswish'),
)


def of_eight(channels):
    """MobileNetV3's rounding."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


@pytest.mark.parametrize('row', rows_of('ofa_mbv3_subnets'), ids=lambda row: row['id'])
def test_subnets_of_once_for_all_are_in_the_space(row, ofa):
    depths, kernels, expands = (
        [int(number) for number in row[key].split('-')] for key in ('depths', 'kernels', 'expands')
    )
    stages = [
        [dict(kernel=kernels[4 * i + j], expand=expands[4 * i + j]) for j in range(depth)]
        for i, depth in enumerate(depths)
    ]
    first = dict(blocks=[dict(kernel=3)])
    choices = dict(
        resolution=int(row['resolution']),
        stages=[first, *(dict(blocks=blocks) for blocks in stages)],
    )
    genotype = ofa.genotype_of(choices)
    assert ofa.choices(genotype) == choices
    arch = ofa.decode(genotype)
    assert ofa.encode(arch) == genotype
    assert arch.resolution == int(row['resolution'])
    assert (arch.head.channels, arch.head.hidden_channels) == (960, 1280)
    before = 16
    for built, blocks, (width, stride, excites, act) in zip(
        arch.stages[1:], stages, OFA_STAGES, strict=True
    ):
        found = []
        for block, said in zip(built, blocks, strict=True):
            hidden = of_eight(before * said['expand'])
            assert (block.kernel, block.hidden_channels) == (said['kernel'], hidden)
            squeezed = of_eight(hidden // 4) if excites else None
            assert (block.se and block.se.channels) == squeezed
            assert (block.act, block.out_channels) == (act, width)
            found.append(block.stride)
            before = width
        assert found == [stride] + [1] * (len(blocks) - 1)


@pytest.fixture(scope='module')
def ofa():
    return space_of('ofa-mbv3')


# ---------------------------------------------------------------- AttentiveNAS

# Published settings (pixels; widths of stem, network stages and head; kernels, expansions, depths)
# and published millions of multiply-adds.
ATTENTIVE = {
    'A0': (192, '16 16 24 32 64 112 192 216 1792', '3333333', '1444466', '1333331', 203),
    'A1': (224, '16 16 24 32 64 112 192 216 1984', '3335353', '1444466', '1333331', 279),
    'A2': (224, '16 16 24 32 64 112 200 224 1984', '3333353', '1454466', '1333341', 317),
    'A3': (224, '16 16 24 32 64 112 208 224 1984', '3335333', '1444466', '2334351', 357),
    'A4': (256, '16 16 24 32 64 112 192 216 1984', '3335353', '1445466', '1334351', 444),
    'A5': (256, '16 16 24 32 72 112 192 216 1792', '3335333', '1454466', '1333461', 491),
    'A6': (288, '16 16 24 32 64 112 216 224 1984', '3333353', '1465466', '1334461', 709),
}
ATTENTIVE_STRIDES = (1, 2, 2, 2, 1, 2, 1)


@pytest.mark.parametrize('name', ATTENTIVE)
def test_published_networks_of_attentive_nas(name):
    pixels, widths, kernels, expands, depths, published = ATTENTIVE[name]
    widths = [int(width) for width in widths.split()]
    space = space_of('attentive')
    stages = []
    for i, width in enumerate(widths[1:-1]):
        stage = dict(channels=width, kernel=int(kernels[i]), blocks=[{}] * int(depths[i]))
        if 'expand' in {gene.name for gene in space.genes if gene.stage == i}:
            stage['expand'] = int(expands[i])
        stages.append(stage)
    choices = dict(
        resolution=pixels,
        stem=widths[0],
        stages=stages,
        head_channels=6 * widths[-2],
        head_hidden_channels=widths[-1],
    )
    arch = space.decode(space.genotype_of(choices))
    # The space has no convolutions on shortcuts between different widths; the networks do.
    side, shortcuts = pixels // 2, 0
    for before, after, stride in zip(widths, widths[1:-1], ATTENTIVE_STRIDES, strict=False):
        side = -(-side // stride)
        shortcuts += before * after * side**2 if before != after else 0
    assert round((count(arch).flops + shortcuts) / 1e6) == published
