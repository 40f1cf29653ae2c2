"""Distillation: losses against their formulas, and a teacher that is no part of the model."""

import numpy as np
import pytest
import torch
from mmpretrain.structures import DataSample

from mmscale.models import CausalLM, DMSModel
from mmscale.models.dms import (
    DISTClassifier,
    DistilledCausalLM,
    apply_pruning,
    plan_pruning,
    pruned_model,
)
from mmscale.models.dms.distill import dist_loss, token_loss
from mmscale.registry import MODELS


def test_loss_is_one_minus_both_correlations():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 5, 4, generator=generator)
    ours, theirs = ((x / 2).softmax(1).numpy() for x in (student, teacher))
    inter = 1 - np.mean([np.corrcoef(ours[i], theirs[i])[0, 1] for i in range(5)])
    intra = 1 - np.mean([np.corrcoef(ours[:, j], theirs[:, j])[0, 1] for j in range(4)])
    assert dist_loss(student, teacher, 2.0).item() == pytest.approx(4 * (inter + intra), rel=1e-4)
    assert dist_loss(student, student + 3, 1.0).item() == pytest.approx(0, abs=1e-6)


def classifier(space):
    backbone = dict(type='mmscale.ArchNet', arch=space.largest(0))
    head = dict(type='mmpretrain.LinearClsHead', num_classes=4, in_channels=8)
    neck = dict(type='mmpretrain.GlobalAveragePooling')
    return dict(type='mmpretrain.ImageClassifier', backbone=backbone, neck=neck, head=head)


def test_the_teacher_is_no_part_of_the_model(tiny_space, tmp_path):
    config = classifier(tiny_space)
    torch.save({'state_dict': MODELS.build(config).state_dict()}, tmp_path / 'teacher.pth')
    parts = {key: value for key, value in config.items() if key != 'type'}
    model = DISTClassifier(config, str(tmp_path / 'teacher.pth'), **parts).train()
    assert model.state_dict().keys() == MODELS.build(config).state_dict().keys()
    assert not model._teacher[0].training
    samples = [DataSample().set_gt_label(i) for i in range(3)]
    losses = model(torch.randn(3, 1, 9, 9), samples, mode='loss')
    losses['distill_loss'].backward()
    assert model.head.fc.weight.grad.abs().max() > 0
    assert all(p.grad is None for p in model._teacher[0].parameters())
    torch.save({'weight': torch.zeros(1)}, tmp_path / 'other.pth')
    with pytest.raises(ValueError, match=r'teacher_checkpoint=.*other\.pth: .*Missing key'):
        DISTClassifier(config, str(tmp_path / 'other.pth'), **parts)


def test_token_loss_is_the_divergence_of_the_teacher_from_the_student():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 3, 5, 7, generator=generator).double()
    ours, theirs = ((x / 2).softmax(-1) for x in (student, teacher))
    expected = (theirs * (theirs / ours).log()).sum(-1).mean()
    assert token_loss(student, teacher, 2.0).item() == pytest.approx(4 * expected.item(), rel=1e-5)
    assert token_loss(student, student + 3, 1.0).item() == pytest.approx(0, abs=1e-6)
    # Of the same gradient at any temperature, where predictions are nearly alike.
    slopes = []
    for temperature in (1.0, 8.0):
        near = (0.02 * student).requires_grad_()
        token_loss(near, 0.02 * teacher, temperature).backward()
        slopes.append(near.grad)
    torch.testing.assert_close(*slopes, rtol=0.02, atol=4e-6)


LANGUAGE = dict(
    model_type='llama',
    vocab_size=30,
    hidden_size=24,
    intermediate_size=20,
    num_hidden_layers=2,
    num_attention_heads=4,
    bos_token_id=None,
    eos_token_id=None,
)


@pytest.fixture
def teacher(tmp_path):
    """File of a language model's weights, and the model."""
    pytest.importorskip('transformers')
    torch.manual_seed(0)
    model = CausalLM(LANGUAGE)
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'teacher.pth')
    return str(tmp_path / 'teacher.pth'), model.eval()


def tokens(seed=0):
    return torch.randint(30, (3, 9), generator=torch.Generator().manual_seed(seed))


def test_a_language_model_and_its_teacher(teacher):
    file, plain = teacher
    model = DistilledCausalLM(LANGUAGE, file, distill_weight=0.5, temperature=2.0)
    assert model.state_dict().keys() == plain.state_dict().keys()
    losses = model(tokens(), mode='loss')
    assert losses['language_loss'] > 0
    with torch.no_grad():
        expected = token_loss(model(tokens())[:, :-1], plain(tokens())[:, :-1], 2.0)
    assert losses['distill_loss'].item() == pytest.approx(0.5 * expected.item(), rel=1e-5)
    losses['distill_loss'].backward()
    assert model.language_model.lm_head.weight.grad.abs().max() > 0
    assert all(p.grad is None for p in model._teacher[0].parameters())
    assert not model.train()._teacher[0].training
    model.load_state_dict(plain.state_dict())
    assert model(tokens(), mode='loss')['distill_loss'].item() == pytest.approx(0, abs=1e-6)
    assert set(model(tokens(), mode='predict')[0]) == {'cross_entropy', 'tokens'}


def test_a_teacher_of_another_width_has_the_same_tokens(teacher, tmp_path):
    file, _ = teacher
    smaller = {**LANGUAGE, 'intermediate_size': 8}
    assert DistilledCausalLM(smaller, file, teacher=LANGUAGE)(tokens(), mode='loss')
    with pytest.raises(ValueError, match=r'teacher_checkpoint=.*teacher\.pth: .*size mismatch'):
        DistilledCausalLM(smaller, file)
    with pytest.raises(ValueError, match='vocab_size=30 must be 31'):
        DistilledCausalLM({**LANGUAGE, 'vocab_size': 31}, file, teacher=LANGUAGE)
    for options in (dict(temperature=0), dict(distill_weight='much')):
        with pytest.raises(ValueError, match=f'{next(iter(options))}='):
            DistilledCausalLM(LANGUAGE, file, **options)


def test_the_whole_model_guides_the_search_and_what_is_left(teacher):
    """The teacher is masked and pruned in neither."""
    file, plain = teacher
    config = dict(type='mmscale.DistilledCausalLM', config=LANGUAGE, teacher_checkpoint=file)
    search = DMSModel(
        config, 0.6, 'params', input_shape=(9,), pipeline='p', pretrained=file
    ).train()
    search.init_weights()
    search.set_budget(search.goal)
    for gate in search.gates.values():
        gate.pruning_ratio.data.fill_(0.4)
    losses = search(tokens(), mode='loss')
    # Masks shut what the teacher goes on to use.
    assert losses['distill_loss'] > 1e-4
    sum(losses.values()).backward()
    assert all(gate.pruning_ratio.grad for gate in search.gates.values())
    search.masks.remove()
    keep = {g.name: range(max(1, g.size // 2)) for g in search.groups.all}
    pruning = plan_pruning(search.model, search.groups, keep)
    small = pruned_model(config, pruning.to_json())
    small.load_state_dict(apply_pruning(search.model, pruning).state_dict())
    torch.testing.assert_close(small._teacher[0](tokens()), plain(tokens()))
    assert small(tokens(), mode='loss')['distill_loss'] > 1e-4
