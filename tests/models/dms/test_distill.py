"""DIST: the loss against its formula, and a teacher that is no part of the model."""

import numpy as np
import pytest
import torch
from mmpretrain.structures import DataSample

from mmscale.models.dms import DISTClassifier
from mmscale.models.dms.distill import dist_loss
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
