"""Classifiers and language models that also learn from the predictions of a larger one."""

from __future__ import annotations

import torch
from mmpretrain.models import ImageClassifier
from torch import nn

from mmscale.arch.checks import number
from mmscale.errors import UsageError, one_line
from mmscale.models.causal_lm import CausalLM
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


def token_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """How far predictions of tokens are from a teacher's: KL(teacher || student), in nats.

    The mean over all tokens, times the square of the temperature, so that its gradient does not
    fall with it.

    Args:
        student: Logits, shape (N, length, vocabulary).
        teacher: Logits, shape (N, length, vocabulary).
        temperature: Divides the logits.
    """
    ours, theirs = (
        (logits.float() / temperature).log_softmax(dim=-1).flatten(0, 1)
        for logits in (student, teacher)
    )
    divergence = nn.functional.kl_div(ours, theirs, reduction='batchmean', log_target=True)
    return temperature**2 * divergence


def _teacher(config: dict, checkpoint: str) -> nn.Module:
    """A model with its weights, in eval mode, that does not learn."""
    teacher = MODELS.build(config)
    found = load_checkpoint(checkpoint)
    try:
        teacher.load_state_dict(weights_of(checkpoint, found))
    except RuntimeError as error:
        raise UsageError(f'teacher_checkpoint={checkpoint}: {one_line(error):.300}') from None
    teacher.eval()
    return teacher.requires_grad_(False)


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
        # In a tuple, where nn.Module does not find it.
        self._teacher = (_teacher(teacher, teacher_checkpoint),)
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


@MODELS.register_module()
class DistilledCausalLM(CausalLM):
    """A causal language model trained on text and on a teacher's predictions of each token.

    The loss is that of the text plus `distill_weight` times :func:`token_loss`. Under a
    :class:`mmscale.models.DMSModel` the teacher, which is the whole network as a rule, guides the
    search; under ``PrunedModel`` the training of what is left. It is no part of the model: not of
    its checkpoints, nor of what is masked, pruned or trained.

    Args:
        config: As for :class:`mmscale.models.CausalLM`.
        teacher_checkpoint: Weights of a CausalLM.
        teacher: Its config; by default that of this model, before it is pruned. It has the same
            tokens.
        distill_weight: Weight of the distillation loss.
        temperature: See :func:`token_loss`.
        data_preprocessor: As for CausalLM.

    Raises:
        ImportError: transformers is not installed.
        ValueError: A config or a number is not allowed, the checkpoint does not fit the teacher,
            or the teacher has other tokens.
    """

    def __init__(
        self,
        config: dict,
        teacher_checkpoint: str,
        teacher: dict | None = None,
        distill_weight: float = 1.0,
        temperature: float = 1.0,
        data_preprocessor: dict | None = None,
    ) -> None:
        super().__init__(config, data_preprocessor)
        self.distill_weight = number('distill_weight', distill_weight)
        self.temperature = number('temperature', temperature, above=0)
        found = _teacher(
            dict(type='mmscale.CausalLM', config=teacher or config), teacher_checkpoint
        )
        tokens, theirs = (model.language_model.config.vocab_size for model in (self, found))
        if tokens != theirs:
            raise UsageError(f'teacher: vocab_size={theirs} must be {tokens}, as of the model')
        self._teacher = (found,)

    def losses(self, logits: torch.Tensor, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """``language_loss`` and ``distill_loss``, see :class:`mmscale.models.CausalLM`."""
        losses = super().losses(logits, inputs)
        with torch.no_grad():
            target = self._teacher[0].to(inputs.device)(inputs)
        # The last token of a sequence is followed by none.
        loss = token_loss(logits[:, :-1], target[:, :-1], self.temperature)
        return {**losses, 'distill_loss': self.distill_weight * loss}
