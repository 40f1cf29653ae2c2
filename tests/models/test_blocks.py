"""ArchBlock: the layers of a block against its data and against plain torch."""

import pytest
import torch
from torch.nn.functional import batch_norm, conv2d, pad

from mmscale.arch import Block, SqueezeExcite
from mmscale.arch.blocks import weights
from mmscale.models.backbones.blocks import ArchBlock

SE = SqueezeExcite(3)


@pytest.mark.parametrize(
    'block',
    [
        Block('mbconv', 3, 2, 8, 24, 12, 6, SE, grouped_channels=18, residual='projection'),
        Block('dsconv', 5, 1, 8, 8, 12, 8, SE),
        Block('fused_mbconv', 3, 2, 8, 20, 12, 2, SE),
        Block('bottleneck', 3, 1, 8, 6, 12, 3, SE, residual='projection'),
        Block('basic', 3, 1, 8, 6, 12, 2, residual='projection'),
        Block('conv', 3, 2, 8, 12, 12, 4, residual='projection'),
    ],
    ids=lambda block: block.kind,
)
def test_weights_are_those_of_all_convolutions_that_are_built(block):
    layers = ArchBlock(block, dict(type='BN'))
    kernels = [tensor.numel() for tensor in layers.parameters() if tensor.dim() == 4]
    assert weights(block) == sum(kernels)


@pytest.mark.parametrize('padding', ['half', 'same'])
@pytest.mark.parametrize('residual', ['none', 'identity'])
def test_a_conv_is_linear_up_to_its_norm(padding, residual, randomise):
    torch.manual_seed(0)
    stride = 2 if residual == 'none' else 1
    block = Block('conv', 3, stride, 6, 6, 6, 2, residual=residual, padding=padding, eps=1e-3)
    net = randomise(ArchBlock(block, dict(type='BN'))).eval()
    weight = net.spatial.conv.weight
    norm = {key: getattr(net.spatial.bn, key) for key in ('weight', 'bias')}
    statistics = net.spatial.bn.running_mean, net.spatial.bn.running_var
    x = torch.randn(2, 6, 8, 8)
    # TensorFlow pads an even side at stride 2 at its end alone.
    sides = (0, 1, 0, 1) if (padding, stride) == ('same', 2) else (1, 1, 1, 1)
    expected = batch_norm(
        conv2d(pad(x, sides), weight, stride=stride, groups=2), *statistics, **norm, eps=1e-3
    )
    if residual == 'identity':
        expected = expected + x
    with torch.no_grad():
        torch.testing.assert_close(net(x), expected)
    assert expected.min() < 0  # no activation cut it
