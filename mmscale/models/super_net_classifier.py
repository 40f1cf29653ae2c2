"""SuperNetClassifier: trains a SuperNet on image classification."""

from __future__ import annotations

import logging
from copy import deepcopy

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from mmpretrain.models import ImageClassifier

from mmscale.arch import Arch
from mmscale.models.backbones import SuperNet
from mmscale.models.super_net_training import SuperNetTraining
from mmscale.registry import MODELS


@MODELS.register_module()
class SuperNetClassifier(SuperNetTraining, ImageClassifier):
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
            images are neither tiny nor expensive.
        teacher: The sandwich's largest subnet: of the drawn ``scaling_stage`` or of the whole
            ``space``; at the drawn resolution either way.
        distill_weight: Weight of the distillation loss.
        **kwargs: As for mmpretrain's ``ImageClassifier``; with ``train_cfg.augments`` (Mixup,
            CutMix, ...) the head calculates no accuracy, as mixed labels have none.

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
        super().__init__(backbone=backbone, **kwargs)
        self.set_training(mode, warmup_iters, warmup_scaling_stage, teacher)
        self.distill_weight = distill_weight
        mixes = getattr(self.data_preprocessor, 'batch_augments', None) is not None
        if mixes and getattr(self.head, 'cal_acc', False):
            # The head would refuse to train.
            self.head.cal_acc = False
            print_log(
                'model.head.cal_acc=True is switched off: batch augmentations mix labels',
                'current',
                logging.WARNING,
            )

    def loss(self, inputs: torch.Tensor, data_samples: list) -> dict:
        """Losses of the subnet that was chosen last, on the labels."""
        return ImageClassifier.loss(self, inputs, data_samples)

    def sandwich_losses(self, inputs: torch.Tensor, data_samples: list) -> dict:
        """Losses of the largest subnet, and the drawn one's distance from its predictions."""
        draw = self.draw
        self.backbone.set_arch(self.largest(), draw.side)
        features = self.extract_feat(inputs)
        losses = self.head.loss(features, data_samples)
        losses = {f'largest.{key}': value for key, value in losses.items()}
        if not self.warms_up:
            with torch.no_grad():
                target = self.head(features).softmax(dim=1)
            self.backbone.set_arch(draw.arch, draw.side)
            logits = self.head(self.extract_feat(inputs))
            divergence = F.kl_div(logits.log_softmax(dim=1), target, reduction='batchmean')
            losses['subnet.distill_loss'] = self.distill_weight * divergence
        return losses

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
