"""Zero initialisation: which weights begin with 0, and that whatever is loaded wins."""

import pytest
import torch
from mmengine.runner.checkpoint import load_state_dict
from torch.nn.modules.batchnorm import _BatchNorm

from mmscale.arch import Arch, Block, Head, Stem
from mmscale.models import ArchNet, SuperNet

ARCH = Arch(
    20,
    Stem(6),
    (
        (Block('conv', 3, 1, 6, 6, 6, 1, residual='identity'),),
        (Block('mbconv', 3, 2, 6, 12, 8, 12), Block('mbconv', 3, 1, 8, 16, 8, 16)),
        (Block('mbconv', 3, 1, 8, 16, 8, 16, residual='identity'),),
        (Block('bottleneck', 3, 2, 8, 8, 12, 1, act='relu', residual='projection'),),
        (Block('basic', 3, 1, 12, 12, 12, 1, act='relu', residual='identity'),),
    ),
    Head(16, num_classes=7),
)
ZEROED = (
    *('stages.0.0.spatial', 'stages.2.0.project', 'stages.3.0.project', 'stages.4.0.project'),
)


def initialised(arch=ARCH, **settings):
    torch.manual_seed(0)
    net = ArchNet(arch, **settings)
    net.init_weights()
    return net


def zeroed(net):
    norms = [(key, m) for key, m in net.named_modules() if isinstance(m, _BatchNorm)]
    assert all((m.weight == m.weight[0]).all() for _, m in norms)
    return {key.rsplit('.', 1)[0] for key, m in norms if m.weight[0] == 0}


def test_the_last_norm_of_every_residual_branch_is_zero_and_all_else_as_without():
    plain, net = initialised(), initialised(zero_init_residual=True)
    assert zeroed(plain) == set()
    assert zeroed(net) == set(ZEROED)
    theirs = plain.state_dict()
    for key, tensor in net.state_dict().items():
        if not key.startswith(ZEROED) or not key.endswith('bn.weight'):
            assert torch.equal(tensor, theirs[key]), key
    images = torch.rand(2, 3, 20, 20)
    # A block whose branch is silent hands on what comes in, and still learns.
    x = net.stem(images)
    assert torch.equal(net.stages[0][0](x), x)
    net(images)[0].square().mean().backward()
    assert all(net.get_submodule(name).norm.weight.grad.any() for name in ZEROED)


@pytest.mark.parametrize(
    'norm_cfg', [dict(type='GN', num_groups=2), dict(type='BN', affine=False)]
)
def test_other_norm_layers_are_zeroed_if_they_have_a_weight(norm_cfg):
    net = initialised(norm_cfg=norm_cfg, zero_init_residual=True)
    weights = [net.get_submodule(name).norm.weight for name in ZEROED]
    assert all(weight is None or not weight.any() for weight in weights)
    assert all(weight is None for weight in weights) == ('affine' in norm_cfg)


def test_pretrained_and_loaded_weights_win(tmp_path):
    source = initialised()
    torch.save({'state_dict': source.state_dict()}, tmp_path / 'weights.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'weights.pth'))
    pretrained = initialised(init_cfg=init_cfg, zero_init_residual=True)
    resumed = initialised(zero_init_residual=True)
    load_state_dict(resumed, source.state_dict(), strict=True)
    # As runners do that resume: initialising again changes nothing.
    resumed.init_weights()
    for net in (pretrained, resumed):
        for key, tensor in source.state_dict().items():
            assert torch.equal(net.state_dict()[key], tensor), key


def test_a_super_supernet_is_zeroed_and_what_is_extracted_keeps_its_weights(tiny_space):
    torch.manual_seed(0)
    net = SuperNet(tiny_space, sides=('left',), zero_init_residual=True)
    net.init_weights()
    names = zeroed(net)
    assert names and all('.project' in name for name in names)
    arch = tiny_space.largest()
    subnet = net.extract(arch)
    assert zeroed(subnet) == names & {key for key, _ in subnet.named_modules()}
    # What has no residual keeps its branch: nothing else would be left of it.
    for i, stage in enumerate(arch.stages):
        for j, block in enumerate(stage):
            is_zeroed = f'stages.{i}.{j}.project' in names
            assert is_zeroed == (block.residual != 'none')
