"""Counts of hierarchical sampling against what is expected of it."""

import pytest

from mmscale.arch import HierarchicalSampler, SearchSpace
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
