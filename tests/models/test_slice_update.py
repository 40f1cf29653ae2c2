"""SliceUpdate: an optimizer step leaves every element that was not used bit-equal."""

import pytest
import torch
from mmengine.optim import OptimWrapper

from mmscale.arch import HierarchicalSampler
from mmscale.models import SliceUpdate
from mmscale.models.backbones import index_of

OPTIMIZERS = {
    'SGD': dict(lr=0.1, momentum=0.9, weight_decay=0.05),
    'nesterov': dict(lr=0.1, momentum=0.9, weight_decay=0.05, nesterov=True, foreach=False),
    'AdamW': dict(lr=0.01, weight_decay=0.1, amsgrad=True),
}


def make_optimizer(name, parameters):
    cls = torch.optim.AdamW if name == 'AdamW' else torch.optim.SGD
    return cls(parameters, **OPTIMIZERS[name])


def element_state(optimizer, parameter):
    """What an optimizer keeps for every element of a parameter."""
    return {
        key: value
        for key, value in optimizer.state.get(parameter, {}).items()
        if torch.is_tensor(value) and value.shape == parameter.shape
    }


def snapshot(model, optimizer):
    return {
        name: (
            parameter.detach().clone(),
            {key: value.clone() for key, value in element_state(optimizer, parameter).items()},
        )
        for name, parameter in model.backbone.named_parameters()
    }


def masks(model, regions):
    found = {}
    for name, parameter in model.backbone.named_parameters():
        mask = torch.zeros(parameter.shape, dtype=torch.bool)
        for region in regions.get(name, ()):
            mask[index_of(region)] = True
        found[name] = mask
    return found


@pytest.mark.parametrize('accumulative_counts', [1, 2])
@pytest.mark.parametrize(
    ('optimizer_name', 'kernels'),
    [('SGD', 'shared'), ('AdamW', 'separate'), ('nesterov', 'shared')],
)
def test_20_steps_change_only_what_they_use(
    make_classifier, make_batch, tiny_space, optimizer_name, kernels, accumulative_counts
):
    model = make_classifier(kernels)
    optimizer = make_optimizer(optimizer_name, model.parameters())
    wrapper = OptimWrapper(
        optimizer, clip_grad=dict(max_norm=1.0), accumulative_counts=accumulative_counts
    )
    SliceUpdate(optimizer, model.backbone)
    sampler = HierarchicalSampler(tiny_space, 0, 'inverse_budget')
    start = before = snapshot(model, optimizer)
    ever = masks(model, {})
    used = {}
    steps = changed = kept_after_use = 0
    model.train()
    for iteration in range(20 * accumulative_counts):
        draw = sampler.draw(iteration)
        model.set_draw(draw, iteration)
        model.backward_step(make_batch(draw, iteration), wrapper)
        for name, regions in model.backbone.used_regions.items():
            used.setdefault(name, set()).update(regions)
        model.update_step(wrapper)
        if (iteration + 1) % accumulative_counts:
            continue
        steps += 1
        after = snapshot(model, optimizer)
        for name, mask in masks(model, used).items():
            outside = ~mask
            assert torch.equal(after[name][0][outside], before[name][0][outside]), name
            for key, value in after[name][1].items():
                old = before[name][1].get(key, torch.zeros_like(value))
                assert torch.equal(value[outside], old[outside]), (name, key)
            changed += int((after[name][0][mask] != before[name][0][mask]).sum())
            kept_after_use += int((outside & ever[name]).sum())
            ever[name] |= mask
        before, used = after, {}
        assert not model.backbone.used_regions
    assert steps == 20
    # The test would be empty if all, or nothing, had been used.
    assert changed > 10_000
    assert kept_after_use > 10_000
    never = used_ever = moved = 0
    for name, mask in ever.items():
        never += int((~mask).sum())
        weights, state = before[name]
        assert torch.equal(weights[~mask], start[name][0][~mask])
        used_ever += int(mask.sum())
        moved += int((weights[mask] != start[name][0][mask]).sum())
        for value in state.values():
            assert not value[~mask].any()
    assert never > 100
    # Few elements get no gradient: biases at 0 that are not decayed, after a dead ReLU.
    assert moved > 0.98 * used_ever


def test_used_elements_take_the_optimizers_own_step(make_classifier, make_batch, tiny_space):
    """Inside the slice the step is that of the optimizer without SliceUpdate."""
    draw = HierarchicalSampler(tiny_space, 0).draw(0)
    results = []
    for restricted in (True, False):
        model = make_classifier()
        optimizer = make_optimizer('AdamW', model.parameters())
        wrapper = OptimWrapper(optimizer)
        update = SliceUpdate(optimizer, model.backbone)
        if not restricted:
            update.remove()
        for iteration in range(3):
            model.set_draw(draw, iteration)
            model.backward_step(make_batch(draw, iteration), wrapper)
            used = masks(model, model.backbone.used_regions)
            model.update_step(wrapper)
        results.append(snapshot(model, optimizer))
    restricted, free = results
    strayed = 0
    for name, mask in used.items():
        assert torch.equal(restricted[name][0][mask], free[name][0][mask])
        for key, value in restricted[name][1].items():
            assert torch.equal(value[mask], free[name][1][key][mask])
        strayed += int((restricted[name][0] != free[name][0]).sum())
    assert strayed > 100


def test_gradients_that_no_forward_pass_recorded_move_nothing(make_classifier):
    # zero_grad(set_to_none=False) leaves zero gradients, which weight decay would act on.
    model = make_classifier()
    optimizer = make_optimizer('SGD', model.parameters())
    SliceUpdate(optimizer, model.backbone)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = snapshot(model, optimizer)
    head = model.head.fc.weight.detach().clone()
    optimizer.step()
    for name, parameter in model.backbone.named_parameters():
        assert torch.equal(parameter, before[name][0])
    # Neck and head are no slices: they are the optimizer's.
    assert not torch.equal(model.head.fc.weight, head)
