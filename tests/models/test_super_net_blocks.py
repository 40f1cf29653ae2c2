"""SuperNet over spaces of every kind of block: slices of dense and grouped layers, SE, heads."""

import copy
import itertools

import pytest
import torch
from general_spaces import SE, SPACES, archs_of, draws_of, images_of, make_classifier, space_of
from mmengine.optim import OptimWrapper
from random_spaces import space_config
from whole_update import WholeUpdate, make_optimizer, masks, snapshot

from mmscale.arch import SearchSpace
from mmscale.arch.sampling import SIDES
from mmscale.arch.slots import variant_of
from mmscale.cost import count, count_module
from mmscale.errors import UsageError
from mmscale.models import ArchNet, SuperNet

KERNELS = ('shared', 'separate')


@pytest.mark.parametrize('kernels', KERNELS)
@pytest.mark.parametrize('name', SPACES)
def test_logits_equal_the_extracted_networks(make_random, name, kernels):
    model = make_random(SPACES[name], kernels)
    archs = archs_of(SPACES[name], 12)
    assert len(archs) > 8
    differences = []
    for arch, side in itertools.product(archs, SIDES):
        alone = model.extract(arch, side).eval()
        assert type(alone.backbone) is ArchNet
        assert sum(p.numel() for p in alone.parameters()) == count(arch).params
        images = images_of(arch)
        model.backbone.set_arch(arch, side)
        with torch.no_grad():  # on views of the weights
            logits = model(images)
        whole = model(images)  # with gradients that flow to whole parameters
        expected = alone(images)
        assert (logits - expected).abs().max() < 1e-10
        assert (whole - expected).abs().max() < 1e-10
        predicted = torch.stack([sample.pred_score for sample in model.predict(images)])
        torch.testing.assert_close(predicted, expected.softmax(1), rtol=0, atol=1e-10)
        differences.append((logits[0] - logits[1]).abs().max())
    # The images matter by far more than that.
    assert torch.stack(differences).median() > 1e-3


@pytest.mark.parametrize('side', SIDES)
@pytest.mark.parametrize('name', SPACES)
def test_one_side_holds_every_subnet(make_random, name, side):
    model = make_random(SPACES[name], sides=[side])
    for arch in archs_of(SPACES[name], 6):
        model.backbone.set_arch(arch, side)
        expected = model.extract(arch, side).eval()(images_of(arch))
        assert (model(images_of(arch)) - expected).abs().max() < 1e-10


@pytest.mark.parametrize(
    ('name', 'kernels', 'mode'),
    [
        *((name, 'shared', 'single') for name in SPACES),
        ('mixed', 'separate', 'both_sides'),
        ('mbconv', 'separate', 'sandwich'),
        ('grouped', 'separate', 'sandwich'),
        ('basic', 'shared', 'both_sides'),
        ('scaled', 'separate', 'both_sides'),
    ],
)
def test_steps_are_those_of_whole_parameters_bit_by_bit(make_batch, name, kernels, mode):
    models = [make_classifier(SPACES[name], kernels, mode).train() for _ in range(2)]
    optimizers = [make_optimizer('AdamW', model.parameters()) for model in models]
    wrapper = OptimWrapper(optimizers[0])
    reference = WholeUpdate(models[1], optimizers[1])
    changed = unchanged = 0
    for iteration, draw in enumerate(draws_of(SPACES[name], 5)):
        before = snapshot(models[0], optimizers[0])
        models[0].set_draw(draw, iteration)
        models[0].backward_step(make_batch(draw, iteration), wrapper)
        used = masks(models[0], models[0].backbone.used_slices)
        models[0].update_step(wrapper)
        reference.backward(make_batch(draw, iteration), draw, iteration)
        reference.step()
        for key, (weights, state) in snapshot(models[0], optimizers[0]).items():
            outside = ~used[key]
            assert torch.equal(weights[outside], before[key][0][outside]), key
            unchanged += int(outside.sum())
            changed += int((weights != before[key][0]).sum())
            assert not any(
                value[outside].ne(before[key][1].get(part, torch.zeros_like(value))[outside]).any()
                for part, value in state.items()
            )
    assert changed > 1000
    assert unchanged > 1000
    found, expected = (snapshot(*pair) for pair in zip(models, optimizers, strict=True))
    for key, (weights, state) in expected.items():
        assert torch.equal(found[key][0], weights), key
        assert state.keys() == found[key][1].keys()
        assert all(torch.equal(found[key][1][part], value) for part, value in state.items())
    states = [model.state_dict() for model in models]
    assert all(torch.equal(states[1][key], tensor) for key, tensor in states[0].items())


def test_names_say_variants_where_there_are_several():
    for kernels, suffix in (('shared', ''), ('separate', 'kernel3.')):
        keys = SuperNet(SPACES['mixed'], kernels=kernels).state_dict()
        assert f'stages.0.0.fused_mbconv_dense.{suffix}spatial.conv.weight' in keys
        assert f'stages.0.0.bottleneck_g4.{suffix}shortcut.conv.weight' in keys
        keys = SuperNet(SPACES['bottleneck'], kernels=kernels).state_dict()
        assert f'stages.0.0.{suffix}expand.conv.weight' in keys


def test_variants_of_a_slot_share_no_weights(make_random):
    model = make_random(SPACES['mixed'])
    net, space = model.backbone.train(), SPACES['mixed']
    names = {}
    for arch in archs_of(space, 30):
        net.set_arch(arch)
        with net.slices():
            net(images_of(arch))
        used = {key for key in net.used_slices if key.startswith('stages.0.0.')}
        net.forget_slices()
        names.setdefault(variant_of(arch.stages[0][0], net._slots[0][0]), set()).update(used)
    assert len(names) > 4
    for one, other in itertools.combinations(names.values(), 2):
        assert not one & other


def test_what_a_block_lacks_is_not_used(make_random):
    """SE and projections of the slot."""
    model = make_random(SPACES['bottleneck'])
    net, space = model.backbone.train(), SPACES['bottleneck']
    seen = set()
    for arch in archs_of(space, 30):
        net.set_arch(arch)
        with net.slices():
            net(images_of(arch))
        for i, stage in enumerate(arch.stages):
            for j, block in enumerate(stage):
                own = [key for key in net.used_slices if key.startswith(f'stages.{i}.{j}.')]
                has = any('.se.' in key for key in own), any('.shortcut.' in key for key in own)
                assert has == (block.se is not None, block.residual == 'projection')
                seen.add((i, j > 0, *has))
        net.forget_slices()
    # Each with and without, in one slot.
    assert {(0, False, False, True), (0, False, False, False)} <= seen
    assert {(1, True, True, False), (1, True, False, False)} <= seen


@pytest.mark.parametrize(
    'other',
    [
        dict(kind='mbconv'),
        dict(group_widths=4),
        dict(act='silu'),
        dict(se=SE),
        dict(kernels=5),
        dict(expands=2),
        dict(channels=9),
        dict(stride=2),
    ],
    ids=str,
)
def test_foreign_blocks_are_refused(other):
    stage = dict(channels=8, depths=1, kernels=3, kind='bottleneck')
    net = SuperNet(space_of([stage]))
    with pytest.raises(UsageError, match='is not in this search space: block 0 of network') as e:
        net.set_arch(space_of([stage | other]).largest())
    assert '\n' not in str(e.value)


def test_foreign_heads_are_refused():
    stage = dict(channels=8, depths=1, kernels=3)
    for own, other in [
        (dict(channels=[6, 8]), dict(channels=15)),
        (dict(channels=[6, 8]), dict(channels=0)),
        (dict(channels=8), dict(channels=6)),
        (dict(channels=8, hidden_channels=[4, 6]), dict(channels=8)),
        (dict(channels=[6, 8]), dict(channels=8, act='silu')),
    ]:
        net = SuperNet(space_of([stage], head=own))
        net.set_arch(space_of([stage], head=own).smallest())
        with pytest.raises(UsageError, match='is not in this search space: head Head'):
            net.set_arch(space_of([stage], head=other).largest())


@pytest.mark.parametrize('name', ['mixed', 'fused_mbconv'])
def test_export_traces_and_ensembles_run_the_subnet(make_random, name):
    model = make_random(SPACES[name])
    arch = SPACES[name].smallest()
    model.backbone.set_arch(arch, 'right')
    model.set_draw(draws_of(SPACES[name], 1)[0], 0)  # a trace asks for every property
    images = images_of(arch)
    with torch.no_grad():
        expected = model(images)
        traced = torch.jit.trace(model, images)
        assert (traced(images) - expected).abs().max() < 1e-10
        if torch.__version__ >= '2.6':
            program = torch.export.export(model, (images,)).module()
            assert (program(images) - expected).abs().max() < 1e-10
        two = {key: torch.stack([p, 2 * p]) for key, p in model.named_parameters()}
        outputs = torch.func.vmap(
            lambda p: torch.func.functional_call(model, p, (images,)), randomness='same'
        )(two)
    assert (outputs[0] - expected).abs().max() < 1e-10
    assert (outputs[1] - expected).abs().max() > 1e-3


def test_checkpointing_changes_nothing(make_batch):
    """Gradients and statistics of blocks that are computed anew, of several variants."""
    states = []
    for with_cp in (False, True):
        model = make_classifier(SPACES['mixed'], with_cp=with_cp).train()
        wrapper = OptimWrapper(make_optimizer('SGD', model.parameters()))
        for iteration, draw in enumerate(draws_of(SPACES['mixed'], 4)):
            model.set_draw(draw, iteration)
            model.train_step(make_batch(draw, iteration), wrapper)
        states.append(model.state_dict())
    assert all(torch.equal(states[1][key], tensor) for key, tensor in states[0].items())


def test_frozen_and_eval_norm_layers_hold_for_variants(make_batch):
    model = make_classifier(SPACES['mixed'], frozen_stages=1, norm_eval=True).train()
    before = copy.deepcopy(model.state_dict())
    wrapper = OptimWrapper(make_optimizer('SGD', model.parameters()))
    for iteration, draw in enumerate(draws_of(SPACES['mixed'], 4)):
        model.set_draw(draw, iteration)
        model.train_step(make_batch(draw, iteration), wrapper)
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert any(key.startswith('backbone.stages.1.') for key in changed)
    assert any(key.startswith('head.') for key in changed)
    assert not any(
        key.startswith(('backbone.stem', 'backbone.stages.0')) or 'running' in key
        for key in changed
    )


# ------------------------------------------------------------------ any space


@pytest.mark.parametrize('seed', range(6))
def test_subnets_of_random_spaces_equal_the_extracted(make_random, seed):
    space = SearchSpace(**space_config(seed))
    model = make_random(space, KERNELS[seed % 2])
    for arch, side in itertools.product(archs_of(space, 5, seed), SIDES):
        alone = model.extract(arch, side).eval()
        shape = (arch.stem.in_channels, arch.resolution, arch.resolution)
        single = copy.deepcopy(alone).float()
        assert count_module(single, shape, memory=False).cost == count(arch)
        model.backbone.set_arch(arch, side)
        images = images_of(arch)
        with torch.no_grad():
            assert (model(images) - alone(images)).abs().max() < 1e-10
