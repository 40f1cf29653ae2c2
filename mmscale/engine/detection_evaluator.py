"""Scores the detectors of a super-supernet by mAP."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from fractions import Fraction
from typing import Any

import torch
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.registry import METRICS

from mmscale.arch import Arch
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

    def _evaluate(self, arch: Arch, needed: Fraction | None) -> Score:
        del needed
        net = self._scored(arch, self.sides[0])
        metric = self._metric
        # Not the metric's own evaluate(), which gathers over ranks: every rank has other Archs.
        metric.results.clear()
        with torch.inference_mode():
            for inputs, samples in self._images.batches(arch.resolution):
                predictions = net(inputs, samples, mode='predict')
                metric.process({}, [prediction.to_dict() for prediction in predictions])
                self.images_seen += len(samples)
        with _quiet():
            values = metric.compute_metrics(metric.results)
        metric.results.clear()
        # Without a single detection there are no values.
        return Score(round(values.get('bbox_mAP', 0.0) * _THOUSANDTHS), _THOUSANDTHS)
