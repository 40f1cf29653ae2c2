"""HierarchicalSamplerHook: chooses the subnet of every training iteration."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmscale.arch import HierarchicalSampler
from mmscale.arch.sampling import SIDES
from mmscale.datasets import ResolutionSampler
from mmscale.engine.wrappers import unwrapped_model
from mmscale.models import SliceUpdate, SuperNetTraining
from mmscale.registry import HOOKS


@HOOKS.register_module()
class HierarchicalSamplerHook(Hook):
    """Sets the subnet of each iteration of super-supernet training, and its resolution.

    What is drawn is a pure function of (seed, iteration): ranks agree without a broadcast, the
    data sampler knows the resolution before it loads the batch, and a resumed run goes on with
    the subnets that it would have seen. The hook also keeps the optimizer off everything that
    an iteration did not use (:class:`mmscale.models.SliceUpdate`).

    Args:
        distribution: Probabilities of the scaling stages, see
            :class:`mmscale.arch.HierarchicalSampler`.
        sides: Sides of the channel coupling to draw from.
        seed: Seed of the draws; by default the runner's.

    Raises:
        TypeError: The model or the train data loader's sampler is of the wrong kind.
    """

    priority = 'HIGH'

    def __init__(
        self,
        distribution: str = 'choices',
        sides: Sequence[str] = SIDES,
        seed: int | None = None,
    ) -> None:
        self.distribution = distribution
        self.sides = tuple(sides)
        self.seed = seed
        self._sampler: HierarchicalSampler | None = None

    def before_train(self, runner: Runner) -> None:
        """Connects sampler, data loader, model and optimizer."""
        model = unwrapped_model(runner)
        if not isinstance(model, SuperNetTraining):
            raise TypeError(
                f'HierarchicalSamplerHook needs model.type=mmscale.SuperNetClassifier or '
                f'mmscale.SuperNetDetector, got {type(model).__name__}'
            )
        data_sampler = runner.train_dataloader.sampler
        if not isinstance(data_sampler, ResolutionSampler):
            raise TypeError(
                f'HierarchicalSamplerHook needs train_dataloader.sampler.type='
                f'mmscale.ResolutionSampler, got {type(data_sampler).__name__}'
            )
        self._sampler = HierarchicalSampler(
            model.backbone.space,
            seed=runner.seed if self.seed is None else self.seed,
            distribution=self.distribution,
            sides=self.sides,
            warmup_iters=model.warmup_iters,
            warmup_scaling_stage=model.warmup_scaling_stage,
        )
        self._model = model
        data_sampler.batch_size = runner.train_dataloader.batch_size
        data_sampler.resolution_schedule = self._sampler.resolution
        SliceUpdate(runner.optim_wrapper.optimizer, model.backbone)

    def before_train_iter(self, runner: Runner, *_: object, **__: object) -> None:
        """Draws the subnet of this iteration."""
        self._model.set_draw(self._sampler.draw(runner.iter), runner.iter)
