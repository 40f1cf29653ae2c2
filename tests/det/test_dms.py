"""Differentiable model scaling of detectors: groups, pruning, and the configs."""

import random
from pathlib import Path

import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from mmscale.apis.prune import prune
from mmscale.cost import count_module
from mmscale.models import DifferentiableTopK
from mmscale.models.dms import Masks, channel_groups
from mmscale.models.dms.cost import MaskedCost
from mmscale.registry import MODELS

CONFIGS = Path(__file__).parents[2] / 'configs' / 'det'
IMAGES = [torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))]
# Config, and what is expected: width groups, their elements, blocks of network stages.
DETECTORS = {
    'dms_retinanet_r50_fpn_1x_coco.py': (47, 14_016, [2, 3, 5, 2]),
    'dms_rtmdet_s_8xb32-30e_coco.py': (49, 8_544, [1, 2, 2]),
}


@pytest.fixture(scope='module', params=DETECTORS)
def detector(request):
    """Detector in eval mode with random statistics, its groups, and what is expected of them."""
    register_all_modules(init_default_scope=False)
    config = Config.fromfile(CONFIGS / request.param).model.model
    config.backbone.init_cfg = None
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(config)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            for tensor in (module.weight, module.running_var):
                tensor.data.uniform_(0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                tensor.data.normal_(0, 0.3)
        elif isinstance(module, nn.Conv2d):
            # The heads start so small that nothing could be told apart.
            nn.init.kaiming_normal_(module.weight)
    model.eval()
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
    assert all(parameter.grad is not None for parameter in small.parameters())


@pytest.mark.parametrize('name', DETECTORS)
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
