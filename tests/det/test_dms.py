"""Differentiable model scaling of detectors: groups, pruning, and the configs."""

import copy
import random
from pathlib import Path

import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from mmscale.apis.networks import build_module
from mmscale.apis.pruned_files import export_search
from mmscale.apis.pruning import prune
from mmscale.cost import count_module
from mmscale.models import DifferentiableTopK, SuperNet
from mmscale.models.dms import Masks, channel_groups, static_model
from mmscale.models.dms.cost import MaskedCost
from mmscale.registry import MODELS

CONFIGS = Path(__file__).parents[2] / 'configs' / 'det'
IMAGES = [torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))]
# Configs of searches, and what is expected: width groups, their elements, blocks that can go.
SEARCHES = {
    'dms-retinanet_r50_fpn_8xb2-3e_coco.py': (47, 14_016, [2, 3, 5, 2]),
    'dms-rtmdet_s-8gf_8xb32-30e_coco.py': (57, 9_504, [1, 2, 2]),
}
# ArchNets with a pyramid of their own, and with the model's. A pyramid and the head of RetinaNet
# have 10 groups of 256 channels; S0 has 36, two of them not computed.
DETECTORS = {
    **SEARCHES,
    'retinanet_scalenet-s0_fpn_1x_coco.py': (46, 9_196 + 10 * 256, [3, 1, 1, 2]),
    'neck outside': (46, 9_196 + 10 * 256, [3, 1, 1, 2]),
    'rtmdet_scalenet-s0_8xb32-300e_coco.py': (65, 11_764, [3, 1, 1, 2]),
}


def build(name):
    """The detector of a config, with random weights."""
    register_all_modules(init_default_scope=False)
    is_outside = name == 'neck outside'
    if is_outside:
        name = 'retinanet_scalenet-s0_fpn_1x_coco.py'
    config = Config.fromfile(CONFIGS / name).model
    config = config.get('model', config)
    config.backbone.init_cfg = None
    if is_outside:
        config.neck = dict(config.backbone.pop('neck'), in_channels=[40, 96, 320])
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(config)


def randomise(model):
    """Gives a model numbers that tell its channels apart."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            for tensor in (module.weight, module.running_var):
                tensor.data.uniform_(0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                tensor.data.normal_(0, 0.3)
        elif isinstance(module, nn.Conv2d):
            # The heads start so small that nothing could be told apart.
            nn.init.kaiming_normal_(module.weight)


@pytest.fixture(scope='module', params=DETECTORS)
def detector(request):
    """Detector in eval mode with random statistics, its groups, and what is expected of them."""
    model = build(request.param).eval()
    randomise(model)
    return model, channel_groups(model, IMAGES), DETECTORS[request.param]


def test_groups(detector):
    model, groups, expected = detector
    assert (len(groups), groups.elements, [depth.size for depth in groups.depths]) == expected
    # Frozen stages hide nothing: they are frozen again with every change of mode.
    model.backbone.frozen_stages = 1
    model.train()
    assert not all(parameter.requires_grad for parameter in model.parameters())
    assert str(channel_groups(model, IMAGES)) == str(groups)
    model.backbone.frozen_stages = -1
    model.eval().requires_grad_(True)


def test_half_of_every_width_and_depth(detector):
    """Outputs are those under masks, cost is the predicted one, and it trains."""
    model, groups, _ = detector
    draw = random.Random(0)
    keep = {
        group.name: sorted(draw.sample(range(group.size), group.size // 2)) for group in groups.all
    }
    cost = MaskedCost(model, groups, IMAGES)
    assert cost.full == count_module(model, inputs=IMAGES, memory=False).cost
    small, counted = prune(model, IMAGES, keep)
    counts = [len(keep[group.name]) for group in groups.widths]
    counts += [i in keep[depth.name] for depth in groups.depths for i in range(depth.size)]
    assert cost.count(counts) == counted.cost
    assert counted.flops < 0.4 * cost.full.flops

    gates = {}
    for group in groups.all:
        gate = gates[group.key] = DifferentiableTopK(group.size, minimum=0)
        gate.hard_mask.zero_()
        gate.hard_mask[keep[group.name]] = 1
        gate.hard.fill_(True)
    masks = Masks(model, groups, nn.ModuleDict(gates))
    with torch.no_grad():
        masked, found = (tree_leaves(net(*IMAGES)) for net in (model, small))
    masks.remove()
    with torch.no_grad():
        whole = tree_leaves(model(*IMAGES))
    assert len(found) in (6, 10)  # scores and boxes of three or five levels
    for one, other, before in zip(found, masked, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * before.abs().max().item())
        assert (other - before).abs().max() > 0.1 * before.abs().max()
    sum(output.sum() for output in tree_leaves(small.train()(*IMAGES))).backward()
    # After its last feature map an ArchNet is frozen.
    assert all(p.grad is not None for p in small.parameters() if p.requires_grad)


@pytest.mark.parametrize('name', SEARCHES)
def test_a_step_of_the_search(name):
    """The config builds within reach of its target; one step moves the structure."""
    config = Config.fromfile(CONFIGS / name).model
    config.model.backbone.init_cfg = None
    if not isinstance(config.target, dict):
        config.input_shape = (3, 128, 128)  # Of a share the size does not matter.
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(config).train()
        assert 0.4 < model.goal / model.cost.full.flops < 0.6
        data = demo_mm_inputs(2, [(3, 128, 128)] * 2, num_items=[2, 1], num_classes=80)
        model.set_budget(model.goal)
        optimizer = torch.optim.SGD(model.model.parameters(), lr=1e-4)
        losses = model.train_step(data, OptimWrapper(optimizer))
    assert losses['resource_loss'] > 0 and losses['loss'].isfinite()
    model.step_structure()
    learned = [gate for gate in model.gates.values() if gate.importance.any()]
    assert len(learned) > 0.9 * len(model.gates)
    assert any(gate.pruning_ratio > 0 for gate in learned)


def test_what_a_search_is_compared_with():
    whole, uniform = (
        count_module(
            build(f'retinanet_r18-{width}_fpn_digits.py'), (1, 96, 96), memory=False
        ).flops
        for width in ('w16', 'w11')
    )
    search = Config.fromfile(CONFIGS / 'dms-retinanet_r18-w16_fpn_digits.py').model
    assert uniform == pytest.approx(search.target * whole, rel=0.01)


def test_a_super_net_is_that_of_its_largest_subnet():
    config = Config.fromfile(CONFIGS / 'retinanet_supernet_fpn_digits.py').model.detector
    config.backbone.init_cfg = None
    images = [image[:, :1] for image in IMAGES]
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(config).eval()
        groups = channel_groups(model, images)
        small, cost = prune(model, images, 0.5)
        largest = static_model(copy.deepcopy(model))
    assert str(groups) == str(channel_groups(largest, images))
    assert 'backbone.neck.lateral_convs.0.conv' in groups.by_name
    assert isinstance(model.backbone, SuperNet)
    counts = [round(group.size / 2) for group in groups.widths]
    counts += [1] * sum(depth.size for depth in groups.depths)
    assert MaskedCost(largest, groups, images).count(counts) == cost.cost
    assert small.backbone.neck.fpn_convs[0].conv.weight.shape[:2] == (16, 16)


def test_what_a_search_around_an_arch_net_found_is_trained(tmp_path):
    """It gives what the hard-masked one gives, trains from there and resumes, all unaided."""
    config = Config.fromfile(CONFIGS / 'dms-retinanet_digits-s2_fpn_digits.py')
    # These weights are of the whole network, and are not asked for again.
    start = dict(type='Pretrained', checkpoint='gone.pth', prefix='backbone.')
    config.model.model.backbone.init_cfg = start
    search = build_module(config.model, 'mmdet').eval()
    torch.manual_seed(0)
    randomise(search)
    for number, gate in enumerate(search.gates.values()):
        gate.importance.copy_(torch.rand(gate.n))
        gate.pruning_ratio.data.fill_(0.1 + 0.6 * (number % 2))
    report = export_search(config, search.state_dict(), tmp_path / 'out').to_json()
    out = (tmp_path / 'out').rename(tmp_path / 'moved')
    assert {path.name for path in out.iterdir()} == {'pruned.json', 'weights.pth', 'retrain.py'}
    shrunk = [name for name, (kept, size) in report['kept'].items() if kept < 0.7 * size]
    for part in ('backbone.stages', 'backbone.neck', 'bbox_head'):
        assert any(name.startswith(part) for name in shrunk)

    found = Config.fromfile(out / 'retrain.py')
    small = build_module(found.model, 'mmdet').eval()
    small.load_state_dict(torch.load(found.load_from, weights_only=True)['state_dict'])
    images = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        for one, other in zip(
            tree_leaves(small(images)), tree_leaves(search(images)), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    counted = count_module(small, (1, 96, 96), memory=False)
    assert counted.flops == report['after']['flops'] == search.current_cost().flops
    assert counted.params == report['after']['params']

    found.train_cfg = dict(by_epoch=False, max_iters=1)
    found.default_hooks.checkpoint.interval = 1
    for part in ('val', 'test'):
        for setting in ('dataloader', 'cfg', 'evaluator'):
            found[f'{part}_{setting}'] = None
    found.train_dataloader.dataset.dataset.update(num_images=4, data_root=str(tmp_path / 'data'))
    found.train_dataloader.batch_size = found.train_dataloader.sampler.batch_size = 2
    trained = []
    for number in range(2):
        found.experiment_name = f'{tmp_path}_{number}'
        found.train_cfg.max_iters = number + 1
        if number:
            found.update(resume=True, load_from=None)  # as tools/train.py --resume does
        runner = Runner.from_cfg(found)
        runner.train()
        trained.append(copy.deepcopy(runner.model.state_dict()))
        assert runner.iter == number + 1
    assert {key: value.shape for key, value in trained[0].items()} == {
        key: value.shape for key, value in small.state_dict().items()
    }
    head = 'bbox_head.retina_cls.weight'
    assert not torch.equal(trained[0][head], small.state_dict()[head])
    assert not torch.equal(trained[0][head], trained[1][head])
