"""Evaluation: metrics of tasks that MMPretrain has none for."""

from mmscale.evaluation.perplexity import Perplexity

__all__ = ['Perplexity']
