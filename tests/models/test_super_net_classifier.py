"""SuperNetClassifier: what an iteration trains in each mode."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from mmengine.optim import OptimWrapper

from mmscale.arch import HierarchicalSampler
from mmscale.models import ArchNet
from mmscale.models.backbones import index_of


@pytest.fixture
def draw(tiny_space):
    return HierarchicalSampler(tiny_space, 3, 'uniform').draw(1)


def losses_and_gradients(model, draw, batch, iteration=0):
    model.train()
    model.set_draw(draw, iteration)
    with model.backbone.slices():
        losses = model.subnet_losses(batch['inputs'], batch['data_samples'])
    model.zero_grad()
    model.parse_losses(losses)[0].backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    for name, parts in model.backbone.used_slices.items():
        whole = torch.zeros_like(parts[0].owner)
        for part in parts:
            whole[index_of(part.region)] += part.leaf.grad
        gradients[f'backbone.{name}'] = whole
    return losses, gradients


def assert_equal_gradients(found, expected):
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-12)


def total(*parts):
    """The sum of gradients by name."""
    return {
        name: sum(part[name] for part in parts if name in part)
        for name in set().union(*parts)
    }  # fmt: skip


def doubles(batch):
    return {**batch, 'inputs': batch['inputs'].double()}


def test_single_mode_is_the_extracted_networks_training(make_classifier, make_batch, draw):
    model = make_classifier().double()
    batch = doubles(make_batch(draw, 0))
    alone = model.extract(draw.arch, draw.side).train()
    losses, gradients = losses_and_gradients(model, draw, batch)
    expected = alone.loss(batch['inputs'], batch['data_samples'])
    assert list(losses) == list(expected) == ['loss']
    torch.testing.assert_close(losses['loss'], expected['loss'], rtol=1e-10, atol=0)
    expected['loss'].backward()
    torch.testing.assert_close(gradients['head.fc.weight'], alone.head.fc.weight.grad)
    squares = sum(g.square().sum() for g in gradients.values())
    torch.testing.assert_close(squares, sum(p.grad.square().sum() for p in alone.parameters()))


def test_both_sides_is_the_mean_of_two_single_passes(make_classifier, make_batch, draw):
    batch = doubles(make_batch(draw, 0))
    parts = []
    for side in ('left', 'right'):
        model = make_classifier().double()
        parts.append(losses_and_gradients(model, replace(draw, side=side), batch))
    model = make_classifier(mode='both_sides').double()
    losses, gradients = losses_and_gradients(model, draw, batch)
    assert list(losses) == ['left.loss', 'right.loss']
    for name, (single, _) in zip(losses, parts, strict=True):
        torch.testing.assert_close(losses[name], single['loss'] / 2)
    halves = [{name: g / 2 for name, g in part.items()} for _, part in parts]
    assert_equal_gradients(gradients, total(*halves))
    assert {len(parts) for parts in model.backbone.used_slices.values()} == {1, 2}


@pytest.mark.parametrize('teacher', ['scaling_stage', 'space'])
def test_sandwich_trains_the_largest_and_distils_into_the_drawn_one(
    make_classifier, make_batch, draw, teacher, tiny_space
):
    model = make_classifier(mode='sandwich', teacher=teacher, distill_weight=0.7).double()
    batch = doubles(make_batch(draw, 0))
    stage = draw.scaling_stage if teacher == 'scaling_stage' else -1
    largest = replace(tiny_space.largest(stage), resolution=draw.arch.resolution)
    assert largest != draw.arch

    # By hand: the largest on the labels, the drawn one on the largest one's fixed predictions.
    reference = copy.deepcopy(model).train()
    labels = torch.cat([sample.gt_label for sample in batch['data_samples']])

    def logits(arch):
        reference.backbone.set_arch(arch, draw.side)
        return reference(batch['inputs'])

    on_labels = F.cross_entropy(logits(largest), labels)
    teacher_logits = logits(largest).detach()
    student = logits(draw.arch).log_softmax(1)
    target = teacher_logits.softmax(1)
    distilled = 0.7 * (target * (target.log() - student)).sum(1).mean()
    reference.zero_grad()
    (on_labels + distilled).backward()
    expected = {n: p.grad for n, p in reference.named_parameters() if p.grad is not None}

    losses, gradients = losses_and_gradients(model, draw, batch)
    assert set(losses) == {'largest.loss', 'subnet.distill_loss'}
    torch.testing.assert_close(losses['largest.loss'], on_labels)
    torch.testing.assert_close(losses['subnet.distill_loss'], distilled)
    assert_equal_gradients(gradients, expected)


def test_distillation_sends_no_gradient_into_the_teacher(
    make_classifier, make_batch, draw, tiny_space
):
    """What only the largest subnet uses gets its gradient from the labels alone."""
    batch = doubles(make_batch(draw, 0))
    model = make_classifier(mode='sandwich', warmup_iters=1).double()
    _, warm = losses_and_gradients(model, draw, batch, iteration=0)
    model = make_classifier(mode='sandwich', distill_weight=100.0).double()
    losses, both = losses_and_gradients(model, draw, batch, iteration=1)
    assert losses['subnet.distill_loss'] > 1e-3
    small = make_classifier().double()
    _, alone = losses_and_gradients(small, draw, batch)
    teachers_own = {
        name: (alone[name] == 0) if name in alone else torch.ones_like(g, dtype=torch.bool)
        for name, g in both.items()
    }
    assert sum(int(mask.sum()) for mask in teachers_own.values()) > 50
    for name, mask in teachers_own.items():
        torch.testing.assert_close(both[name][mask], warm[name][mask], rtol=1e-9, atol=1e-12)
    assert any(not torch.allclose(both[n], warm[n]) for n in warm)


def test_warm_up_trains_the_largest_alone(make_classifier, make_batch, draw, tiny_space):
    model = make_classifier(mode='sandwich', warmup_iters=5)
    batch = make_batch(draw, 0)
    losses, _ = losses_and_gradients(model, draw, batch, iteration=4)
    assert set(losses) == {'largest.loss'}
    largest = model.extract(tiny_space.largest(draw.scaling_stage))
    found = {name: tuple(part.leaf.shape) for name, (part,) in model.backbone.used_slices.items()}
    assert found == {n: tuple(p.shape) for n, p in largest.backbone.named_parameters()}
    model.backbone.forget_slices()
    losses, _ = losses_and_gradients(model, draw, batch, iteration=5)
    assert set(losses) == {'largest.loss', 'subnet.distill_loss'}


@pytest.mark.parametrize('mode', ['single', 'sandwich'])
def test_warm_up_trains_the_middle_of_the_scaling_stage(make_classifier, make_batch, draw, mode):
    model = make_classifier(mode=mode, warmup_iters=5, warmup_subnet='middle')
    losses, _ = losses_and_gradients(model, draw, make_batch(draw, 0), iteration=4)
    assert set(losses) == {'middle.loss'}
    middle = model.middle()
    # Of depths 1, 2 the lower, of 1, 2, 3 the middle; scaling stage 0 scales nothing.
    assert draw.scaling_stage == 0 and middle.depths == (1, 2)
    assert middle.resolution == draw.arch.resolution
    found = {name: tuple(part.leaf.shape) for name, (part,) in model.backbone.used_slices.items()}
    alone = model.extract(middle).backbone
    assert found == {n: tuple(p.shape) for n, p in alone.named_parameters()}
    model.backbone.forget_slices()
    losses, _ = losses_and_gradients(model, draw, make_batch(draw, 0), iteration=5)
    assert not any(key.startswith('middle') for key in losses)


@pytest.mark.parametrize('mode', ['single', 'both_sides', 'sandwich'])
def test_train_step_updates_and_forgets(make_classifier, make_batch, draw, mode):
    model = make_classifier(mode=mode).train()
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    before = model.head.fc.weight.detach().clone()
    model.set_draw(draw, 0)
    log = model.train_step(make_batch(draw, 0), wrapper)
    assert torch.isfinite(log['loss'])
    assert not torch.equal(model.head.fc.weight, before)
    assert model.backbone.used_slices == {}
    assert all(p.grad is None for p in model.parameters())


def test_training_without_the_hook_is_refused(make_classifier, make_batch, draw):
    model = make_classifier()
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(RuntimeError, match=r'HierarchicalSamplerHook.* to custom_hooks'):
        model.train_step(make_batch(draw, 0), wrapper)


def test_bad_settings_are_refused(make_classifier, refuses):
    refuses(
        make_classifier, mode=['all'], teacher=['me'], warmup_iters=[-1], warmup_subnet=['first']
    )
    with pytest.raises(TypeError, match='backbone must be a SuperNet, got ArchNet'):
        make_classifier(backbone=dict(type='mmscale.ArchNet', arch='scalenet-s0'))


def test_extracted_classifier_is_its_own(make_classifier, draw):
    model = make_classifier()
    alone = model.extract(draw.arch, 'right')
    assert type(alone.backbone) is ArchNet
    before = {key: tensor.clone() for key, tensor in alone.state_dict().items()}
    for tensor in model.state_dict().values():
        tensor.fill_(3)
    alone.init_weights()
    assert all(torch.equal(tensor, before[key]) for key, tensor in alone.state_dict().items())
