"""SuperNetClassifier: trains a SuperNet on image classification."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from copy import deepcopy
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from mmpretrain.models import ImageClassifier
from torch import nn

from mmscale.arch import Arch
from mmscale.errors import UsageError
from mmscale.models.backbones import SuperNet
from mmscale.models.heads import build_head
from mmscale.models.super_net_training import SuperNetTraining
from mmscale.registry import MODELS


def _build_head(
    head: Mapping[str, Any], has_neck: bool, channels: int | None, hidden: int
) -> nn.Module:
    """The head for a subnet's widths; what a neck makes its config says."""
    return build_head(head, None if has_neck else channels, hidden)


@MODELS.register_module()
class SuperNetClassifier(SuperNetTraining, ImageClassifier):
    """An image classifier whose backbone is a :class:`SuperNet`.

    Where the width that the head sees, or that of its hidden layer, differs between the networks
    of the space, a subnet uses the part of the head's weights that fits it, as of the backbone's.
    The head's config may leave out ``in_channels`` (and ``mid_channels``), which follow.

    Args:
        backbone: Config of the SuperNet, or the module.
        mode: What one iteration trains. ``single``: the drawn subnet (the paper).
            ``both_sides``: the drawn subnet on both sides, half the loss each (the reference's
            synchronous mode). ``sandwich``: the largest subnet on the labels and the drawn one
            on the largest one's predictions (in-place distillation); what small data needs.
        warmup_iters: Iterations of the warm-up.
        warmup_scaling_stage: Scaling stage of the warm-up: features form soonest where the
            images are neither tiny nor expensive.
        warmup_subnet: What the warm-up trains on the labels: the ``largest`` subnet, the
            ``middle`` one of its scaling stage (the middle of every choice), or what is
            ``drawn``; by default the largest in a sandwich and else what is drawn.
        teacher: The sandwich's largest subnet: of the drawn ``scaling_stage`` or of the whole
            ``space``; at the drawn resolution either way.
        distill_weight: Weight of the distillation loss.
        head: Config of the head, or the module.
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
        head: dict | nn.Module | None = None,
        warmup_subnet: str | None = None,
        **kwargs: object,
    ) -> None:
        super().__init__(backbone=backbone, **kwargs)
        self.set_training(mode, warmup_iters, warmup_scaling_stage, teacher, warmup_subnet)
        self.distill_weight = distill_weight
        self.head = self._made_head(head)
        mixes = getattr(self.data_preprocessor, 'batch_augments', None) is not None
        if mixes and getattr(self.head, 'cal_acc', False):
            # The head would refuse to train.
            self.head.cal_acc = self._head_config['cal_acc'] = False
            print_log(
                'model.head.cal_acc=True is switched off: batch augmentations mix labels',
                'current',
                logging.WARNING,
            )

    def _made_head(self, head: Mapping[str, Any] | nn.Module | None) -> nn.Module | None:
        """The head, of which subnets use parts where its widths differ between them."""
        backbone = self.backbone
        # A copy, as what is built of it follows what is set on the head.
        self._head_config = dict(head) if isinstance(head, Mapping) else {}
        self.shares_head = head is not None and backbone.head_varies
        # A neck that only pools has no weights, or one of a single element.
        has_neck = self.neck is not None and any(p.ndim > 1 for p in self.neck.parameters())
        spaces = backbone.space.allocation, backbone.space.widest
        if has_neck and len({backbone.head_widths(whole)[0] for whole in spaces}) > 1:
            raise UsageError(
                f'model.neck={type(self.neck).__name__} has weights for one width, and the widths '
                'of its input differ between the networks of the space; backbone.neck may have '
                'such weights'
            )
        build = partial(_build_head, self._head_config, has_neck)
        widths = backbone.head_widths(backbone.arch)
        if not self.shares_head:
            return build(*widths) if isinstance(head, Mapping) else head
        if not isinstance(head, Mapping):
            raise UsageError(
                f'model.head={type(head).__name__} must be a config: its widths differ between '
                'the networks of the space'
            )
        made = build(*widths)
        backbone.share_head(made, build)
        return made

    def _call_head(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Calls a method of the head, or of the part of it that the chosen subnet uses."""
        if self.shares_head:
            return self.backbone.call_head(method, *args, **kwargs)
        return getattr(self.head, method)(*args, **kwargs)

    def forward(
        self, inputs: torch.Tensor, data_samples: list | None = None, mode: str = 'tensor'
    ) -> dict | list | tuple | torch.Tensor:
        """Runs the subnet that was chosen last; see mmpretrain's ``ImageClassifier``."""
        if mode == 'tensor' and self.head is not None:
            return self._call_head('__call__', self.extract_feat(inputs))
        return super().forward(inputs, data_samples, mode)

    def extract_feat(self, inputs: torch.Tensor, stage: str = 'neck') -> Any:
        """Features of the subnet that was chosen last; see mmpretrain's ``ImageClassifier``."""
        if stage == 'pre_logits':
            return self._call_head('pre_logits', super().extract_feat(inputs))
        return super().extract_feat(inputs, stage)

    def predict(
        self, inputs: torch.Tensor, data_samples: list | None = None, **kwargs: Any
    ) -> list:
        """Predictions of the subnet that was chosen last."""
        return self._call_head('predict', self.extract_feat(inputs), data_samples, **kwargs)

    def loss(self, inputs: torch.Tensor, data_samples: list) -> dict:
        """Losses of the subnet that was chosen last, on the labels."""
        return self._call_head('loss', self.extract_feat(inputs), data_samples)

    def sandwich_losses(self, inputs: torch.Tensor, data_samples: list) -> dict:
        """Losses of the largest subnet, and the drawn one's distance from its predictions."""
        draw = self.draw
        self.backbone.set_arch(self.largest(), draw.side)
        features = self.extract_feat(inputs)
        losses = self._call_head('loss', features, data_samples)
        losses = {f'largest.{key}': value for key, value in losses.items()}
        with torch.no_grad():
            target = self._call_head('__call__', features).softmax(dim=1)
        self.backbone.set_arch(draw.arch, draw.side)
        logits = self._call_head('__call__', self.extract_feat(inputs))
        divergence = F.kl_div(logits.log_softmax(dim=1), target, reduction='batchmean')
        losses['subnet.distill_loss'] = self.distill_weight * divergence
        return losses

    def extract(self, arch: Arch, side: str = 'left') -> ImageClassifier:
        """A stand-alone classifier with its own copy of a subnet's weights.

        Raises:
            ValueError: The Arch is not in the space, or the side is unknown.
        """
        if self.shares_head:
            head = self.backbone.extract_head(arch, side).train(self.head.training)
        else:
            head = deepcopy(self.head)
        classifier = ImageClassifier(
            backbone=self.backbone.extract(arch, side),
            neck=deepcopy(self.neck),
            head=head,
            data_preprocessor=deepcopy(self.data_preprocessor),
        )
        # A runner that trains it must not draw new weights.
        classifier.is_init = True
        return classifier
