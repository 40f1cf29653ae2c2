"""SuperNet over spaces of every kind of block: slices of dense and grouped layers, SE, heads."""

import copy
import itertools

import numpy as np
import pytest
import torch
from mmengine.optim import OptimWrapper
from torch import nn
from whole_update import WholeUpdate, make_optimizer, masks, snapshot

from mmscale.arch import HierarchicalSampler, SearchSpace
from mmscale.arch.sampling import SIDES
from mmscale.arch.slots import variant_of
from mmscale.cost import count
from mmscale.errors import UsageError
from mmscale.models import ArchNet, SuperNet, SuperNetClassifier
from mmscale.models.dms.find import static_model

KERNELS = ('shared', 'separate')
SE = dict(ratio=0.25)


def space_of(stages, **settings):
    common = dict(in_channels=1, num_classes=4, act='relu', resolution=[9, 12])
    common |= dict(stem=dict(channels=4), head=dict(channels=0), stages=stages)
    return SearchSpace(**(common | settings))


SPACES = {
    'mbconv': space_of(
        [
            dict(channels=4, depths=1, kernels=3, kind='dsconv'),
            dict(channels=[5, 6], stride=2, depths=[1, 2], kernels=[3, 5], expands=[2, 3],
                 se=[False, SE]),
            dict(channels=[6, 8], depths=[1, 3], kernels=[3, 5], expands=[1, 2],
                 act=['relu', 'silu']),
        ],
        stem=dict(channels=[3, 4]),
        head=dict(channels=8),
    ),
    'fused_mbconv': space_of(
        [
            dict(channels=[4, 6], stride=2, depths=[1, 2], kernels=[1, 3], expands=[1, 2],
                 kind='fused_mbconv', se=[False, SE]),
            dict(channels=[6, 9], depths=[1, 2], kernels=[3, 5], expands=2, kind='fused_mbconv'),
        ],
        head=dict(channels=[8, 10], hidden_channels=[5, 7]),
    ),
    'bottleneck': space_of(
        [
            dict(channels=[8, 12, 16], depths=[1, 2], kernels=[3, 5], expands=[0.5, 1],
                 kind='bottleneck'),
            dict(channels=[12, 16], stride=2, depths=[1, 2], kernels=3, expands=[0.25, 0.5],
                 kind='bottleneck', se=[False, SE]),
        ],
        stem=dict(channels=8, max_pool=True),
    ),
    'grouped': space_of(
        [
            dict(channels=[8, 16], stride=2, depths=[1, 2], kernels=[3, 5], kind='bottleneck',
                 group_widths=4),
            dict(channels=[16, 24], stride=2, depths=[1, 2], kernels=3, kind='bottleneck',
                 group_widths=[4, 8], se=SE),
            dict(channels=[16, 24], depths=[1, 2], kernels=3, expands=[1, 2], group_widths=[1, 8]),
        ],
    ),
    'basic': space_of(
        [
            dict(channels=[6, 8], depths=[1, 2], kernels=[3, 5], expands=[1, 2], kind='basic'),
            dict(channels=[8, 10], stride=2, depths=[1, 2], kernels=3, kind='basic'),
        ],
        stem=dict(channels=[6, 8]),
        head=dict(channels=6, hidden_channels=[5, 6]),
    ),
    'mixed': space_of(
        [
            dict(channels=[8, 12], depths=[1, 2], kernels=[3, 5], expands=[1, 2], se=[False, SE],
                 kind=['mbconv', 'fused_mbconv', 'bottleneck', 'basic'], group_widths=[0, 1, 4]),
            dict(channels=8, stride=2, depths=[1, 3], skips='anywhere', expands=2,
                 kind=['mbconv', 'conv'], kernels=[1, 3], first=dict(kind='conv', kernels=1)),
        ],
    ),
    'scaled': space_of(
        [
            dict(channels=[4, 6], depths=[1, 2], kernels=[3, 5], kind=['mbconv', 'bottleneck'],
                 expands=[1, 2]),
            dict(channels=[6, 8], stride=2, depths=[1, 2], kernels=[3, 5], kind='basic'),
        ],
        resolution=None,
        scaling_stages=[
            dict(depth=[1], width=[1], resolution=[9]),
            dict(depth=[1, 1.6], width=[1.3, 1.7], resolution=[9, 12]),
        ],
    ),
}  # fmt: skip


def make_classifier(name, kernels='shared', mode='single', head=None, **settings):
    torch.manual_seed(0)
    space = SPACES[name]
    backbone = SuperNet(space, kernels=kernels, **settings)
    if head is None:
        head = dict(type='LinearClsHead', num_classes=4, topk=(1,))
        if space.largest().head.hidden_channels:
            head = dict(type='StackedLinearClsHead', num_classes=4)
        if not backbone.head_varies:
            head['in_channels'] = space.largest().feature_channels
    neck = dict(type='GlobalAveragePooling')
    return SuperNetClassifier(backbone, mode=mode, neck=neck, head=head)


@pytest.fixture
def make_random(randomise):
    """A function that makes a classifier of random weights of 64 bits."""

    def make(*args, **kwargs):
        model = make_classifier(*args, **kwargs)
        randomise(model, weights=True)
        generator = torch.Generator().manual_seed(1)
        for module in model.head.modules():
            if isinstance(module, nn.Linear):
                module.weight.data.normal_(0, module.in_features**-0.5, generator=generator)
                module.bias.data.normal_(0, 1, generator=generator)
        return model.double().eval()

    return make


def draws_of(space, number, seed=0):
    sampler = HierarchicalSampler(space, seed, 'uniform')
    return [sampler.draw(i) for i in range(number)]


def archs_of(space, number, seed=0):
    drawn = [draw.arch for draw in draws_of(space, number, seed)]
    return list(dict.fromkeys([space.smallest(), space.largest(), *drawn]))


def images_of(arch, number=2):
    generator = torch.Generator().manual_seed(0)
    shape = number, 1, arch.resolution, arch.resolution
    return torch.randn(shape, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize('kernels', KERNELS)
@pytest.mark.parametrize('name', SPACES)
def test_logits_equal_the_extracted_networks(make_random, name, kernels):
    model = make_random(name, kernels)
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
    model = make_random(name, sides=[side])
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
    models = [make_classifier(name, kernels, mode).train() for _ in range(2)]
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
    model = make_random('mixed')
    net, space = model.backbone.train(), SPACES['mixed']
    names = {}
    for arch in archs_of(space, 30):
        net.set_arch(arch)
        with net.slices():
            net(images_of(arch))
        used = {key for key in net.used_slices if key.startswith('stages.0.0.')}
        net.forget_slices()
        names.setdefault(variant_of(arch.stages[0][0]), set()).update(used)
    assert len(names) > 4
    for one, other in itertools.combinations(names.values(), 2):
        assert not one & other


def test_what_a_block_lacks_is_not_used(make_random):
    """SE and projections of the slot."""
    model = make_random('bottleneck')
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
    model = make_random(name)
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
        model = make_classifier('mixed', with_cp=with_cp).train()
        wrapper = OptimWrapper(make_optimizer('SGD', model.parameters()))
        for iteration, draw in enumerate(draws_of(SPACES['mixed'], 4)):
            model.set_draw(draw, iteration)
            model.train_step(make_batch(draw, iteration), wrapper)
        states.append(model.state_dict())
    assert all(torch.equal(states[1][key], tensor) for key, tensor in states[0].items())


def test_frozen_and_eval_norm_layers_hold_for_variants(make_batch):
    model = make_classifier('mixed', frozen_stages=1, norm_eval=True).train()
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


# ------------------------------------------------------------------ heads


def test_heads_are_as_wide_as_what_they_see():
    model = make_classifier('fused_mbconv')
    space = SPACES['fused_mbconv']
    assert [tuple(p.shape) for p in model.head.parameters()] == [(12, 18), (12,), (4, 12), (4,)]
    for arch in archs_of(space, 4):
        alone = model.extract(arch)
        width, hidden = arch.head.channels, arch.head.hidden_channels
        shapes = [tuple(p.shape) for p in alone.head.parameters()]
        assert shapes == [(hidden, width), (hidden,), (4, hidden), (4,)]
    one = make_classifier('fused_mbconv', sides=['right'])
    assert [tuple(p.shape) for p in one.head.parameters()] == [(7, 10), (7,), (4, 7), (4,)]
    # Widths of the last network stage, or of the one whose map comes last.
    assert make_classifier('bottleneck').head.in_channels == 12 + 16
    assert make_classifier('bottleneck', out_indices=0).head.in_channels == 8 + 16


def test_heads_that_fit_all_subnets_are_shared_whole(make_random):
    model = make_random('mbconv')
    assert not model.shares_head
    arch = SPACES['mbconv'].smallest()
    assert torch.equal(model.extract(arch, 'right').head.fc.weight, model.head.fc.weight)


def test_a_head_of_any_kind_keeps_its_settings(make_batch):
    head = dict(
        type='StackedLinearClsHead', num_classes=4, norm_cfg=dict(type='BN1d'), dropout_rate=0.5,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1), cal_acc=True,
    )  # fmt: skip
    model = make_classifier('fused_mbconv', head=head).train()
    draw = draws_of(SPACES['fused_mbconv'], 1)[0]
    model.set_draw(draw, 0)
    wrapper = OptimWrapper(make_optimizer('SGD', model.parameters()))
    before = model.head.layers[0].norm.running_mean.clone()
    assert 'accuracy_top-1' in model.train_step(make_batch(draw, 0), wrapper)
    hidden = draw.arch.head.hidden_channels
    # Statistics of what was used alone: on the left the first ones.
    part = slice(0, hidden) if draw.side == 'left' else slice(-hidden, None)
    changed = model.head.layers[0].norm.running_mean != before
    assert changed[part].all() and int(changed.sum()) == hidden
    model.eval()
    images = make_batch(draw, 1)['inputs']
    alone = model.extract(draw.arch, draw.side)
    assert not alone.head.training
    expected = alone.eval()(images)
    torch.testing.assert_close(model(images), expected)
    features = model.extract_feat(images, 'pre_logits')
    torch.testing.assert_close(features, alone.extract_feat(images, 'pre_logits'))
    # A mode set by hand counts.
    model.train().head.layers[0].norm.eval()
    before = copy.deepcopy(model.head.state_dict())
    model.set_draw(draw, 2)
    model.backward_step(make_batch(draw, 2), wrapper)
    for key, tensor in model.head.state_dict().items():
        assert torch.equal(tensor, before[key]), key


def test_copies_and_conversions_take_the_head_along(make_random):
    model = make_random('bottleneck')
    arch = SPACES['bottleneck'].smallest()
    model.backbone.set_arch(arch)
    images = images_of(arch)
    with torch.no_grad():
        expected = model(images)
        copied = copy.deepcopy(model)
        for parameter in model.parameters():
            parameter.zero_()
        assert torch.equal(copied(images), expected)
        assert not torch.equal(model(images), expected)
        assert (copied.float()(images.float()) - expected).abs().max() < 1e-3
    assert copied.backbone.owns(copied.head.fc.weight)
    assert not copied.backbone.owns(model.head.fc.weight)


def test_the_static_model_has_its_own_head(make_random):
    model = make_random('bottleneck')
    largest = SPACES['bottleneck'].largest()
    model.backbone.set_arch(largest)
    with torch.no_grad():
        expected = model(images_of(largest))
        static = static_model(model)
        assert (static(images_of(largest)) - expected).abs().max() < 1e-10
    assert static.head.in_channels == largest.widths[-1]


def test_heads_of_other_widths_are_refused():
    linear = dict(type='LinearClsHead', num_classes=4)
    for name, head, message in [
        ('bottleneck', dict(linear, in_channels=16), r'head.in_channels=16: leave it out.* 28\)'),
        ('fused_mbconv', dict(type='StackedLinearClsHead', num_classes=4, mid_channels=[7]),
         r'head.mid_channels=\[7\]: leave it out.*\[12\]'),
        ('bottleneck', nn.Linear(28, 4), 'head=Linear must be a config'),
    ]:  # fmt: skip
        with pytest.raises(UsageError, match=message) as error:
            make_classifier(name, head=head)
        assert '\n' not in str(error.value)
    # What is allocated may be said.
    assert make_classifier('bottleneck', head=dict(linear, in_channels=28)).shares_head


# ------------------------------------------------------------------ any space


def random_space(seed):
    """Up to three network stages of choices drawn from all that there are."""
    rng = np.random.default_rng(seed)

    def some(values):
        taken = rng.random(len(values)) < 0.5
        taken[rng.integers(len(values))] = True
        return [value for value, is_taken in zip(values, taken, strict=True) if is_taken]

    stages = [
        dict(
            channels=some([8, 16, 24]), stride=int(rng.integers(1, 3)), depths=some([1, 2, 3]),
            kernels=some([1, 3, 5]), expands=some([0.5, 1, 2]), act=some(['relu', 'silu']),
            kind=some(['mbconv', 'fused_mbconv', 'bottleneck', 'basic', 'conv']),
            group_widths=some([0, 1, 4]), se=some([False, SE]),
            skips=str(rng.choice(['end', 'anywhere'])), share=str(rng.choice(['block', 'stage'])),
        )
        for _ in range(rng.integers(1, 4))
    ]  # fmt: skip
    head = [dict(channels=0), dict(channels=[6, 9]), dict(channels=6, hidden_channels=[4, 5])]
    return space_of(stages, stem=dict(channels=some([4, 8])), head=head[rng.integers(3)])


@pytest.mark.parametrize('seed', range(8))
def test_subnets_of_random_spaces_equal_the_extracted(make_random, monkeypatch, seed):
    monkeypatch.setitem(SPACES, 'random', random_space(seed))
    model = make_random('random', KERNELS[seed % 2])
    for arch, side in itertools.product(archs_of(SPACES['random'], 5, seed), SIDES):
        model.backbone.set_arch(arch, side)
        alone = model.extract(arch, side).eval()
        assert sum(p.numel() for p in alone.parameters()) == count(arch).params
        with torch.no_grad():
            assert (model(images_of(arch)) - alone(images_of(arch))).abs().max() < 1e-10
