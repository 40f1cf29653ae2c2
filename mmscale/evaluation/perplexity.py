"""Perplexity of language models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mmengine.evaluator import BaseMetric

from mmscale.registry import METRICS


@METRICS.register_module()
class Perplexity(BaseMetric):
    """Exponential of the mean cross-entropy of all tokens: ``perplexity``, lower is better.

    Takes what :class:`mmscale.models.CausalLM` predicts.
    """

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Notes ``cross_entropy`` (nats, a sum) and ``tokens`` of each sequence."""
        self.results += [(sample['cross_entropy'], sample['tokens']) for sample in data_samples]

    def compute_metrics(self, results: list[tuple[float, int]]) -> dict[str, float]:
        """The perplexity of all sequences together; infinite where it overflows."""
        entropy, tokens = np.sum(results, axis=0)
        with np.errstate(over='ignore'):
            return {'perplexity': float(np.exp(entropy / tokens))}
