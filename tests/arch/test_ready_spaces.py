"""The ready spaces: their sizes, what networks they hold that are known by name, their costs."""

import re
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config

from mmscale.arch import SearchSpace, get_arch
from mmscale.cost import CostTable, count

SPACES = Path(__file__).parents[2] / 'configs' / '_base_' / 'search_spaces'
NAMES = sorted(path.stem for path in SPACES.glob('*.py'))
DIGITS = [name for name in NAMES if name.endswith('_digits')]


def space_of(name):
    return SearchSpace(**Config.fromfile(SPACES / f'{name}.py').space)


def test_every_family_has_a_space_for_imagenet_and_one_for_the_digits():
    families = {'ofa-mbv3', 'attentive', 'resnet', 'regnet', 'mobilenet-v2'}
    assert {f'{family}_digits' for family in families} == set(DIGITS)
    assert families | {'scalenet', 'ofa-mbv3-scaling', 'nas-bench-macro'} <= set(NAMES)


@pytest.mark.parametrize('name', NAMES)
def test_what_a_space_draws_it_knows_again(name):
    space = space_of(name)
    drawn = space.sample(np.random.default_rng(0), 20)
    costs = np.stack(CostTable(space).costs(drawn), axis=1)
    for genes, cost in zip(drawn, costs.tolist(), strict=True):
        arch = space.decode(genes)
        counted = count(arch)
        assert cost == [counted.flops, counted.params, counted.acts]
        genotype = space.encode(arch)
        assert genotype.genes == tuple(genes)
        assert space.genotype_of(space.choices(genes)) == genotype


@pytest.mark.parametrize('name', NAMES)
def test_a_space_says_how_many_networks_it_has(name):
    space = space_of(name)
    is_ordinary = len(space.scaling_stages) == 1
    words = f'{space.size:.4g} {"networks" if is_ordinary else "base models"} at '
    first, *lines = str(space).splitlines()
    assert words in first and ('an ordinary search space' in first) == is_ordinary
    assert len([line for line in lines if line.split()[0].isdigit()]) >= len(space.stages)
    assert max(map(len, lines)) < 200


# Per network stage the products of choices: of depth d and c choices a block c^d, summed.
SIZES = {
    'ofa-mbv3': 25 * (9**2 + 9**3 + 9**4) ** 5,
    'ofa-mbv3-scaling': (9**2 + 9**3 + 9**4) ** 5,
    # Widths, depths, kernels, expansions, pixels.
    'attentive': (2**8 * 3 * 4) * (2 * 3 * 4 * 4 * 6 * 6 * 2) * 2**7 * 3**4 * 4,
    'resnet': 3**5 * (3**2 + 3**3 + 3**4) ** 3 * (3**4 + 3**5 + 3**6) * 4,
    'regnet': (3 * 5 * 5 * 5) * (3 * 6 * 7 * 3) * 2,
    'mobilenet-v2': 3 * (2 * 3**6) * (6 + 6**2 + 6**3) * (6**2 + 6**3 + 6**4) ** 4 * 6 * 3,
}


@pytest.mark.parametrize('name', SIZES)
def test_sizes(name):
    assert space_of(name).size == SIZES[name]


@pytest.mark.parametrize(
    ('name', 'network'),
    [
        ('resnet', 'ResNet-50'),
        ('regnet', 'RegNetY-1.6GF'),
        ('mobilenet-v2', 'MobileNetV2'),
        ('scalenet', 'scalenet-s0-search'),
    ],
)
def test_a_space_holds_the_network_that_it_is_around(name, network):
    space, arch = space_of(name), get_arch(network)
    assert space.decode(space.encode(arch)) == arch


def test_mobilenet_v3_is_ofas_but_for_the_hidden_widths_of_three_blocks():
    """Those are 2.5 and 2.3 times the width there, which is none of Once-for-All's expansions."""
    space, published = space_of('ofa-mbv3'), get_arch('MobileNetV3-Large')
    wide, narrow = dict(kernel=3, expand=6), dict(kernel=3, expand=3)
    stages = [
        [dict(kernel=3)],
        [dict(kernel=3, expand=4), narrow],
        [dict(kernel=5, expand=3)] * 3,
        [wide, narrow, narrow, narrow],
        [wide, wide],
        [dict(kernel=5, expand=6)] * 3,
    ]
    choices = dict(resolution=224, stages=[dict(blocks=blocks) for blocks in stages])
    arch = space.decode(space.genotype_of(choices))
    different = [
        (ours.hidden_channels, theirs.hidden_channels)
        for ours, theirs in zip(arch.blocks, published.blocks, strict=True)
        if ours != theirs
    ]
    assert different == [(240, 200), (240, 184), (240, 184)]
    more = 40 + 56 + 56
    ours, theirs = count(arch), count(published)
    # A hidden channel at 14 x 14: 80 weights in, 9 of its own, 80 out; two norms.
    assert ours.flops - theirs.flops == more * (80 + 9 + 80) * 14**2
    assert ours.params - theirs.params == more * (80 + 2 + 9 + 2 + 80)


def test_the_documents_say_what_the_spaces_have():
    page = Path(__file__).parents[2] / 'docs' / 'search_spaces.md'
    row = r'^\| \[([\w-]+)\]\(\S+\) \| .* \| ([\d.e,]+)(?: base models)? \| '
    row += r'(\S+) (\S) to (\S+) (\S) \('
    rows = re.findall(row, page.read_text(encoding='utf-8'), re.MULTILINE)
    assert {name for name, *_ in rows} == {*NAMES} - {'digits_detection'}
    units = {'k': 1e3, 'M': 1e6, 'G': 1e9}
    for name, size, *flops in rows:
        space = space_of(name)
        assert float(size.replace(',', '')) == pytest.approx(space.size, rel=0.06)
        said = [float(flops[i]) * units[flops[i + 1]] for i in (0, 2)]
        found = [count(arch).flops for arch in (space.smallest(), space.largest())]
        assert said == pytest.approx(found, rel=0.03)


@pytest.mark.parametrize('name', DIGITS)
def test_a_space_for_the_digits_costs_little(name):
    space = space_of(name)
    smallest = space.smallest()
    assert (smallest.stem.in_channels, smallest.head.num_classes) == (1, 10)
    archs = [space.decode(genes) for genes in space.sample(np.random.default_rng(0), 50)]
    flops = sorted(count(arch).flops for arch in archs)
    assert 0.3e6 <= flops[len(flops) // 2] <= 3e6
    assert count(space.largest()).flops <= 6e6
    assert 0.1e6 <= count(smallest).flops <= 0.6e6
    assert all(24 <= resolution <= 48 for resolution in space.resolutions)
