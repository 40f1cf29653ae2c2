"""IterationSeedHook: what a model draws at random is a function of (seed, iteration, rank)."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.runner.utils import set_random_seed
from numpy.random import SeedSequence

from mmscale.registry import HOOKS


@HOOKS.register_module()
class IterationSeedHook(Hook):
    """Seeds Python, NumPy and torch before every training iteration.

    Drop path, dropout and batch augmentations then do not depend on what came before, so that a
    resumed run equals one that was never interrupted.
    """

    priority = 'VERY_HIGH'

    def before_train_iter(self, runner: Runner, *_: object, **__: object) -> None:
        """Seeds the iteration."""
        sequence = SeedSequence([runner.seed, runner.iter, runner.rank])
        set_random_seed(int(sequence.generate_state(1)[0]))
