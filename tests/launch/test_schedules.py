"""Schedules that do not end when training ends are said in a line each."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.optim import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    MultiStepLR,
    OptimWrapper,
)
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop

from mmscale.launch.schedules import schedule_mistakes


def mistakes(by_epoch, *schedulers, val_begin=1):
    """Of a training of 100 iterations, or 10 epochs of 10."""
    kind = EpochBasedTrainLoop if by_epoch else IterBasedTrainLoop
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    built = [cls(OptimWrapper(optimizer), **settings) for cls, settings in schedulers]
    loop = object.__new__(kind)
    loop.val_begin = val_begin
    runner = SimpleNamespace(
        train_loop=loop, param_schedulers=built, max_iters=100, max_epochs=10 if by_epoch else 1,
        val_loop=object(),
    )  # fmt: skip
    return list(schedule_mistakes(runner))


@pytest.mark.parametrize(('by_epoch', 'length'), [(False, 100), (True, 10)])
def test_validation_that_begins_after_training_is_said(by_epoch, length):
    assert mistakes(by_epoch, val_begin=length) == []
    (line,) = mistakes(by_epoch, val_begin=length + 1)
    assert line.startswith(f'train_cfg.val_begin={length + 1}: nothing is validated')


@pytest.mark.parametrize('by_epoch', [False, True])
def test_schedules_that_end_with_training_are_none(by_epoch):
    found = mistakes(
        by_epoch,
        (LinearLR, dict(by_epoch=False, begin=0, end=20)),
        (CosineAnnealingLR, dict(by_epoch=False, begin=20, end=100)),
        (MultiStepLR, dict(by_epoch=False, milestones=[50, 99])),
        (ConstantLR, dict(by_epoch=False)),
    )
    assert found == []
    epochs = [(CosineAnnealingLR, dict(by_epoch=True, begin=0, end=10))]
    assert len(mistakes(by_epoch, *epochs)) == (not by_epoch)


@pytest.mark.parametrize(
    ('by_epoch', 'cls', 'settings', 'line'),
    [
        (
            False, CosineAnnealingLR, dict(by_epoch=False, begin=20, end=600),
            'param_scheduler.0 (CosineAnnealingLR): end=600 is after the end of training at 100 '
            'iterations, which stops in the midst of this schedule',
        ),
        (
            True, CosineAnnealingLR, dict(by_epoch=True, begin=0, end=12),
            'param_scheduler.0 (CosineAnnealingLR): end=12 is after the end of training at 10 '
            'epochs, which stops in the midst of this schedule',
        ),
        (
            False, LinearLR, dict(by_epoch=False, begin=100, end=600),
            'param_scheduler.0 (LinearLR): begin=100 has no effect, training ends at 100 '
            'iterations',
        ),
        (
            False, MultiStepLR, dict(by_epoch=False, milestones=[50, 100]),
            'param_scheduler.0 (MultiStepLR): milestones=[100] have no effect, training ends at '
            '100 iterations',
        ),
        (
            False, MultiStepLR, dict(by_epoch=True, milestones=[8]),
            'param_scheduler.0 (MultiStepLR): by_epoch=True never steps in a training that '
            'counts iterations',
        ),
    ],
)  # fmt: skip
def test_others_are_said_in_a_line(by_epoch, cls, settings, line):
    assert mistakes(by_epoch, (cls, settings)) == [line]
