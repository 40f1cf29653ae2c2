"""DMSModel by itself: losses, importance, steps of the structure, projection, wrong settings."""

import copy
import pickle
from datetime import timedelta

import pytest
import torch
from mmengine.model import (
    ExponentialMovingAverage,
    convert_sync_batchnorm,
    revert_sync_batchnorm,
)
from mmengine.optim import OptimWrapper
from mmpretrain.structures import DataSample
from torch import distributed, multiprocessing, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.optim.swa_utils import AveragedModel

from mmscale.arch import Arch, get_arch
from mmscale.cost import LatencyModel, LatencySetting, count_module
from mmscale.cost.count import Cost
from mmscale.errors import UsageError
from mmscale.models import DMSModel
from mmscale.models.dms import apply_pruning, plan_pruning
from mmscale.models.dms.layers import replace_submodule
from mmscale.registry import MODELS

SIDE = 12


def batch(seed=0, count=4):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=generator).tolist()
    return dict(
        inputs=torch.randn(count, 1, SIDE, SIDE, generator=generator),
        data_samples=[DataSample().set_gt_label(label) for label in labels],
    )


def wrapper_of(model, **settings):
    weights = [p for name, p in model.named_parameters() if 'pruning_ratio' not in name]
    return OptimWrapper(torch.optim.SGD(weights, lr=0.1), **settings)


def search(model, steps=3, budget=None):
    wrapper = wrapper_of(model)
    for step in range(steps):
        model.set_budget(model.goal if budget is None else budget)
        losses = model.train_step(batch(step), wrapper)
        model.step_structure()
    return losses


def state(model):
    return {
        key: (gate.importance.clone(), gate.pruning_ratio.detach().clone())
        for key, gate in model.gates.items()
    }


# ------------------------------------------------------------------ losses


def test_resource_loss(make_model):
    model = make_model()
    model.set_budget(model.value(model.cost.full) / 3)
    model.weight = 2.0
    losses = model(**batch(), mode='loss')
    # Widths count what would be exported, blocks their masks.
    counts = []
    for group in model.groups.all:
        gate = model.gates[group.key]
        is_depth = group in model.groups.depths
        counts += gate().tolist() if is_depth else [float(gate.keep_count)]
    share = model.cost(torch.tensor(counts))[0] / model.value(model.cost.full)
    assert losses['resource_loss'].item() == pytest.approx(2 * (3 * share).log().item())
    model.set_budget(model.value(model.cost.full) * 3)
    assert model(**batch(), mode='loss')['resource_loss'].item() == 0


def test_resource_loss_takes_every_gate_down(make_model):
    model = make_model()
    model.set_budget(model.goal)
    model(**batch(), mode='loss')['resource_loss'].backward()
    for key, gate in model.gates.items():
        assert gate.pruning_ratio.grad.item() < 0 or gate.minimum == gate.elements, key


def ratios_without_a_task(model, steps=60):
    """Ratios of what can go after a search of the resource loss alone."""
    model.set_search_length(steps)
    full = model.value(model.cost.full)
    for step in range(steps):
        model.set_budget(full * (model.goal / full) ** min(1, step / (0.8 * steps)))
        model(**batch(), mode='loss')['resource_loss'].backward()
        model.step_structure()
    gates = [gate for gate in model.gates.values() if gate.minimum < gate.elements]
    return torch.stack([gate.pruning_ratio.detach() for gate in gates])


def test_without_a_task_the_default_optimizer_takes_equal_shares(make_model):
    model = make_model(structure_optimizer=None, search=['width'])
    ratios = ratios_without_a_task(model)
    assert ratios.std() < 0.05 * ratios.mean()
    assert sum(model.task_shares().values()) == 0
    # Plain gradients take what costs most instead.
    ratios = ratios_without_a_task(make_model(search=['width']))
    assert ratios.std() > 0.3 * ratios.mean()


def test_slopes_of_task_and_resources_add_up(make_model):
    model = make_model()
    model.set_budget(model.goal)
    # The sum of both losses' slopes, from two backward passes of their own.
    seen = []
    for key in ('loss', 'resource_loss'):
        model(**batch(), mode='loss')[key].backward()
        ratios = [gate.pruning_ratio for gate in model.gates.values()]
        seen.append(torch.stack([ratio.grad for ratio in ratios]).double())
        for ratio in ratios:
            ratio.grad = None
        model.masks.collect()
    losses = model(**batch(), mode='loss')
    (losses['loss'] + losses['resource_loss']).backward()
    model.step_structure()
    torch.testing.assert_close(model.slopes.whole, torch.stack(seen), rtol=1e-4, atol=1e-7)
    pulls = model.pulls()
    expected = torch.stack(seen).T.tolist()
    for found, one in zip(pulls['slopes'].values(), expected, strict=True):
        assert found == pytest.approx(one, rel=1e-4, abs=1e-7)
    for share in model.task_shares().values():
        assert 0 <= share <= 1
    assert model.slopes.take_recent() == [[0, 0]] * len(model.gates)


def test_settings_by_kind_of_group(make_model):
    by_kind = dict(blocks=dict(hardness_per_element=8), width=dict(divisor=4, minimum=2))
    model = make_model(gates=dict(by_kind=by_kind, hardness_per_element=3.0))
    for group in model.groups.all:
        gate = model.gates[group.key]
        if group in model.groups.depths:
            assert gate.hardness == 8 * group.size and gate.minimum == 0
        else:
            assert gate.divisor == 4 and gate.hardness == 3 * -(-group.size // 4)
    # So few elements would be half off at first, if they were counted as many are.
    for gate in make_model().gates.values():
        assert gate().min() > 0.85 or gate.elements > 16


def test_importance_is_of_the_task_alone(make_model):
    light, heavy = make_model(weight=1e-6), make_model(weight=100.0)
    for model in (light, heavy):
        search(model, steps=1)
    for key, (importance, ratio) in state(light).items():
        assert torch.equal(importance, heavy.gates[key].importance)
        gate = heavy.gates[key]
        if gate.elements == gate.minimum:
            continue  # frozen
        assert importance.max() > 0
        assert gate.pruning_ratio > ratio


def test_accumulated_batches_are_one_step(make_model):
    whole, parts = make_model(), make_model()
    search(whole, steps=1)
    parts.set_budget(parts.goal)
    wrapper = wrapper_of(parts, accumulative_counts=2)
    data = batch()
    for half in (slice(0, 2), slice(2, 4)):
        parts.train_step({key: value[half] for key, value in data.items()}, wrapper)
    parts.step_structure()
    for key, (importance, ratio) in state(whole).items():
        torch.testing.assert_close(parts.gates[key].importance, importance, rtol=1e-4, atol=1e-12)
        torch.testing.assert_close(parts.gates[key].pruning_ratio.detach(), ratio)


@pytest.mark.parametrize('kind', ['index', 'l1', 'snip', 'fisher'])
def test_other_importances(kind, make_model):
    model = make_model(gates=dict(importance=kind))
    search(model, steps=2)
    group = model.groups.widths[-1]
    importance = model.gates[group.key].importance
    assert importance.unique().numel() == group.size
    if kind == 'l1':
        weight = model.model.backbone.conv_head.conv.weight.detach()
        torch.testing.assert_close(importance, weight.abs().sum(dim=(1, 2, 3)))


def test_loss_scale_is_taken_out(make_model):
    plain, scaled = make_model(), make_model()
    search(plain, steps=1)
    scaled.set_budget(scaled.goal)
    loss, _ = scaled.parse_losses(scaled(**batch(), mode='loss'))
    (loss * 1024).backward()
    scaled.step_structure(1024.0)
    for key, (importance, ratio) in state(plain).items():
        torch.testing.assert_close(scaled.gates[key].importance, importance)
        torch.testing.assert_close(scaled.gates[key].pruning_ratio.detach(), ratio)


def test_gradients_that_are_not_finite_change_nothing(make_model):
    model = make_model()
    search(model)
    before = state(model)
    loss, _ = model.parse_losses(model(**batch(), mode='loss'))
    (loss * float('inf')).backward()
    model.step_structure()
    for key, (importance, ratio) in before.items():
        assert torch.equal(model.gates[key].importance, importance)
        assert torch.equal(model.gates[key].pruning_ratio, ratio)


# ------------------------------------------------------------------ processes


def train_rank(rank, model, folder):
    torch.set_num_threads(1)
    # A timeout, so that a rank whose peer has died fails and does not wait for ever.
    distributed.init_process_group(
        'gloo',
        init_method=f'file://{folder}/rendezvous',
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    from mmengine.model import MMDistributedDataParallel

    wrapped = MMDistributedDataParallel(model, broadcast_buffers=False)
    wrapper = wrapper_of(model)
    for step in range(2):
        data = batch(step)
        half = slice(2 * rank, 2 * rank + 2)
        model.set_budget(model.goal)
        wrapped.train_step({key: value[half] for key, value in data.items()}, wrapper)
        model.step_structure()
    torch.save(state(model), f'{folder}/rank{rank}.pth')
    distributed.barrier()
    distributed.destroy_process_group()


def test_two_processes_have_the_importances_of_one(make_model, tmp_path):
    model = make_model()
    multiprocessing.start_processes(
        train_rank, (model, str(tmp_path)), nprocs=2, start_method='fork'
    )
    search(model, steps=2)
    for rank in range(2):
        found = torch.load(tmp_path / f'rank{rank}.pth', weights_only=True)
        for key, (importance, ratio) in state(model).items():
            torch.testing.assert_close(found[key][0], importance, rtol=1e-4, atol=1e-12)
            torch.testing.assert_close(found[key][1], ratio, rtol=1e-4, atol=1e-7)
    assert not distributed.is_initialized()


# ------------------------------------------------------------------ evaluation and projection


def test_evaluation_is_of_what_would_be_exported(make_model, classifier, randomise):
    model = make_model()
    search(model, steps=20)
    randomise(model.model.backbone, weights=True).eval()
    model.eval()
    keep = {g.name: model.gates[g.key].keep_indices.tolist() for g in model.groups.all}
    assert model.current_cost().flops < 0.9 * model.cost.full.flops
    plain = MODELS.build(classifier()).eval()
    plain.load_state_dict(model.model.state_dict())
    whole = plain(batch()['inputs'])
    pruned = apply_pruning(plain, plan_pruning(plain, model.groups, keep))
    masked = model(batch()['inputs'])
    torch.testing.assert_close(masked, pruned(batch()['inputs']), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(masked, whole, rtol=0.1)


def latency_file(tmp_path):
    costs = [
        Cost(10**6, 10**5, 10**5),
        Cost(2 * 10**6, 10**5, 10**5),
        Cost(10**6, 10**5, 3 * 10**5),
    ]
    path = tmp_path / 'latency.json'
    LatencyModel.fit(costs, [2.0, 2.5, 4.0], LatencySetting(device_name='test')).save(path)
    return str(path)


@pytest.mark.parametrize('metric', ['flops', 'params', 'acts', 'latency'])
def test_projection_meets_the_budget(metric, classifier, tmp_path):
    settings = dict(latency_model=latency_file(tmp_path)) if metric == 'latency' else {}
    arch = get_arch('scalenet-s0')
    config = classifier(arch)
    # Latency has a part that no width takes away.
    target = 0.8 if metric == 'latency' else 0.5
    model = DMSModel(
        config,
        target,
        metric,
        input_shape=(3, 32, 32),
        structure_optimizer=dict(type='SGD', lr=0.02),
        **settings,
    )
    for _ in range(30 if metric in ('flops', 'latency') else 0):
        # No forward pass of the network: the resource loss alone.
        model.set_budget(model.goal)
        masks = torch.cat([gate() for gate in model.gates.values()])
        model._resource_loss(masks).backward()
        model.step_structure()
    projection = model.project()
    cost = model.current_cost()
    assert projection.after == model.value(cost)
    assert 0.98 * model.goal <= projection.after <= model.goal
    assert (projection.shift > 0) == (projection.before > model.goal)
    keep = {g.name: model.gates[g.key].keep_indices.tolist() for g in model.groups.all}
    pruned = apply_pruning(model.model, plan_pruning(model.model, model.groups, keep))
    model.masks.remove()
    assert count_module(pruned, (3, 32, 32), memory=False).cost == cost


# ------------------------------------------------------------------ wrappers and copies


def by_names(model):
    """Puts a new layer of the same weights in the place of each."""
    for name, layer in list(model.model.named_modules()):
        if name and isinstance(layer, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
            replace_submodule(model.model, name, copy.deepcopy(layer))
            # The copy's hooks are of the masks' copy, as of no masks at all.
            layer = model.model.get_submodule(name)
            layer._forward_pre_hooks.clear()
            layer._forward_hooks.clear()
    return model


WRAPPERS = {
    'deep copy': copy.deepcopy,
    'pickle': lambda model: pickle.loads(pickle.dumps(model)),  # noqa: S301
    'EMA': lambda model: ExponentialMovingAverage(model).module,
    'AveragedModel': lambda model: AveragedModel(model).module,
    'SyncBN': lambda model: convert_sync_batchnorm(model, 'torch'),
    'SyncBN and back': lambda model: revert_sync_batchnorm(convert_sync_batchnorm(model)),
    'copy of SyncBN': lambda model: copy.deepcopy(convert_sync_batchnorm(model)),
    'new layers': by_names,
}


@pytest.mark.parametrize('wrapper', WRAPPERS)
def test_masks_follow_the_layers(wrapper, make_model):
    """All blocks that can go are shut, and half of the channels."""
    model = make_model().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.3)
    for group in model.groups.all:
        gate = model.gates[group.key]
        gate.pruning_ratio.data.fill_(1.0 if group in model.groups.depths else 0.5)
        gate.clamp()
    images = torch.randn(2, 1, SIDE, SIDE)
    whole = copy.deepcopy(model)
    whole.masks.remove()
    with torch.no_grad():
        expected, unmasked = model(images), whole(images)
        assert not torch.allclose(expected, unmasked)
        wrapped = WRAPPERS[wrapper](model).eval()
        for _ in range(2):
            torch.testing.assert_close(wrapped(images), expected)
        wrapped.masks.remove()
        torch.testing.assert_close(wrapped(images), unmasked)


def test_a_layer_that_is_gone_or_has_no_weight_is_named(make_model):
    images = torch.randn(2, 1, SIDE, SIDE)
    model = make_model()
    weight_norm(model.model.backbone.stem.conv)
    weight_norm(model.model.backbone.stages[0][0].project.conv)
    with pytest.raises(UsageError, match=r'stages.0.0.project.conv cannot be masked: its weight'):
        model(images)
    model = make_model()
    model.model.backbone.stages[1] = nn.Identity()
    with pytest.raises(UsageError, match=r'stages.1.* is masked, but .* has no such layer'):
        model(images)


# ------------------------------------------------------------------ settings


def test_wrong_settings(make_model, refuses):
    refuses(make_model, travel=[0, -1, 'far'])
    refuses(make_model, metric=['energy'], search=[['height']], pipeline=['pp'], weight=[0])
    refuses(make_model, target=['half'])
    for settings, message in (
        (dict(target=0.001), r'out of reach: .* the smallest that can be left of it \d'),
        (dict(target=1.5), 'out of reach'),
        (dict(target=dict(flops=1)), 'flops of 1 are out of reach'),
        (dict(target=dict(flops=1e6, params=1)), 'exactly one metric'),
        (dict(metric='latency'), 'latency_model is needed for the metric latency'),
        (dict(pipeline='p'), 'p and p- need a checkpoint'),
        (dict(pretrained='x.pth'), 'np starts from random weights'),
    ):
        with pytest.raises(ValueError, match=message):
            make_model(**settings)


def test_depth_of_a_network_without_residual_blocks(make_model, classifier):
    stages = [
        [
            dict(
                kind='fused_mbconv',
                kernel=3,
                stride=2,
                in_channels=4,
                hidden_channels=6,
                out_channels=8,
                groups=1,
            )
        ]
    ]
    arch = Arch.from_json(
        dict(
            schema=1,
            resolution=SIDE,
            stem=dict(out_channels=4, in_channels=1),
            stages=stages,
            head=dict(),
        )
    )
    message = r"no residual block that can go; search=\['width'\] leaves depth as it is"
    with pytest.raises(ValueError, match=message):
        make_model(model=classifier(arch))
    assert make_model(model=classifier(arch), search=['width']).groups.depths == ()


def test_losses_need_a_budget(classifier):
    model = DMSModel(classifier(), 0.5, input_shape=(1, SIDE, SIDE)).train()
    with pytest.raises(RuntimeError, match=r'mmscale\.DMSHook'):
        model(**batch(), mode='loss')


def test_pretrained_weights(make_model, classifier, tmp_path):
    source = make_model()
    torch.save({'state_dict': source.model.state_dict()}, tmp_path / 'whole.pth')
    torch.manual_seed(5)
    for pipeline in ('p', 'p-'):
        model = make_model(pipeline=pipeline, pretrained=str(tmp_path / 'whole.pth'))
        model.init_weights()
        before = copy.deepcopy(dict(model.model.named_parameters()))
        for name, value in source.model.named_parameters():
            assert torch.equal(before[name], value), name
        search(model)
        changed = [n for n, p in model.model.named_parameters() if not torch.equal(p, before[n])]
        assert bool(changed) == (pipeline == 'p')
        moved = [gate.pruning_ratio > 0 for gate in model.gates.values()]
        assert sum(moved) > len(moved) / 2
    torch.save({'weight': torch.zeros(1)}, tmp_path / 'other.pth')
    with pytest.raises(ValueError, match=r'other.pth: .*Missing key'):
        make_model(pipeline='p', pretrained=str(tmp_path / 'other.pth')).init_weights()


def test_residual_branches_of_a_search_never_begin_with_0(make_model, classifier):
    model = make_model()
    net = model.model.backbone
    net.zero_init_residual = True
    model.init_weights()
    assert any(block.block.residual != 'none' for stage in net.stages for block in stage)
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms and all((norm.weight == 1).all() for norm in norms)


def test_slopes_of_a_warm_up_do_not_count(make_model):
    model = make_model()
    model.set_budget(model.goal)
    losses = model(**batch(), mode='loss')
    (losses['loss'] + losses['resource_loss']).backward()
    model.step_structure(moves=False)
    assert not model.slopes.whole.any()
    assert all(gate.pruning_ratio == 0 for gate in model.gates.values())


@pytest.mark.parametrize(
    ('gates', 'message'),
    [
        (dict(divisor=0), 'divisor of width=0'),
        (dict(by_kind=dict(width=8)), 'by_kind.width: expected an object'),
        (dict(by_kind=dict(height={})), 'height'),
        (dict(minimum=None), 'minimum of width=None'),
    ],
)
def test_wrong_settings_of_gates(gates, message, make_model):
    with pytest.raises(UsageError, match=message):
        make_model(gates=gates)


def test_slopes_of_another_search_are_none(make_model):
    slopes = make_model().slopes
    state = slopes.state()
    slopes.restore(state)
    for wrong in ({}, {**state, 'whole': torch.zeros(2, 1)}, {**state, 'steps': 'many'}, 5):
        with pytest.raises((KeyError, TypeError, ValueError)):
            slopes.restore(wrong)
