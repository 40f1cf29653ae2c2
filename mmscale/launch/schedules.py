"""Schedules of a training that do not fit its length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmengine.runner import Runner

# What MMEngine's schedulers have as their end where none is given.
_NEVER = int(1e9)


def schedule_mistakes(runner: Runner) -> Iterator[str]:
    """Says in a line each what of a training's schedulers has no effect, or is cut off.

    Args:
        runner: Its train loop and schedulers are built.
    """
    from mmengine.runner import IterBasedTrainLoop

    schedulers = runner.param_schedulers or []
    if isinstance(schedulers, dict):
        schedulers = [part for parts in schedulers.values() for part in parts]
    counts_iterations = isinstance(runner.train_loop, IterBasedTrainLoop)
    length = runner.max_iters if counts_iterations else runner.max_epochs
    begin = getattr(runner.train_loop, 'val_begin', 0)
    if runner.val_loop is not None and begin > length:
        yield f'train_cfg.val_begin={begin}: nothing is validated, training ends at {length}'
    for index, scheduler in enumerate(schedulers):
        name = f'param_scheduler.{index} ({type(scheduler).__name__})'
        if scheduler.by_epoch and counts_iterations:
            yield f'{name}: by_epoch=True never steps in a training that counts iterations'
            continue
        unit, last = 'iterations', runner.max_iters
        if scheduler.by_epoch:
            unit, last = 'epochs', runner.max_epochs
        late = [step for step in getattr(scheduler, 'milestones', ()) if step >= last]
        if scheduler.begin >= last:
            yield f'{name}: begin={scheduler.begin} has no effect, training ends at {last} {unit}'
        elif last < scheduler.end < _NEVER:
            yield (
                f'{name}: end={scheduler.end} is after the end of training at {last} {unit}, '
                'which stops in the midst of this schedule'
            )
        elif late:
            yield f'{name}: milestones={late} have no effect, training ends at {last} {unit}'
