"""Feature maps for detectors and segmenters: strides, channels, a neck of its own, weights."""

import math
import re

import numpy as np
import pytest
import torch
from mmcv.cnn import HSigmoid
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmscale.arch import get_arch, preset_names
from mmscale.models import ArchNet, SuperNet
from mmscale.models.backbones import index_of
from mmscale.registry import MODELS

STRIDES = (4, 8, 16, 32)


@MODELS.register_module(force=True)
class PointwiseNeck(nn.Module):
    """A 1x1 convolution and a norm per feature map."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(width, out_channels, 1) for width in in_channels)
        self.norms = nn.ModuleList(nn.BatchNorm2d(out_channels) for _ in in_channels)

    def forward(self, inputs):
        together = zip(self.convs, self.norms, inputs, strict=True)
        return tuple(norm(conv(x)) for conv, norm, x in together)


NECK = dict(type='mmscale.PointwiseNeck', out_channels=6)


def random_archs(space, presets, drawn):
    """Published networks of all kinds, and networks of the paper's space."""
    rng = np.random.default_rng(0)
    names = [name for name in preset_names() if get_arch(name).strides[-1] == 32]
    yield from (get_arch(name) for name in rng.choice(names, presets, replace=False))
    for genes in space.sample(rng, drawn):
        scalings = space.scalings(1)
        yield space.decode(genes, scalings[rng.integers(len(scalings))])


def test_strides_and_channels_of_20_random_archs(paper_space, monkeypatch):
    # Weights have no values on the meta device, but drawing them takes seconds.
    for name in ('normal_', 'uniform_'):
        monkeypatch.setattr(torch.Tensor, name, lambda tensor, *_, **__: tensor)
    rng = np.random.default_rng(1)
    archs = list(random_archs(paper_space, 6, 14))
    assert len(set(archs)) == 20
    for arch in archs:
        with torch.device('meta'):
            net = ArchNet(arch, out_strides=STRIDES, neck=NECK)
            neck, net.neck = net.neck, None
            size = [int(side) for side in rng.integers(40, 300, 2)]
            for module in list(net.modules()):
                for name, child in module.named_children():
                    # They keep shapes, and are slow on the meta device.
                    if isinstance(child, _BatchNorm | nn.Hardswish | HSigmoid):
                        setattr(module, name, nn.Identity())
            maps = net.eval()(torch.empty(1, 3, *size))
        assert [tuple(x.shape[2:]) for x in maps] == [
            tuple(math.ceil(side / stride) for side in size) for stride in STRIDES
        ]
        # Read off the layers, not off the Arch that the network says it has.
        ends = [net.stages[i][-1].project.conv.out_channels for i in net.out_indices]
        assert [x.shape[1] for x in maps] == ends == list(net.out_channels)
        assert [conv.in_channels for conv in neck.convs] == ends
        assert all(arch.strides[i + 1] > arch.strides[i] for i in net.out_indices[:-1])


def test_the_last_network_stage_of_a_stride_gives_its_feature_map():
    # Two network stages of ScaleNet have stride 16, two have stride 32.
    net = ArchNet('scalenet-s0', out_strides=(8, 16, 32))
    assert net.arch.strides == (2, 4, 8, 16, 16, 32, 32)
    assert net.out_indices == (2, 4, 6)
    assert net.out_channels == (40, 96, 320)
    images = torch.rand(1, 3, 64, 64)
    same = ArchNet('scalenet-s0', out_indices=(2, 4, 6)).eval()
    same.load_state_dict(net.state_dict())
    assert all(map(torch.equal, net.eval()(images), same(images)))


def test_bad_settings_are_refused():
    for kwargs, message in (
        (dict(out_strides=(8, 64)), r'64 is none of the strides .*, 2, 4, 8, 16, 32'),
        (dict(out_strides=(8, 8)), r'the output of index 2 comes twice'),
        (dict(out_strides=(8,), out_indices=(2,)), r'give one of them'),
        (dict(out_strides=()), r'must name at least one'),
        (dict(neck=dict(**NECK, in_channels=[320])), r'in_channels=\[320\]: leave it out'),
    ):
        with pytest.raises(ValueError, match=message):
            ArchNet('scalenet-s0', **kwargs)


def test_what_is_behind_the_last_map_is_neither_computed_nor_waited_for():
    net = ArchNet('scalenet-s0', out_strides=(4, 8)).train()

    def forbidden(*_):
        raise AssertionError('computed')

    for part in (*net.stages[3:], net.conv_head):
        for module in part.modules():
            module.register_forward_pre_hook(forbidden)
    sum(x.sum() for x in net(torch.rand(2, 3, 32, 32))).backward()
    # DistributedDataParallel waits for the gradient of all that asks for one.
    assert all((p.grad is not None) == p.requires_grad for p in net.parameters())
    whole = ArchNet('scalenet-s0')
    assert net.state_dict().keys() == whole.state_dict().keys()


def test_the_neck_learns_while_the_network_is_frozen():
    net = ArchNet('scalenet-s0', out_strides=STRIDES, neck=NECK, frozen_stages=7, norm_eval=True)
    net.train()
    assert all(p.requires_grad == name.startswith('neck.') for name, p in net.named_parameters())
    norms = {name: m.training for name, m in net.named_modules() if isinstance(m, _BatchNorm)}
    assert all(training == name.startswith('neck.') for name, training in norms.items())


def test_a_subnet_uses_the_part_of_the_neck_that_fits(narrow_space, randomise):
    net = SuperNet(narrow_space, out_strides=STRIDES, neck=NECK)
    randomise(net)
    images = torch.rand(2, 3, 48, 48)
    rng = np.random.default_rng(2)
    widths = set()
    for number, genes in enumerate(narrow_space.sample(rng, 3)):
        arch = narrow_space.decode(genes, narrow_space.scalings(1)[number])
        side = ('left', 'right')[number % 2]
        net.eval().set_arch(arch, side)
        alone = net.extract(arch, side).eval()
        with torch.no_grad():
            expected, found = alone(images), net(images)
        assert all(map(torch.equal, expected, found)) and len(found) == 4
        assert [conv.in_channels for conv in alone.neck.convs] == list(alone.out_channels)
        widths.add(alone.out_channels)
    assert len(widths) > 1
    sum(x.sum() for x in net.train()(images)).backward()
    with net.slices():
        sum(x.sum() for x in net(images)).backward()
    for name, parameter in net.named_parameters():
        parts = net.used_slices.get(name, ())
        assert (parameter.grad is not None) == bool(parts), name
        outside = torch.ones_like(parameter, dtype=torch.bool)
        for part in parts:
            assert part.leaf.grad is not None, name
            outside[index_of(part.region)] = False
        assert parameter.grad is None or not parameter.grad[outside].any(), name


# ------------------------------------------------------------------ weights of a classifier


@pytest.fixture(scope='module')
def classifier(tmp_path_factory):
    """Checkpoint of a classifier around ResNet-18, and its backbone."""
    net = ArchNet('ResNet-18')
    state = {f'backbone.{key}': tensor for key, tensor in net.state_dict().items()}
    path = tmp_path_factory.mktemp('classifier') / 'best.pth'
    torch.save({'state_dict': {**state, 'head.fc.weight': torch.zeros(10, 512)}}, path)
    return net, path


def pretrained(path, prefix='backbone.', arch='ResNet-18', **kwargs):
    init_cfg = dict(type='Pretrained', checkpoint=str(path), prefix=prefix)
    net = ArchNet(arch, out_strides=STRIDES, init_cfg=init_cfg, **kwargs)
    net.init_weights()
    return net


@pytest.mark.parametrize('prefix', ['backbone.', 'backbone'])
def test_a_neck_needs_no_weights_of_a_classifier(classifier, prefix, caplog):
    source, path = classifier
    net = pretrained(path, prefix, neck=NECK, frozen_stages=1)
    state = net.state_dict()
    for key, tensor in source.state_dict().items():
        assert torch.equal(state.pop(key), tensor), key
    assert state and all(key.startswith('neck.') for key in state)
    assert not any(p.requires_grad for p in (*net.stem.parameters(), *net.stages[0].parameters()))
    assert 'do not match' not in caplog.text


@pytest.mark.parametrize('prefix', ['bakbone.', 'head.', 'backbone.stages.', None])
def test_a_wrong_prefix_is_an_error_that_names_keys(classifier, prefix):
    message = r'init_cfg: .*best\.pth'
    if prefix != 'head.':
        message = rf'prefix={re.escape(repr(prefix))}'
    with pytest.raises(ValueError, match=message) as error:
        pretrained(classifier[1], prefix)
    assert 'backbone.' in str(error.value) and 'stem.conv.weight' in str(error.value)


def test_keys_without_a_match_are_an_error_that_names_them(classifier, tmp_path):
    source, path = classifier
    with pytest.raises(ValueError, match=r'of another shape: backbone\.stages') as error:
        pretrained(path, arch='ResNet-50')
    assert 'missing: backbone.stages.0.0.expand.conv.weight' in str(error.value)
    state = torch.load(path, weights_only=True)['state_dict']
    for change, message in (
        (lambda s: s.pop('backbone.stem.bn.bias'), 'network: 1 missing: backbone.stem.bn.bias$'),
        (lambda s: s.update({'backbone.x': torch.ones(1)}), '1 not in the model: backbone.x$'),
    ):
        changed = dict(state)
        change(changed)
        torch.save({'state_dict': changed}, tmp_path / 'a.pth')
        with pytest.raises(ValueError, match=message):
            pretrained(tmp_path / 'a.pth', neck=NECK)
    # A file of the backbone alone needs no prefix.
    torch.save(source.state_dict(), tmp_path / 'a.pth')
    assert torch.equal(
        pretrained(tmp_path / 'a.pth', None).stem.conv.weight, source.stem.conv.weight
    )


def test_a_detectors_checkpoint_has_to_fit_with_its_neck(tmp_path):
    source = ArchNet('ResNet-18', out_strides=STRIDES, neck=NECK)
    state = {f'backbone.{key}': tensor for key, tensor in source.state_dict().items()}
    torch.save({'state_dict': state}, tmp_path / 'a.pth')
    net = pretrained(tmp_path / 'a.pth', neck=NECK)
    assert all(map(torch.equal, net.state_dict().values(), source.state_dict().values()))
    with pytest.raises(ValueError, match=r'not in the model: backbone\.neck\.convs\.0\.weight'):
        pretrained(tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=r'of another shape: backbone\.neck\.convs\.0\.weight'):
        pretrained(tmp_path / 'a.pth', neck={**NECK, 'out_channels': 7})


def test_a_misspelled_init_cfg_is_refused():
    for changes, message in (
        (dict(prefx='backbone.'), 'init_cfg: unknown key prefx; allowed are type, checkpoint'),
        (dict(prefix=3), 'init_cfg: prefix=3 must be a string'),
        (dict(checkpoint=None), 'init_cfg: checkpoint=None must be a string'),
    ):
        with pytest.raises(ValueError, match=message):
            ArchNet('ResNet-18', init_cfg=dict(type='Pretrained', checkpoint='a.pth') | changes)
        with pytest.raises(ValueError, match='init_cfg: missing key checkpoint'):
            ArchNet('ResNet-18', init_cfg=[dict(type='Pretrained')])


def test_a_checkpoint_without_weights_is_refused(tmp_path):
    for state, message in (
        ({}, 'the keys there begin with nothing'),
        ([1], 'holds no weights by their names'),
        ({0: torch.ones(1)}, 'holds no weights by their names'),
        ({'backbone.stem.conv.weight': 3}, 'backbone.stem.conv.weight is a int, no weights'),
    ):
        torch.save({'state_dict': state}, tmp_path / 'a.pth')
        with pytest.raises(ValueError, match=rf'init_cfg: .*a\.pth.*{message}'):
            pretrained(tmp_path / 'a.pth')


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / 'a.pth').write_bytes(b'PK\x03\x04 truncated')
    with pytest.raises(ValueError, match=r'a\.pth is not a checkpoint'):
        pretrained(tmp_path / 'a.pth')
    with pytest.raises(FileNotFoundError, match=r'b\.pth'):
        pretrained(tmp_path / 'b.pth')
