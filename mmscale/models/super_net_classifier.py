"""SuperNetClassifier: trains a SuperNet on image classification."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import torch
import torch.nn.functional as F
from mmengine.optim import OptimWrapper
from mmpretrain.models import ImageClassifier

from mmscale.arch import Arch, SubnetDraw
from mmscale.models.backbones import SuperNet
from mmscale.registry import MODELS

MODES = ('single', 'both_sides', 'sandwich')
TEACHERS = ('scaling_stage', 'space')


@MODELS.register_module()
class SuperNetClassifier(ImageClassifier):
    """An image classifier whose backbone is a :class:`SuperNet`.

    Args:
        backbone: Config of the SuperNet, or the module.
        mode: What one iteration trains. ``single``: the drawn subnet (the paper).
            ``both_sides``: the drawn subnet on both sides, half the loss each (the reference's
            synchronous mode). ``sandwich``: the largest subnet on the labels and the drawn one
            on the largest one's predictions (in-place distillation), after a warm-up on the
            largest alone; what small data needs.
        warmup_iters: Iterations of the sandwich's warm-up.
        warmup_scaling_stage: Scaling stage of the warm-up: features form soonest where the
            images are neither tiny nor dear.
        teacher: The sandwich's largest subnet: of the drawn ``scaling_stage`` or of the whole
            ``space``; at the drawn resolution either way.
        distill_weight: Weight of the distillation loss.
        **kwargs: As for mmpretrain's ``ImageClassifier``.

    Raises:
        ValueError: A setting is not allowed.
        TypeError: The backbone is not a SuperNet.
    """

    def __init__(
        self,
        backbone: dict | SuperNet,
        mode: str = 'single',
        warmup_iters: int = 0,
        warmup_scaling_stage: int = 0,
        teacher: str = 'scaling_stage',
        distill_weight: float = 1.0,
        **kwargs: object,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f'mode={mode!r} is not one of {", ".join(MODES)}')
        if teacher not in TEACHERS:
            raise ValueError(f'teacher={teacher!r} is not one of {", ".join(TEACHERS)}')
        if warmup_iters < 0:
            raise ValueError(f'warmup_iters={warmup_iters} must be 0 or more')
        super().__init__(backbone=backbone, **kwargs)
        if not isinstance(self.backbone, SuperNet):
            raise TypeError(f'backbone must be a SuperNet, got {type(self.backbone).__name__}')
        self.mode = mode
        self.warmup_iters = warmup_iters
        self.warmup_scaling_stage = warmup_scaling_stage
        self.teacher = teacher
        self.distill_weight = distill_weight
        self._draw: SubnetDraw | None = None
        self._iteration = 0

    def set_draw(self, draw: SubnetDraw, iteration: int) -> None:
        """Sets what the next :meth:`train_step` trains."""
        self._draw = draw
        self._iteration = iteration

    def _largest(self, draw: SubnetDraw) -> Arch:
        space = self.backbone.space
        stage = draw.scaling_stage if self.teacher == 'scaling_stage' else -1
        return replace(space.largest(stage), resolution=draw.arch.resolution)

    def _features(self, inputs: torch.Tensor, arch: Arch, side: str) -> tuple[torch.Tensor, ...]:
        self.backbone.set_arch(arch, side)
        return self.extract_feat(inputs)

    def subnet_losses(self, inputs: torch.Tensor, data_samples: list) -> dict:
        """Losses of everything the mode trains on one batch (N, channels, H, W).

        Raises:
            RuntimeError: No subnet was drawn; the HierarchicalSamplerHook is missing.
        """
        if self._draw is None:
            raise RuntimeError(
                'SuperNetClassifier has no subnet to train: add '
                "dict(type='mmscale.HierarchicalSamplerHook') to custom_hooks"
            )
        draw = self._draw
        if self.mode == 'single':
            return self.head.loss(self._features(inputs, draw.arch, draw.side), data_samples)
        losses = {}
        if self.mode == 'both_sides':
            for side in ('left', 'right'):
                features = self._features(inputs, draw.arch, side)
                for key, value in self.head.loss(features, data_samples).items():
                    losses[f'{side}.{key}'] = value / 2 if 'loss' in key else value
            return losses
        features = self._features(inputs, self._largest(draw), draw.side)
        for key, value in self.head.loss(features, data_samples).items():
            losses[f'largest.{key}'] = value
        if self._iteration >= self.warmup_iters:
            with torch.no_grad():
                target = self.head(features).softmax(dim=1)
            logits = self.head(self._features(inputs, draw.arch, draw.side))
            divergence = F.kl_div(logits.log_softmax(dim=1), target, reduction='batchmean')
            losses['subnet.distill_loss'] = self.distill_weight * divergence
        return losses

    def backward_step(self, data: dict, optim_wrapper: OptimWrapper) -> dict[str, torch.Tensor]:
        """The first half of a training step: forward and backward passes.

        Returns:
            Values for the log.
        """
        with optim_wrapper.optim_context(self):
            data = self.data_preprocessor(data, True)
            losses = self.subnet_losses(data['inputs'], data['data_samples'])
        loss, log_vars = self.parse_losses(losses)
        optim_wrapper.backward(optim_wrapper.scale_loss(loss))
        return log_vars

    def update_step(self, optim_wrapper: OptimWrapper) -> None:
        """The second half: the optimizer's step, once gradients have been accumulated."""
        if optim_wrapper.should_update():
            optim_wrapper.step()
            optim_wrapper.zero_grad()
            self.backbone.forget_used_regions()

    def train_step(self, data: dict, optim_wrapper: OptimWrapper) -> dict[str, torch.Tensor]:
        """Trains the subnets of one iteration on one batch."""
        log_vars = self.backward_step(data, optim_wrapper)
        self.update_step(optim_wrapper)
        return log_vars

    def extract(self, arch: Arch, side: str = 'left') -> ImageClassifier:
        """A stand-alone classifier with its own copy of a subnet's weights.

        Raises:
            ValueError: The Arch is not in the space, or the side is unknown.
        """
        classifier = ImageClassifier(
            backbone=self.backbone.extract(arch, side),
            neck=deepcopy(self.neck),
            head=deepcopy(self.head),
            data_preprocessor=deepcopy(self.data_preprocessor),
        )
        # A runner that trains it must not draw new weights.
        classifier.is_init = True
        return classifier
