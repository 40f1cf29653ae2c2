"""HierarchicalSamplerHook: chooses the subnet of every training iteration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.runner import Runner

from mmscale.arch import HierarchicalSampler
from mmscale.arch.sampling import SIDES
from mmscale.engine.space_settings import check_settings
from mmscale.engine.train_data import TrainDataHook, check_size, check_sizes, make_seeded
from mmscale.engine.wrappers import is_stand_in, unwrapped_model
from mmscale.errors import UsageError
from mmscale.models import SuperNetTraining
from mmscale.models.slice_step import check_steps_slices
from mmscale.registry import HOOKS


@HOOKS.register_module()
class HierarchicalSamplerHook(TrainDataHook):
    """Sets the subnet of each iteration of super-supernet training, and its resolution.

    What is drawn is a pure function of (seed, iteration): ranks agree without a broadcast, the
    data sampler knows the resolution before it loads the batch, and a resumed run goes on with
    the subnets that it would have seen. Datasets, wrappers and samplers may be of any kind.

    Args:
        distribution: Probabilities of the scaling stages, see
            :class:`mmscale.arch.HierarchicalSampler`.
        sides: Sides of the channel coupling to draw from.
        seed: Seed of the draws; by default the runner's.

    Raises:
        TypeError: The model is of the wrong kind.
        ValueError: The run has a setting that does nothing, or harm, to a super-supernet; or the
            images do not get the resolution that is drawn.
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

    def before_run(self, runner: Runner) -> None:
        """Checks what else the run is to do."""
        check_settings(runner.cfg)

    def before_train(self, runner: Runner) -> None:
        """Connects sampler, data loader, model and optimizer."""
        model = unwrapped_model(runner)
        if is_stand_in(runner, model):
            return
        if not isinstance(model, SuperNetTraining):
            raise TypeError(
                f'HierarchicalSamplerHook needs model.type=mmscale.SuperNetClassifier or '
                f'mmscale.SuperNetDetector, got {type(model).__name__}'
            )
        if not set(self.sides) <= set(model.backbone.sides):
            raise UsageError(
                f'custom_hooks: HierarchicalSamplerHook.sides={self.sides} must lie in '
                f'model.backbone.sides={model.backbone.sides}'
            )
        if model.warmup_iters >= runner.max_iters:
            runner.logger.warning(
                'model.warmup_iters=%d is not below max_iters=%d: the largest subnet alone will '
                'be trained, and no drawn one',
                model.warmup_iters,
                runner.max_iters,
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
        make_seeded(runner).resolution_schedule = self._sampler.resolution
        super().before_train(runner)
        check_sizes(
            runner.train_dataloader.dataset,
            model.backbone.space.resolutions,
            'train_dataloader.dataset',
        )
        check_steps_slices(runner.optim_wrapper.optimizer)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Draws the subnet of this iteration.

        Raises:
            ValueError: The images are not of its resolution.
        """
        if self._sampler is None:
            return
        draw = self._sampler.draw(runner.iter)
        inputs = data_batch.get('inputs', ()) if isinstance(data_batch, dict) else ()
        check_size(inputs, draw.arch.resolution, 'train_dataloader.dataset')
        self._model.set_draw(draw, runner.iter)
