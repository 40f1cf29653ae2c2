"""ArchNet: what an Arch says is what is built, and mmpretrain's contract of a backbone."""

import math
from dataclasses import replace
from itertools import pairwise

import mmpretrain.models as mmpretrain_models
import numpy as np
import pytest
import torch
from mmcv.cnn import HSigmoid
from mmengine.registry import init_default_scope
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmscale.arch import (
    Arch,
    Block,
    Head,
    Scaling,
    SqueezeExcite,
    Stem,
    apply_scaling,
    get_arch,
    preset_names,
    scaling_rule,
)
from mmscale.cost import Cost, CostTable, count
from mmscale.models import ArchNet, SuperNet


def hooked_count(net, arch):
    """Counts what runs, on the meta device: another way to the numbers than mmscale.cost.

    The network cannot be used afterwards.
    """
    flops = acts = 0

    def add(module, _, output):
        nonlocal flops, acts
        # One multiply-add per output element and weight of one output channel.
        flops += output.numel() * module.weight[0].numel()
        acts += output.numel()

    parameters = sum(p.numel() for p in net.parameters())
    for module in list(net.modules()):
        for name, child in module.named_children():
            # They keep shapes, and are slow on the meta device.
            if isinstance(child, _BatchNorm | nn.Hardswish | HSigmoid):
                setattr(module, name, nn.Identity())
    channels = arch.feature_channels
    widths = [channels, arch.head.hidden_channels, arch.head.num_classes]
    widths = [width for width in widths if width]
    linears = [nn.Linear(*pair, device='meta') for pair in pairwise(widths)]
    classifier = nn.Sequential(*linears)
    for module in (*net.modules(), *linears):
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(add)
    shape = (1, arch.stem.in_channels, arch.resolution, arch.resolution)
    (features,) = net.eval()(torch.empty(shape, device='meta'))
    assert features.shape[1] == channels
    classifier(features.mean(dim=(2, 3)))
    return Cost(flops, parameters + sum(p.numel() for p in classifier.parameters()), acts)


def on_meta(arch, **kwargs):
    with torch.device('meta'):
        return ArchNet(arch, **kwargs)


def test_table_is_hooked_count_of_20_subnets_of_the_papers_space(paper_space):
    with torch.device('meta'):
        super_net = SuperNet(paper_space, kernels='separate')
    table = CostTable(paper_space)
    rng = np.random.default_rng(0)
    resolutions, seen = set(), set()
    for number in range(20):
        scalings = paper_space.scalings(number % 4)
        scaling = scalings[rng.integers(len(scalings))]
        if number % 10 == 0:  # sizes that are odd at every stride
            scaling = replace(scaling, resolution=(211 + number) / 224)
        genes = paper_space.sample(rng, 1)
        arch = paper_space.decode(genes[0], scaling)
        subnet = super_net.extract(arch, ('left', 'right')[number % 2])
        if number % 8 == 0:
            shapes = {key: tensor.shape for key, tensor in subnet.state_dict().items()}
            built = on_meta(arch).state_dict()
            assert shapes == {key: tensor.shape for key, tensor in built.items()}
        counted = hooked_count(subnet, arch)
        assert counted == count(arch)
        assert counted == Cost(*(int(column[0]) for column in table.costs(genes, scaling)))
        resolutions.add(arch.resolution)
        seen.add(arch)
    assert len(seen) > 18
    assert {211, 221} < resolutions


@pytest.mark.parametrize('name', preset_names())
def test_published_networks_are_built_as_counted(name):
    arch = get_arch(name)
    assert hooked_count(on_meta(name), arch) == count(arch)


@pytest.mark.parametrize(
    ('name', 'rule', 'factor'),
    [
        ('RegNetX-8.0GF', 'w_gfix', 2),  # a dense network stage beside groups of 120
        ('RegNetY-400MF', 'g', 8),
        ('RegNetZ-4GF', 'w', 8),  # widths that are no multiples of 8
        ('ResNet-50', 'dWr', 4),
        ('ResNet-18', 'w', 4),  # the first shortcut projects
        ('ResNeXt-50', 'dwr', 3),
        ('EfficientNet-B1', 'dw', 0.5),
        ('MobileNetV3-Large', 'dWr', 3),
        ('scalenet-s1', 'dWr_a0.5', 2),
    ],
)
def test_scaled_networks_are_built_as_counted(name, rule, factor):
    arch = apply_scaling(get_arch(name), scaling_rule(rule).scaling(factor), 'pycls')
    assert hooked_count(on_meta(arch), arch) == count(arch)


@pytest.mark.parametrize(
    'name',
    ['EfficientNet-Lite0', 'MobileNetV3-Small', 'RegNetY-200MF', 'RegNetZ-500MF', 'ResNet-18'],
)
def test_families_compute(name):
    arch = get_arch(name)
    net = ArchNet(arch, out_indices=tuple(range(len(arch.stages) + 1))).eval()
    with torch.no_grad():
        outputs = net(torch.rand(2, 3, 70, 70))
    assert [output.shape[1] for output in outputs] == [*arch.widths, arch.feature_channels]
    sides = [math.ceil(70 / stride) for stride in arch.strides]
    assert [output.shape[-1] for output in outputs[:-1]] == sides
    assert all(output.isfinite().all() and output.std() > 0 for output in outputs)


SE = SqueezeExcite(5, act='silu', gate='sigmoid')


def block(kind, kernel, stride, in_channels, hidden, out, groups=1, **kwargs):
    return Block(kind, kernel, stride, in_channels, hidden, out, groups, **kwargs)


FAMILIES = {
    'efficientnet': Arch(
        61,
        Stem(8, act='silu', padding='same', eps=1e-3),
        (
            (block('dsconv', 3, 1, 8, 8, 6, 8, se=SE, act='silu', padding='same', eps=1e-3),),
            (
                block('mbconv', 5, 2, 6, 36, 10, 36, se=SE, act='silu', padding='same', eps=1e-3),
                block('mbconv', 3, 1, 10, 60, 10, 60, act='silu', residual='identity'),
            ),
            (block('fused_mbconv', 3, 2, 10, 24, 12, act='silu', padding='same'),),
        ),
        Head(32, num_classes=7, act='silu', eps=1e-3),
    ),
    'regnet_y': Arch(
        57,
        Stem(8, act='relu'),
        (
            (block('bottleneck', 3, 2, 8, 24, 24, 3, se=SE, act='relu', residual='projection'),),
            (
                block('bottleneck', 3, 2, 24, 40, 40, 5, act='relu', residual='projection'),
                block('bottleneck', 3, 1, 40, 40, 40, 5, act='relu', residual='identity'),
            ),
        ),
        Head(num_classes=7),
    ),
    'resnet': Arch(
        75,
        Stem(6, kernel=7, act='relu', max_pool=True),
        (
            (block('basic', 3, 1, 6, 6, 6, act='relu', residual='identity'),),
            (block('basic', 3, 2, 6, 12, 12, act='relu', residual='projection'),),
            (block('bottleneck', 3, 3, 12, 5, 20, act='relu', residual='projection'),),
        ),
        Head(num_classes=7),
    ),
    'pruned': Arch(
        40,
        Stem(6, in_channels=1, act='relu6', stride=1),
        (
            (block('mbconv', 3, 1, 6, 12, 9, 3, grouped_channels=21, se=SE, act='relu6'),),
            (block('bottleneck', 1, 2, 9, 8, 11, 4, grouped_channels=4, residual='projection'),),
        ),
        Head(15, num_classes=7),
    ),
}


@pytest.mark.parametrize('family', FAMILIES)
def test_every_kind_of_block_is_built_as_counted(family):
    arch = FAMILIES[family]
    assert hooked_count(on_meta(arch), arch) == count(arch)


@pytest.mark.parametrize('family', FAMILIES)
def test_feature_maps_have_the_archs_widths_and_strides(family):
    arch = FAMILIES[family]
    stages = len(arch.stages)
    net = ArchNet(arch, out_indices=range(stages + 1)).eval()
    outputs = net(torch.rand(2, arch.stem.in_channels, arch.resolution, arch.resolution))
    for output, width, stride in zip(outputs, arch.widths, arch.strides, strict=False):
        side = -(-arch.resolution // stride)
        assert output.shape == (2, width, side, side)
    assert outputs[-1].shape[1:] == (arch.feature_channels, *outputs[-2].shape[2:])
    if not arch.head.channels:
        assert outputs[-1] is outputs[-2]
    assert all(torch.isfinite(output).all() for output in outputs)


def resnet(kind, depths, expand):
    stages, channels = [], 64
    for i, depth in enumerate(depths):
        hidden = 64 * 2**i
        blocks = []
        for j in range(depth):
            stride = 2 if i and not j else 1
            same = stride == 1 and channels == hidden * expand
            residual = 'identity' if same else 'projection'
            out = hidden * expand
            blocks.append(
                block(kind, 3, stride, channels, hidden, out, act='relu', residual=residual)
            )
            channels = out
        stages.append(tuple(blocks))
    stem = Stem(64, kernel=7, act='relu', max_pool=True)
    return Arch(75, stem, tuple(stages), Head())


def regnet_x(widths, depths, group_width):
    stages, channels = [], 32
    for width, depth in zip(widths, depths, strict=True):
        blocks = []
        for j in range(depth):
            residual = 'identity' if j else 'projection'
            blocks.append(
                Block('bottleneck', 3, 1 if j else 2, channels, width, width, width // group_width,
                      act='relu', residual=residual)
            )  # fmt: skip
            channels = width
        stages.append(tuple(blocks))
    return Arch(75, Stem(32, act='relu'), tuple(stages), Head())


def efficientnet_b0():
    stages, channels = [], 32
    rows = zip((16, 24, 40, 80, 112, 192, 320), (1, 2, 2, 3, 3, 4, 1), (3, 3, 5, 3, 5, 5, 3),
               (1, 2, 2, 2, 1, 2, 1), strict=True)  # fmt: skip
    for width, depth, kernel, stride in rows:
        blocks = []
        for j in range(depth):
            hidden = channels if width == 16 else channels * 6
            step = 1 if j else stride
            blocks.append(
                block(
                    'dsconv' if width == 16 else 'mbconv',
                    kernel, step, channels, hidden, width, hidden,
                    se=SqueezeExcite(channels // 4, act='silu', gate='sigmoid'),
                    act='silu', padding='same', eps=1e-3,
                    residual='identity' if step == 1 and channels == width else 'none',
                )
            )  # fmt: skip
            channels = width
        stages.append(tuple(blocks))
    stem = Stem(32, act='silu', padding='same', eps=1e-3)
    return Arch(75, stem, tuple(stages), Head(1280, act='silu', eps=1e-3))


@pytest.mark.parametrize(
    ('arch', 'theirs'),
    [
        (resnet('basic', (2, 2, 2, 2), 1), dict(type='ResNet', depth=18)),
        (resnet('bottleneck', (3, 4, 6, 3), 4), dict(type='ResNet', depth=50)),
        (
            regnet_x((32, 64, 160, 384), (1, 2, 7, 12), 16),
            dict(type='RegNet', arch='regnetx_400mf', out_indices=(3,)),
        ),
        (efficientnet_b0(), dict(type='EfficientNet', arch='b0')),
    ],
    ids=['ResNet-18', 'ResNet-50', 'RegNetX-400MF', 'EfficientNet-B0'],
)
def test_outputs_equal_mmpretrains_network_of_the_same_weights(arch, theirs, randomise):
    init_default_scope('mmpretrain')
    reference = randomise(mmpretrain_models.build_backbone(theirs)).double()
    net = ArchNet(arch).double()
    reference.eval()  # which returns None in mmpretrain
    net.eval()
    # Both register their layers in the order in which they run.
    weights = zip(net.state_dict(), reference.state_dict().values(), strict=True)
    net.load_state_dict(dict(weights))
    images = torch.rand(2, 3, 75, 75, dtype=torch.float64)
    with torch.no_grad():
        (ours,), expected = net(images), reference(images)[-1]
    assert ours.shape == expected.shape
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
    assert expected.std() > 1e-3


# ------------------------------------------------------------------ mmpretrain's contract

ARCH = FAMILIES['efficientnet']
IMAGES = torch.rand(2, 3, 61, 61)


def test_out_indices_select_feature_maps():
    torch.manual_seed(0)
    whole = ArchNet(ARCH, out_indices=(0, 1, 2, 3)).eval()
    everything = whole(IMAGES)
    for out_indices in (0, (1,), (0, 2), (0, 1, 2, 3), -1, (-4, -1)):
        net = ArchNet(ARCH, out_indices=out_indices).eval()
        net.load_state_dict(whole.state_dict())
        indices = (out_indices,) if isinstance(out_indices, int) else out_indices
        outputs = net(IMAGES)
        assert len(outputs) == len(indices)
        for index, output in zip(indices, outputs, strict=True):
            assert torch.equal(output, everything[index])


def test_bad_settings_are_refused(refuses):
    refuses(
        lambda **bad: ArchNet(**{'arch': ARCH, **bad}),
        out_indices=[4, (0, -5), ('1',)],
        frozen_stages=[5, -2],
        drop_path_rate=[1.0],
        arch=['scalenet-s9', None],
    )
    for kwargs, message in (
        (dict(out_indices=(1, -3)), r'out_indices=\(1, -3\): the output of index 1 comes twice'),
        (dict(scaling=dict(widht=2)), r'scaling: unknown key widht; allowed are depth, width'),
        (dict(scaling=dict(rule='paper')), r"rule='paper' is not one of search, retraining"),
    ):
        with pytest.raises(ValueError, match=message):
            ArchNet(ARCH, **kwargs)


@pytest.mark.parametrize('frozen_stages', range(-1, 5))
def test_frozen_stages_neither_learn_nor_change_their_statistics(frozen_stages):
    net = ArchNet(ARCH, frozen_stages=frozen_stages, out_indices=(0, 1, 2, 3))
    parts = [net.stem, *net.stages, net.conv_head]

    def check():
        for position, part in enumerate(parts):
            frozen = position <= frozen_stages
            assert all(p.requires_grad != frozen for p in part.parameters())
            assert all(module.training != frozen for module in part.modules())

    check()  # as built: an optimizer or DDP built now must know
    net.init_weights()
    check()
    assert net.eval().train() is net
    check()
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    outputs = net(IMAGES)
    if frozen_stages < 4:
        sum(output.sum() for output in outputs).backward()
    for position, (name, part) in enumerate(
        zip(('stem', 'stages.0', 'stages.1', 'stages.2', 'conv_head'), parts, strict=True)
    ):
        frozen = position <= frozen_stages
        assert all((p.grad is None) == frozen for p in part.parameters())
        key = next(k for k in before if k.startswith(name) and k.endswith('running_mean'))
        assert torch.equal(net.state_dict()[key], before[key]) == frozen


def test_norm_eval_keeps_statistics_while_training():
    net = ArchNet(ARCH, norm_eval=True).train()
    assert all(not m.training for m in net.modules() if isinstance(m, _BatchNorm))
    assert all(p.requires_grad for p in net.parameters())
    before = [buffer.clone() for buffer in net.buffers()]
    net(IMAGES)[0].sum().backward()
    assert all(map(torch.equal, before, net.buffers()))


def test_drop_path_rises_linearly_and_only_works_while_training():
    net = ArchNet('scalenet-s0', drop_path_rate=0.26)
    rates = [b.drop_path.drop_prob if b.drop_path else 0 for s in net.stages for b in s]
    np.testing.assert_allclose(rates, np.linspace(0, 0.26, 14))
    net = ArchNet(FAMILIES['regnet_y'], drop_path_rate=0.5, norm_eval=True)
    images = torch.rand(8, 3, 33, 33)
    torch.manual_seed(0)
    outputs = [net.train()(images)[0] for _ in range(2)]
    assert not torch.equal(*outputs)
    outputs = [net.eval()(images)[0] for _ in range(2)]
    assert torch.equal(*outputs)


def test_default_initialisation_and_pretrained_weights(tmp_path):
    source = ArchNet(ARCH)
    source.init_weights()
    assert all((m.weight == 1).all() for m in source.modules() if isinstance(m, _BatchNorm))
    state = {f'backbone.{key}': tensor for key, tensor in source.state_dict().items()}
    torch.save({'state_dict': {**state, 'head.fc.weight': torch.zeros(1)}}, tmp_path / 'a.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'), prefix='backbone.')
    net = ArchNet(ARCH, init_cfg=init_cfg, frozen_stages=1)
    net.init_weights()
    for key, tensor in source.state_dict().items():
        assert torch.equal(net.state_dict()[key], tensor), key
    assert not any(p.requires_grad for p in net.stem.parameters())


def test_arch_is_a_preset_a_file_a_mapping_or_an_arch_with_scaling_on_top(tmp_path):
    expected = get_arch('scalenet-s0-search')
    expected.save(tmp_path / 'arch.json')
    sources = ('ScaleNet-S0-search', str(tmp_path / 'arch.json'), expected.to_json(), expected)
    for source in sources:
        with torch.device('meta'):
            assert ArchNet(source).arch == expected
            net = ArchNet(source, scaling=dict(depth=1.04, width=1.04, resolution=1.14))
        assert net.arch == get_arch('scalenet-s1')
        assert net.resolution == 256
    wider = on_meta(expected, scaling=dict(width=1.5, rule='search'))
    assert wider.arch == apply_scaling(expected, Scaling(width=1.5), 'search')


def test_builds_in_an_image_classifier_through_mmpretrains_registry():
    init_default_scope('mmpretrain')
    arch = FAMILIES['resnet']
    model = mmpretrain_models.build_classifier(
        dict(
            type='ImageClassifier',
            backbone=dict(type='mmscale.ArchNet', arch=arch.to_json(), out_indices=(2,)),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=7, in_channels=20, topk=(1,)),
        )
    )
    assert type(model.backbone) is ArchNet
    assert model.backbone.arch == arch
    assert model(torch.rand(2, 3, 75, 75)).shape == (2, 7)
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters == count(arch).params


def test_other_norm_layers():
    net = ArchNet(FAMILIES['resnet'], norm_cfg=dict(type='GN', num_groups=1))
    assert not any(isinstance(m, _BatchNorm) for m in net.modules())
    assert all(m.eps == 1e-5 for m in net.modules() if isinstance(m, nn.GroupNorm))
    net.init_weights()
    net(torch.rand(1, 3, 40, 40))


def test_gradient_checkpointing_changes_no_bit(randomise):
    """Gradients, BN statistics and what is dropped at random are the same; less is kept."""
    found = []
    for with_cp in (False, True):
        net = ArchNet('scalenet-s0', drop_path_rate=0.5, with_cp=with_cp, frozen_stages=1)
        randomise(net, weights=True)
        kept = 0

        def keep(tensor):
            nonlocal kept
            kept += tensor.numel()
            return tensor

        torch.manual_seed(3)
        images = torch.rand(2, 3, 64, 64)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = net.train()(images)[0]
        seen = kept
        out.square().mean().backward()
        gradients = {key: p.grad for key, p in net.named_parameters() if p.requires_grad}
        found.append((seen, out, gradients, net.state_dict()))
    (most, *plain), (least, *anew) = found
    assert least < most / 3
    assert torch.equal(plain[0], anew[0])
    for one, other in zip(plain[1:], anew[1:], strict=True):
        assert one.keys() == other.keys() and len(one) > 50
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert int(anew[2]['stages.3.0.spatial.bn.num_batches_tracked']) == 1


@pytest.mark.filterwarnings('ignore:Warning. Profiler clears')
def test_silu_works_in_place_where_its_input_is_not_copied_for_it():
    block = Block('mbconv', 3, 1, 4, 8, 4, 8, act='silu')
    net = ArchNet(Arch(8, Stem(4, act='silu'), ((block,),), Head(6, act='silu')))

    def copies():
        with torch.profiler.profile() as profile, torch.set_grad_enabled(net.training):
            net(torch.ones(2, 3, 8, 8))
        return sum(event.key == 'aten::clone' for event in profile.key_averages())

    activations = [module for module in net.modules() if isinstance(module, nn.SiLU)]
    for mode in (True, False, True):
        net.train(mode)
        assert {module.inplace for module in activations} == {not mode}
        assert copies() == 0
    for module in activations:
        module.inplace = True
    assert copies() > 0
