"""DISTClassifier: a classifier that also learns from the predictions of a larger one."""

from __future__ import annotations

import torch
from mmpretrain.models import ImageClassifier
from torch import nn

from mmscale.errors import UsageError, one_line
from mmscale.models.checkpoints import load_checkpoint, weights_of
from mmscale.registry import MODELS


def pearson(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Correlation of each row of one matrix with the same row of the other; shape (rows,)."""
    one = one - one.mean(dim=1, keepdim=True)
    other = other - other.mean(dim=1, keepdim=True)
    return nn.functional.cosine_similarity(one, other, dim=1)


def dist_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """The loss of DIST ("Knowledge Distillation from A Stronger Teacher", arXiv 2205.10536).

    One minus the correlation of both predictions, over the classes of each image (inter-class)
    and over the images for each class (intra-class), so that scale and shift are the student's
    own; both weights are 1, times the square of the temperature.

    Args:
        student: Logits, shape (images, classes).
        teacher: Logits, shape (images, classes).
        temperature: Divides the logits.
    """
    ours = (student / temperature).softmax(dim=1)
    theirs = (teacher / temperature).softmax(dim=1)
    inter = 1 - pearson(ours, theirs).mean()
    intra = 1 - pearson(ours.T, theirs.T).mean()
    return temperature**2 * (inter + intra)


@MODELS.register_module()
class DISTClassifier(ImageClassifier):
    """An image classifier trained on labels and, with DIST, on a teacher's predictions.

    The teacher is no part of the model: not of its checkpoints, nor of what is trained.

    Args:
        teacher: Config of a classifier of the same classes, for the same images.
        teacher_checkpoint: Its weights.
        distill_weight: Weight of the distillation loss.
        temperature: See :func:`dist_loss`.
        **kwargs: As for mmpretrain's ``ImageClassifier``.

    Raises:
        ValueError: The checkpoint does not fit the teacher.
    """

    def __init__(
        self,
        teacher: dict,
        teacher_checkpoint: str,
        distill_weight: float = 1.0,
        temperature: float = 1.0,
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)
        teacher = MODELS.build(teacher)
        found = load_checkpoint(teacher_checkpoint)
        try:
            teacher.load_state_dict(weights_of(teacher_checkpoint, found))
        except RuntimeError as error:
            raise UsageError(
                f'teacher_checkpoint={teacher_checkpoint}: {one_line(error):.300}'
            ) from None
        teacher.eval()
        # In a tuple, where nn.Module does not find it.
        self._teacher = (teacher.requires_grad_(False),)
        self.distill_weight = distill_weight
        self.temperature = temperature

    def loss(self, inputs: torch.Tensor, data_samples: list) -> dict[str, torch.Tensor]:
        """Losses of the head, and ``distill_loss``, on images (N, channels, H, W)."""
        features = self.extract_feat(inputs)
        losses = self.head.loss(features, data_samples)
        with torch.no_grad():
            target = self._teacher[0].to(inputs.device)(inputs)
        loss = dist_loss(self.head(features), target, self.temperature)
        return {**losses, 'distill_loss': self.distill_weight * loss}
