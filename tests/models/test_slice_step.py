"""step_slices: an optimizer steps what was used, and leaves everything else bit-equal."""

import copy

import numpy as np
import pytest
import timm.optim
import torch
from mmengine.optim import OptimWrapper
from torch import nn
from whole_update import OPTIMIZERS, WholeUpdate, make_optimizer, masks, snapshot

from mmscale.arch import HierarchicalSampler
from mmscale.errors import UsageError
from mmscale.models import step_slices
from mmscale.models.backbones import WeightSlice, disjoint, index_of, shared_weights
from mmscale.models.backbones.slices import without
from mmscale.models.slice_step import check_steps_slices


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
        for name, parts in model.backbone.used_slices.items():
            used.setdefault(name, set()).update(parts)
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
        assert not model.backbone.used_slices
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


@pytest.mark.parametrize(
    ('mode', 'teacher', 'accumulative_counts', 'optimizer_name', 'kernels'),
    [
        ('single', 'scaling_stage', 1, 'SGD', 'separate'),
        ('single', 'scaling_stage', 1, 'AdamW', 'shared'),
        ('both_sides', 'scaling_stage', 1, 'nesterov', 'shared'),
        ('both_sides', 'scaling_stage', 1, 'AdamW', 'separate'),
        ('sandwich', 'scaling_stage', 1, 'SGD', 'shared'),
        ('sandwich', 'space', 1, 'nesterov', 'separate'),
        ('sandwich', 'space', 1, 'AdamW', 'shared'),
        ('both_sides', 'scaling_stage', 3, 'SGD', 'shared'),
        ('sandwich', 'scaling_stage', 3, 'AdamW', 'separate'),
        # It has state before its first step.
        ('both_sides', 'scaling_stage', 1, 'Adagrad', 'shared'),
    ],
)
def test_steps_are_those_of_whole_parameters_bit_by_bit(
    make_classifier, make_batch, tiny_space, mode, teacher, accumulative_counts, optimizer_name,
    kernels,
):  # fmt: skip
    sampler = HierarchicalSampler(tiny_space, 0, 'uniform')
    models, optimizers = [], []
    for _ in range(2):
        models.append(make_classifier(kernels, mode=mode, teacher=teacher).train())
        groups = [dict(params=[p]) for p in models[-1].parameters()]
        optimizers.append(make_optimizer(optimizer_name, groups))
    wrapper = OptimWrapper(optimizers[0], accumulative_counts=accumulative_counts)
    reference = WholeUpdate(models[1], optimizers[1])
    # Gradients of several iterations add up in another order, and training amplifies that.
    steps, tolerance = (6, 0) if accumulative_counts == 1 else (1, 1e-6)
    for iteration in range(steps * accumulative_counts):
        draw = sampler.draw(iteration)
        models[0].set_draw(draw, iteration)
        models[0].train_step(make_batch(draw, iteration), wrapper)
        batch = make_batch(draw, iteration)
        reference.backward(batch, draw, iteration, 1 / accumulative_counts)
        if (iteration + 1) % accumulative_counts == 0:
            reference.step()
    found, expected = (snapshot(*pair) for pair in zip(models, optimizers, strict=True))
    states = 0
    for name, (weights, state) in expected.items():
        if optimizer_name != 'AdamW' or not tolerance:  # of a gradient of 0 it takes the sign
            torch.testing.assert_close(found[name][0], weights, rtol=0, atol=tolerance)
        assert state.keys() == found[name][1].keys()
        for key, value in state.items():
            states += int(value.count_nonzero())
            torch.testing.assert_close(found[name][1][key], value, rtol=0, atol=tolerance)
    assert states > 1000
    for key, buffer in models[1].named_buffers():
        assert torch.equal(models[0].state_dict()[key], buffer)
    # What a checkpoint holds is of whole parameters, in the groups that the config made.
    one, other = (optimizer.state_dict() for optimizer in optimizers)
    assert one['param_groups'] == other['param_groups']
    for number, state in other['state'].items():
        for key, value in state.items():
            if torch.is_tensor(value) and value.ndim == 0:
                assert one['state'][number][key] == value
    assert set(one['state']) == set(other['state'])


def test_clipping_sees_every_used_element_once(make_classifier, make_batch, tiny_space):
    norms = []
    for whole in (False, True):
        model = make_classifier(mode='both_sides').train()
        draw = HierarchicalSampler(tiny_space, 0).draw(3)
        optimizer = make_optimizer('SGD', model.parameters())
        wrapper = OptimWrapper(optimizer)
        if whole:
            WholeUpdate(model, optimizer).backward(make_batch(draw, 0), draw, 0)
            norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        else:
            model.set_draw(draw, 0)
            model.backward_step(make_batch(draw, 0), wrapper)
            with step_slices(optimizer, model.backbone):
                held = [p for group in optimizer.param_groups for p in group['params']]
                norms.append(torch.nn.utils.clip_grad_norm_(held, 1.0))
    torch.testing.assert_close(*norms)


def test_a_gradient_scaler_scales_and_skips_slices(make_classifier, make_batch, tiny_space):
    """What AmpOptimWrapper does on a GPU, with a scaler of the CPU."""
    draw = HierarchicalSampler(tiny_space, 0).draw(3)
    weights = []
    for scaled in (False, True):
        model = make_classifier(mode='both_sides').train()
        optimizer = make_optimizer('SGD', model.parameters())
        scaler = torch.amp.GradScaler('cpu', init_scale=2.0**10, enabled=scaled)
        for iteration, is_finite in enumerate((True, False, True)):
            before = snapshot(model, optimizer)
            model.set_draw(draw, iteration)
            data = model.data_preprocessor(make_batch(draw, iteration), True)
            with model.backbone.slices():
                losses = model.subnet_losses(data['inputs'], data['data_samples'])
            loss = model.parse_losses(losses)[0]
            scaler.scale(loss if is_finite else loss * float('inf')).backward()
            with step_slices(optimizer, model.backbone):
                scaler.unscale_(optimizer)
                if is_finite or scaled:
                    scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
            model.backbone.forget_slices()
            moved = any(
                not torch.equal(p, before[name][0])
                for name, p in model.backbone.named_parameters()
            )
            assert moved == is_finite
        weights.append(snapshot(model, optimizer))
    for name, (expected, state) in weights[0].items():
        torch.testing.assert_close(weights[1][name][0], expected)
        for key, value in state.items():
            torch.testing.assert_close(weights[1][name][1][key], value)


def test_groups_of_equal_settings_are_stepped_as_one(make_classifier, make_batch, tiny_space):
    model = make_classifier().train()
    draw = HierarchicalSampler(tiny_space, 0).draw(0)
    groups = [
        dict(params=[p], weight_decay=0.0 if p.ndim == 1 else 0.1) for p in model.parameters()
    ]
    optimizer = make_optimizer('SGD', groups)
    own = optimizer.param_groups
    model.set_draw(draw, 0)
    model.backward_step(make_batch(draw, 0), OptimWrapper(optimizer))
    with step_slices(optimizer, model.backbone):
        held = optimizer.param_groups
        assert sorted(group['weight_decay'] for group in held) == [0.0, 0.1]
        leaves = {id(p) for group in held for p in group['params']}
        # What an optimizer counts in its groups comes back to all.
        held[0]['steps'] = 3
    assert optimizer.param_groups is own
    assert sum(group.get('steps') == 3 for group in own) > 10
    assert len(leaves) == sum(len(group['params']) for group in held)
    assert all(state in set(model.parameters()) for state in optimizer.state)


@pytest.mark.parametrize('optimizer_name', OPTIMIZERS)
def test_state_that_was_loaded_is_stepped(make_classifier, make_batch, tiny_space, optimizer_name):
    draw = HierarchicalSampler(tiny_space, 0).draw(0)
    model = make_classifier().train()
    optimizer = make_optimizer(optimizer_name, model.parameters())
    wrapper = OptimWrapper(optimizer)

    def step(seed):
        model.set_draw(draw, seed)
        model.train_step(make_batch(draw, seed), wrapper)

    step(0)
    kept = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    ends = []
    for _ in range(2):
        step(1)
        step(2)
        ends.append(snapshot(model, optimizer))
        model.load_state_dict(kept[0])
        optimizer.load_state_dict(copy.deepcopy(kept[1]))
    for name, (weights, state) in ends[0].items():
        assert torch.equal(ends[1][name][0], weights)
        assert all(torch.equal(ends[1][name][1][key], value) for key, value in state.items())


@pytest.mark.parametrize('mode', ['single', 'both_sides'])
def test_gradients_of_whole_weights_are_stepped_where_they_are_used(
    make_classifier, make_batch, tiny_space, mode
):
    """As of a penalty on all weights."""
    draw = HierarchicalSampler(tiny_space, 0).draw(3)
    models = [make_classifier(mode=mode).train() for _ in range(2)]
    optimizers = [make_optimizer('SGD', model.parameters()) for model in models]
    reference = WholeUpdate(models[1], optimizers[1])
    for iteration in range(3):
        batch = make_batch(draw, iteration)
        models[0].set_draw(draw, iteration)
        models[0].backward_step(batch, OptimWrapper(optimizers[0]))
        reference.backward(batch, draw, iteration)
        for model in models:
            sum(p.square().sum() for p in model.parameters() if p.ndim == 4).backward()
        models[0].update_step(OptimWrapper(optimizers[0]))
        reference.step()
        assert all(p.grad is None for p in models[0].parameters())
    for name, (weights, _) in snapshot(models[1], optimizers[1]).items():
        torch.testing.assert_close(
            models[0].backbone.get_parameter(name), weights, rtol=0, atol=1e-6
        )


def test_lost_gradients_are_told(make_classifier, make_batch, tiny_space, monkeypatch):
    draw = HierarchicalSampler(tiny_space, 0).draw(0)
    model = make_classifier().train()
    model.set_draw(draw, 0)
    model.backward_step(
        make_batch(draw, 0), OptimWrapper(make_optimizer('SGD', model.parameters()))
    )
    said = []
    monkeypatch.setattr(shared_weights, 'print_log', lambda text, *_: said.append(text))
    model.double()
    assert len(said) == 1 and 'those of its slices are lost' in said[0]
    assert not model.backbone.used_slices


def test_memory_that_was_replaced_is_looked_at_anew(make_classifier, make_batch, tiny_space):
    draw = HierarchicalSampler(tiny_space, 0).draw(0)
    for replace_memory in (
        lambda model: model.double().float(),
        lambda model: model.load_state_dict(
            {key: tensor.clone() for key, tensor in model.state_dict().items()}, assign=True
        ),
        lambda model: setattr(
            model.backbone.stem.conv.weight, 'data', model.backbone.stem.conv.weight.data.clone()
        ),
    ):
        model = make_classifier().train()
        model.set_draw(draw, 0)
        wrapper = OptimWrapper(make_optimizer('SGD', model.parameters()))
        model.train_step(make_batch(draw, 0), wrapper)
        replace_memory(model)
        wrapper = OptimWrapper(make_optimizer('SGD', model.parameters()))
        before = snapshot(model, wrapper.optimizer)
        model.train_step(make_batch(draw, 1), wrapper)
        after = snapshot(model, wrapper.optimizer)
        for name in ('stem.conv.weight', 'conv_head.conv.weight'):
            assert not torch.equal(after[name][0], before[name][0])


def test_optimizers_that_cannot_step_slices_are_refused(make_classifier):
    parameters = list(make_classifier().parameters())
    for optimizer in (
        torch.optim.SGD(parameters, lr=0.1, momentum=0.9, fused=True),
        torch.optim.AdamW(parameters, lr=0.1, fused=True),
    ):
        with pytest.raises(UsageError, match=r'(SGD|AdamW) .*fused=True') as error:
            check_steps_slices(optimizer)
        assert '\n' not in str(error.value)
    with pytest.raises(UsageError, match=r'Adafactor: its \w+ for .* one value an element'):
        check_steps_slices(timm.optim.Adafactor(parameters))
    lookahead = timm.optim.Lookahead(make_optimizer('SGD', parameters))
    with pytest.raises(UsageError, match='Lookahead cannot step the slices'):
        check_steps_slices(lookahead)
    before = [p.clone() for p in parameters]
    for optimizer in (
        *(make_optimizer(name, parameters) for name in OPTIMIZERS),
        torch.optim.NAdam(parameters, foreach=True),
        timm.optim.RMSpropTF(parameters),
    ):
        state = copy.deepcopy(optimizer.state_dict())
        check_steps_slices(optimizer)
        assert str(optimizer.state_dict()) == str(state)
    assert all(map(torch.equal, before, parameters))


def test_gradients_that_no_forward_pass_recorded_move_nothing(make_classifier, make_batch,
                                                              tiny_space):  # fmt: skip
    # zero_grad(set_to_none=False) leaves zero gradients, which weight decay would act on.
    model = make_classifier()
    optimizer = make_optimizer('SGD', model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = snapshot(model, optimizer)
    head = model.head.fc.weight.detach().clone()
    with step_slices(optimizer, model.backbone):
        optimizer.step()
    for name, parameter in model.backbone.named_parameters():
        assert torch.equal(parameter, before[name][0])
    # Neck and head are no slices: they are the optimizer's.
    assert not torch.equal(model.head.fc.weight, head)


def test_unions_are_cut_into_disjoint_regions():
    rng = np.random.default_rng(0)
    overlapping = 0
    for _ in range(200):
        whole = tuple(rng.integers(1, 6, size=rng.integers(1, 5)).tolist())
        owner = nn.Parameter(torch.zeros(whole))
        regions = []
        for _ in range(rng.integers(1, 5)):
            starts = [int(rng.integers(size)) for size in whole]
            regions.append(
                tuple(
                    (start, int(rng.integers(start, size)) + 1)
                    for start, size in zip(starts, whole, strict=True)
                )
            )
        covered, counted = torch.zeros(whole), torch.zeros(whole)
        for region in regions:
            covered[index_of(region)] += 1
        parts = [WeightSlice.of('weight', owner, region) for region in regions]
        for region, part in disjoint(parts):
            counted[index_of(region)] += 1
            inside = torch.zeros(whole)
            inside[index_of(part.region)] = 1
            assert inside[index_of(region)].all()
        assert torch.equal(counted, covered.clamp(max=1))
        # Ranks agree on them, in whatever order their layers ran.
        first, other = ([region for region, _ in disjoint(p)] for p in (parts, parts[::-1]))
        assert first == other
        overlapping += bool((covered > 1).any())
    assert overlapping > 50
    assert without(((0, 3),), ((5, 6),)) == [((0, 3),)]
