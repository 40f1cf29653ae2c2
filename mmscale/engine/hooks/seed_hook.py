"""IterationSeedHook: all that is drawn at random is a function of (seed, iteration, rank)."""

from __future__ import annotations

from mmengine.runner import Runner
from mmengine.runner.utils import set_random_seed
from numpy.random import SeedSequence

from mmscale.engine.train_data import TrainDataHook, make_seeded
from mmscale.registry import HOOKS


@HOOKS.register_module()
class IterationSeedHook(TrainDataHook):
    """Seeds Python, NumPy and torch before every training iteration, and for every image.

    Drop path, dropout, batch augmentations and what pipelines, dataset wrappers and samplers draw
    then do not depend on what came before, so that a resumed run equals one that was never
    interrupted.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """Gives the images seeds, where no sampler does."""
        make_seeded(runner)
        super().before_train(runner)

    def before_train_iter(self, runner: Runner, *_: object, **__: object) -> None:
        """Seeds the iteration."""
        sequence = SeedSequence([runner.seed, runner.iter, runner.rank])
        set_random_seed(int(sequence.generate_state(1)[0]))
