"""Scores the detectors of a super-supernet by mAP."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from fractions import Fraction
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.registry import METRICS

from mmscale.engine.content import Targets
from mmscale.engine.evaluator import SubnetEvaluator
from mmscale.errors import UsageError
from mmscale.models import SuperNetDetector
from mmscale.registry import TASK_UTILS
from mmscale.search import Score

# What mmdet's metric rounds to: a score counts thousandths.
_THOUSANDTHS = 1000


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what pycocotools prints, and the metric logs, for every candidate off the screen."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


class _Detections:
    """Collects the detections of one network, and measures their mAP.

    Args:
        metric: mmdet's metric, which all networks share.
    """

    def __init__(self, metric: BaseMetric) -> None:
        self._metric = metric
        self._results: list = []

    def count(self, nets: Sequence[BaseModel], inputs: torch.Tensor, targets: Targets) -> None:
        """Collects what a detector finds in a batch."""
        (net,) = nets
        predictions = net(inputs, targets, mode='predict')
        for prediction in predictions:
            found = prediction.pred_instances
            for key, value in found.items():
                if torch.is_tensor(value) and value.is_floating_point():
                    found[key] = value.float()  # NumPy has no bfloat16
        self._metric.results = self._results
        self._metric.process({}, [prediction.to_dict() for prediction in predictions])

    def is_lost(self, seen: int) -> bool:
        """Never: a mAP has no bound before the last image."""
        del seen
        return False

    def score(self) -> Score:
        """Thousandths of the mAP."""
        # Not the metric's own evaluate(), which gathers over ranks: every rank has other Archs.
        with _quiet():
            values = self._metric.compute_metrics(self._results)
        self._metric.results = []
        # Without a single detection there are no values.
        return Score(round(values.get('bbox_mAP', 0.0) * _THOUSANDTHS), _THOUSANDTHS)


@TASK_UTILS.register_module()
class DetectionEvaluator(SubnetEvaluator):
    """Extracts a detector, recalibrates its BN statistics and measures its COCO mAP.

    The mAP is that of mmdet's ``CocoMetric`` for boxes, which rounds it to three decimals; a
    score is the number of thousandths, of 1000, so that a search replays exactly. All scoring
    images are looked at: no score is cut short.

    Args:
        model: The trained super-supernet.
        *args: As for :class:`SubnetEvaluator`. The data samples need the meta key ``instances``.
        **kwargs: As for :class:`SubnetEvaluator`; `side` cannot be ``both``.

    Raises:
        TypeError: The model is no SuperNetDetector.
        ValueError: A setting is not allowed.
    """

    counts_answers = False

    def __init__(self, model: SuperNetDetector, *args: Any, **kwargs: Any) -> None:
        if not isinstance(model, SuperNetDetector):
            raise TypeError(
                f'DetectionEvaluator needs model.type=mmscale.SuperNetDetector, got '
                f'{type(model).__name__}'
            )
        if kwargs.get('side') == 'both':
            raise UsageError("side='both' averages logits, which detectors have none of")
        super().__init__(model, *args, **kwargs)
        self._metric = METRICS.build(dict(type='mmdet.CocoMetric', metric='bbox'))
        self._metric.dataset_meta = self._images.metainfo

    @staticmethod
    def targets_of(data_samples: list) -> list:
        """What is to be predicted: the data samples, with their boxes."""
        return data_samples

    @staticmethod
    def normalised_part(net: BaseModel) -> torch.nn.Module:
        """The whole detector: neck and head may have BN layers too."""
        return net

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What the scores depend on."""
        from mmdet import __version__

        return {**super().fingerprint, 'score': 'thousandths of bbox_mAP', 'mmdet': __version__}

    def tally(self, needed: Fraction | None) -> _Detections:
        """What collects the detections of one network."""
        del needed
        return _Detections(self._metric)
