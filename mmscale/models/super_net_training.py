"""What models around a SuperNet share: which subnets an iteration trains, and how it steps.

One iteration, and who keeps what for whom on the way:

1. ``HierarchicalSamplerHook`` draws a :class:`~mmscale.arch.SubnetDraw` from (seed, iteration)
   and leaves it with the model (``set_draw``). The data sampler has drawn the same before, so
   that the batch comes in the drawn resolution.
2. ``train_step`` runs each subnet of the mode: ``backbone.set_arch`` chooses it, the forward pass
   runs on leaves, which are views of the SuperNet's weights (:meth:`SuperNet.slices`). Gradients
   have the size of the subnet, and add up over iterations under gradient accumulation.
3. Where the optimizer is to step, :func:`~mmscale.models.step_slices` puts the union of what was
   used into it, for as long as the step takes. On several processes
   :class:`~mmscale.engine.SliceParallel` first averages the gradients of just that.
4. ``update_step`` clears gradients and the record of what was used.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace

import torch
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from torch.optim import Optimizer

from mmscale.arch import Arch, SubnetDraw
from mmscale.arch.checks import choice, integer
from mmscale.cost import Cost, count_parts
from mmscale.errors import UsageError
from mmscale.models.backbones import SuperNet
from mmscale.models.slice_step import step_slices

MODES = ('single', 'both_sides', 'sandwich')
TEACHERS = ('scaling_stage', 'space')
WARMUP_SUBNETS = ('largest', 'middle', 'drawn')


def halved(name: str, losses: dict) -> dict:
    """Half of a subnet's losses, under names that begin with `name`; other values as they are."""

    def half(value: torch.Tensor | list[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
        return [part / 2 for part in value] if isinstance(value, list) else value / 2

    return {
        f'{name}.{key}': half(value) if 'loss' in key else value for key, value in losses.items()
    }


class SuperNetTraining(ABC):
    """Mixed into a model whose ``backbone`` is a :class:`SuperNet`; see the top of this file."""

    backbone: SuperNet

    def set_training(
        self,
        mode: str,
        warmup_iters: int = 0,
        warmup_scaling_stage: int = 0,
        teacher: str = 'scaling_stage',
        warmup_subnet: str | None = None,
    ) -> None:
        """Sets what an iteration trains; to be called once the model is built.

        Args:
            mode: ``single``, ``both_sides`` or ``sandwich``.
            warmup_iters: Iterations of the warm-up.
            warmup_scaling_stage: Scaling stage of the warm-up.
            teacher: The sandwich's largest subnet: of the drawn ``scaling_stage`` or of the
                whole ``space``.
            warmup_subnet: What the warm-up trains on the labels: the ``largest`` subnet, the
                ``middle`` one of its scaling stage (the middle of every choice), or what is
                ``drawn``; by default the largest in a sandwich and else what is drawn.

        Raises:
            ValueError: A setting is not allowed.
            TypeError: The backbone is not a SuperNet.
        """
        choice('mode', mode, MODES)
        choice('teacher', teacher, TEACHERS)
        integer('warmup_iters', warmup_iters, 0)
        integer('warmup_scaling_stage', warmup_scaling_stage, 0)
        if not isinstance(self.backbone, SuperNet):
            raise TypeError(f'backbone must be a SuperNet, got {type(self.backbone).__name__}')
        if mode == 'both_sides' and len(self.backbone.sides) == 1:
            raise UsageError(
                f"mode='both_sides' does not fit backbone.sides={self.backbone.sides}"
            )
        self.mode = mode
        self.warmup_iters = warmup_iters
        self.warmup_scaling_stage = warmup_scaling_stage
        self.teacher = teacher
        if warmup_subnet is None:
            warmup_subnet = 'largest' if mode == 'sandwich' else 'drawn'
        self.warmup_subnet = choice('warmup_subnet', warmup_subnet, WARMUP_SUBNETS)
        self._draw: SubnetDraw | None = None
        self._iteration = 0

    def set_draw(self, draw: SubnetDraw, iteration: int) -> None:
        """Sets what the next :meth:`train_step` trains."""
        self._draw = draw
        self._iteration = iteration

    @property
    def draw(self) -> SubnetDraw:
        """What the present iteration trains.

        Raises:
            RuntimeError: No subnet was drawn; the HierarchicalSamplerHook is missing.
        """
        if self._draw is None:
            raise RuntimeError(
                f'{type(self).__name__} has no subnet to train: add '
                "dict(type='mmscale.HierarchicalSamplerHook') to custom_hooks"
            )
        return self._draw

    @property
    def warms_up(self) -> bool:
        """Whether the present iteration is one of the warm-up."""
        return self._iteration < self.warmup_iters

    def largest(self) -> Arch:
        """The sandwich's largest subnet, at the drawn resolution."""
        stage = self.draw.scaling_stage if self.teacher == 'scaling_stage' else -1
        return replace(self.backbone.space.largest(stage), resolution=self.draw.arch.resolution)

    def middle(self) -> Arch:
        """The middle of every choice in the drawn scaling stage, at the drawn resolution."""
        space, draw = self.backbone.space, self.draw
        scalings = space.scalings(draw.scaling_stage)
        arch = space.decode(space.extreme(True) // 2, scalings[len(scalings) // 2])
        return replace(arch, resolution=draw.arch.resolution)

    def subnet_losses(self, inputs: torch.Tensor, data_samples: list) -> dict:
        """Losses of everything the mode trains on one batch (N, channels, H, W).

        Raises:
            RuntimeError: No subnet was drawn; the HierarchicalSamplerHook is missing.
        """
        draw = self.draw
        if self.warms_up and self.warmup_subnet != 'drawn':
            whole = self.largest() if self.warmup_subnet == 'largest' else self.middle()
            losses = self.losses_of(whole, draw.side, inputs, data_samples)
            return {f'{self.warmup_subnet}.{key}': value for key, value in losses.items()}
        if self.mode == 'single':
            return self.losses_of(draw.arch, draw.side, inputs, data_samples)
        if self.mode == 'sandwich':
            return self.sandwich_losses(inputs, data_samples)
        losses = {}
        for side in ('left', 'right'):
            losses |= halved(side, self.losses_of(draw.arch, side, inputs, data_samples))
        return losses

    def losses_of(self, arch: Arch, side: str, inputs: torch.Tensor, data_samples: list) -> dict:
        """Losses of one subnet on the labels."""
        self.backbone.set_arch(arch, side)
        return self.loss(inputs, data_samples)

    @abstractmethod
    def loss(self, inputs: torch.Tensor, data_samples: list) -> dict:
        """Losses of the subnet that was chosen last, on the labels."""

    @abstractmethod
    def sandwich_losses(self, inputs: torch.Tensor, data_samples: list) -> dict:
        """Losses of the largest subnet and of the drawn one."""

    @abstractmethod
    def extract(self, arch: Arch, side: str = 'left') -> BaseModel:
        """A stand-alone model with its own copy of a subnet's weights.

        Raises:
            ValueError: The Arch is not in the space, or the side is unknown.
        """

    def cost_after_stages(self, arch: Arch) -> Cost:
        """Cost of what follows the network stages of an Arch: by default of its own head."""
        return count_parts(arch)[-1].cost

    def backward_step(self, data: dict, optim_wrapper: OptimWrapper) -> dict[str, torch.Tensor]:
        """The first half of a training step: forward and backward passes.

        Returns:
            Values for the log.
        """
        with optim_wrapper.optim_context(self), self.backbone.slices():
            data = self.data_preprocessor(data, True)
            losses = self.subnet_losses(data['inputs'], data['data_samples'])
        loss, log_vars = self.parse_losses(losses)
        optim_wrapper.backward(optim_wrapper.scale_loss(loss))
        return log_vars

    def update_step(
        self, optim_wrapper: OptimWrapper, reduce: Callable[[Optimizer], object] | None = None
    ) -> None:
        """The second half: the optimizer's step, once gradients have been accumulated.

        Args:
            optim_wrapper: Holds the parameters.
            reduce: Called before the step with the optimizer, whose parameters are then those
                that it is to step, with their gradients.
        """
        if optim_wrapper.should_update():
            with step_slices(optim_wrapper.optimizer, self.backbone):
                if reduce is not None:
                    reduce(optim_wrapper.optimizer)
                optim_wrapper.step()
                optim_wrapper.zero_grad()
            self.backbone.forget_slices()

    def train_step(self, data: dict, optim_wrapper: OptimWrapper) -> dict[str, torch.Tensor]:
        """Trains the subnets of one iteration on one batch."""
        log_vars = self.backward_step(data, optim_wrapper)
        self.update_step(optim_wrapper)
        return log_vars
