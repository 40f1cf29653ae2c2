"""Counts of networks with convs against the numbers that NAS-Bench-Macro publishes of them."""

import pytest

from mmscale.arch import Arch, Block, Head, Stem
from mmscale.cost import count


def network(letters):
    """A row of the table: 0 skips, 1 and 2 are inverted residuals; a strided skip is a conv."""
    channels, position, stages = 32, 0, []
    for width, depth in ((64, 2), (128, 3), (256, 3)):
        stage = []
        for letter in letters[position : position + depth]:
            stride = 1 if stage or channels == width else 2
            if letter == '0' and stride == 2:
                stage.append(Block('conv', 1, stride, channels, width, width, 1))
            elif letter != '0':
                expand, kernel = {'1': (3, 3), '2': (6, 5)}[letter]
                hidden = expand * channels
                stage.append(Block('mbconv', kernel, stride, channels, hidden, width, hidden))
            channels = width
        position += depth
        stages.append(tuple(stage))
    return Arch(32, Stem(32, stride=1), tuple(stages), Head(1280, num_classes=10))


# Of nas-bench-macro_cifar10.json, github.com/xiusu/NAS-Bench-Macro (Apache-2.0).
@pytest.mark.parametrize(
    ('letters', 'params', 'flops'),
    [
        ('00000000', 387882, 7713280),
        ('10000000', 396298, 12128768),
        ('01000000', 415082, 14447104),
        ('00100000', 419050, 12018176),
        ('22222222', 2932586, 105660928),
    ],
)
def test_costs_are_those_of_nas_bench_macro(letters, params, flops):
    cost = count(network(letters))
    assert (cost.params, cost.flops) == (params, flops)
