"""Counts of hierarchical sampling against what is expected of it."""

import pytest

from mmscale.arch import HierarchicalSampler, SearchSpace
from mmscale.search.varied import varied
from mmscale.visualization import sampling_histograms

SPACE = dict(
    num_classes=10,
    stem=dict(channels=4),
    stages=[
        dict(channels=4, stride=1, expand=1, depths=[1, 2], kernels=[3, 5]),
        dict(channels=6, stride=2, expand=2, depths=[1, 2, 3], kernels=[3, 5, 7]),
    ],
    head=dict(channels=12),
    scaling_stages=[
        dict(depth=[1], width=[1], resolution=[12]),
        dict(depth=[1.2, 1.6, 2.2], width=[1.2, 1.4, 1.6], resolution=[12, 14, 16]),
    ],
)


def test_expected_counts_are_those_of_many_draws():
    sampler = HierarchicalSampler(SearchSpace(**SPACE), 0, 'choices')
    for histogram in sampling_histograms(sampler, range(3000)):
        assert set(histogram.counts) == set(histogram.expected)
        assert sum(histogram.counts.values()) == pytest.approx(
            sum(histogram.expected.values()), rel=0.03
        )
        for value, expected in histogram.expected.items():
            assert histogram.counts[value] == pytest.approx(expected, rel=0.2)


RICH = dict(
    num_classes=10,
    stem=dict(channels=[4, 8]),
    stages=[
        dict(
            channels=[8, 16],
            depths=[1, 2, 3],
            kernels=[3, 5],
            expands=[1, 2],
            kind=['mbconv', 'dsconv', 'conv'],
            skips='anywhere',
        ),
        dict(
            channels=16,
            stride=2,
            depths=[1, 2],
            blocks=[
                dict(kind='bottleneck', kernel=3, group_width=4, se=True),
                dict(kernel=5, expand=3, act='relu'),
            ],
            share='stage',
        ),
    ],
    head=dict(channels=[16, 24], hidden_channels=[8, 12]),
)


@pytest.mark.parametrize('scaled', [False, True])
def test_all_choices_of_a_space_are_counted(scaled):
    space = dict(RICH, resolution=[24, 32])
    if scaled:
        space['scaling_stages'] = [
            dict(depth=[1], width=[1], resolution=space.pop('resolution')),
            dict(depth=[1, 2], width=[1, 1.5], resolution=[32, 48]),
        ]
    space = SearchSpace(**space)
    histograms = sampling_histograms(HierarchicalSampler(space, 0), range(4000))
    titles = ['Scaling stage', 'Depth', 'Width'] if scaled else []
    titles += ['Resolution', 'Base depth']
    of_blocks = ('Kernels', 'Kinds', 'Expansions', 'Group widths', 'SE', 'Activations')
    titles += [f'{name} of the base model' for name in of_blocks]
    titles += ['Stem', 'Channels', 'Head', 'Hidden head']
    assert [histogram.title for histogram in histograms] == titles
    assert len(titles) == len(varied(space)) + (6 if scaled else 3)
    for histogram in histograms:
        assert set(histogram.counts) == set(histogram.expected)
        for value, expected in histogram.expected.items():
            assert histogram.counts[value] == pytest.approx(expected, rel=0.1, abs=60)
    kinds = {title: histogram for title, histogram in zip(titles, histograms, strict=True)}[
        'Kinds of the base model'
    ]
    # With an expansion of 1 an mbconv is a dsconv: 1/6 + 1/3, of twice as many as convs.
    assert kinds.expected['1:dsconv'] == pytest.approx(1.5 * kinds.expected['1:conv'])
