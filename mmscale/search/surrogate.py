"""A surrogate of the score: predicts it from what an Arch is, and says how sure it is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from functools import cache, lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mmscale.arch import Arch, Block
from mmscale.arch.arch import ACTS, KINDS
from mmscale.cost import count
from mmscale.errors import UsageError
from mmscale.search.entry import Score
from mmscale.search.varied import expansion, group_width

if TYPE_CHECKING:
    from sklearn.tree import ExtraTreeRegressor
    from threadpoolctl import ThreadpoolController

Floats = NDArray[np.float64]

# Fewer scores tell a model nothing.
FEWEST_SCORES = 8
_KERNELS = (3, 5, 7)
# A feature that varies less than this, beside its size, is a constant.
_CONSTANT = 1e-9
# How far beyond those it was fitted to a feature may be, in standard deviations: what nearly all
# Archs have alike would else be worth thousands of them in one that has it not.
_BEYOND = 3.0
# Places of a network stage that have features of their own: those beyond repeat others.
_MOST_PLACES = 8
_TREES = 24
# How much more a model counts that predicts better.
_SHARPNESS = 2.0


@cache
def _threads() -> ThreadpoolController:
    """The libraries of the process that have threads of their own: to look for them takes time."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _one_thread() -> AbstractContextManager[object]:
    """Sums in one order, however many threads there are: ranks must predict alike."""
    return _threads().limit(limits=1)


@lru_cache(maxsize=2**14)
def _block_features(block: Block) -> tuple[float, ...]:
    squeeze = 0.0 if block.se is None else block.se.channels / block.grouped_widths[1]
    return (
        1.0,
        block.kernel,
        math.log(expansion(block)),
        squeeze,
        math.log(group_width(block)),
        *(float(block.kernel == kernel) for kernel in _KERNELS),
        *(float(block.kind == kind) for kind in KINDS),
        *(float(block.act == act) for act in ACTS),
    )


@lru_cache(maxsize=2**15)
def _stage_features(stage: tuple[Block, ...], places: int) -> Floats:
    blocks = np.array([_block_features(block) for block in stage])
    own = np.zeros((places, blocks.shape[1]))
    own[: len(stage)] = blocks[:places]
    sizes = math.log(stage[-1].out_channels), math.log(len(stage))
    return np.concatenate([sizes, blocks.sum(axis=0), blocks.mean(axis=0), own.ravel()])


def features(arch: Arch, places: Sequence[int]) -> Floats:
    """What a surrogate sees of an Arch.

    Of every network stage its width, and the sums and means of what its blocks are; of every
    place of it what the block there is, zeros where there is none; of the whole network the
    logarithms of costs and resolution, and their squares, as accuracy grows with them ever more
    slowly.

    Args:
        arch: The Arch.
        places: How many places of each network stage have features of their own.

    Returns:
        Shape (features,).
    """
    stages = [_stage_features(*pair) for pair in zip(arch.stages, places, strict=True)]
    cost = count(arch)
    sizes = [cost.flops, cost.params, cost.acts, arch.resolution, arch.stem.out_channels]
    sizes += [arch.head.channels or 1, arch.head.hidden_channels or 1]
    logs = np.log(sizes)
    return np.concatenate([*stages, logs, logs[:4] ** 2])


def _grow(inputs: Floats, values: Floats, seed: int) -> tuple[list[ExtraTreeRegressor], Floats]:
    """Extremely randomised trees, each of a bootstrap sample.

    scikit-learn's forest of them takes ten times as long where there are few values.

    Args:
        inputs: Shape (n, features).
        values: Shape (n,).
        seed: Seed of samples and trees.

    Returns:
        The trees, and of every value what those predict that have not seen it, shape (n,).
    """
    from sklearn import config_context
    from sklearn.tree import ExtraTreeRegressor

    rng = np.random.default_rng(seed)
    trees, totals, numbers = [], np.zeros(len(values)), np.zeros(len(values))
    with config_context(assume_finite=True, skip_parameter_validation=True):
        for number in range(_TREES):
            rows = rng.integers(0, len(values), len(values))
            tree = ExtraTreeRegressor(min_samples_leaf=2, max_features=0.5, random_state=number)
            trees.append(tree.fit(inputs[rows], values[rows]))
            unseen = np.setdiff1d(np.arange(len(values)), rows)
            totals[unseen] += _predict_trees([tree], inputs[unseen])[0]
            numbers[unseen] += 1
    # A value that all trees have seen, by chance, is predicted as the mean.
    return trees, np.where(numbers > 0, totals / np.maximum(numbers, 1), values.mean())


def _predict_trees(trees: Sequence[ExtraTreeRegressor], inputs: Floats) -> Floats:
    """Predictions, shape (trees, n)."""
    # As trees take them; each would check and convert them by itself.
    single = np.ascontiguousarray(inputs, dtype=np.float32)
    return np.stack([tree.predict(single, check_input=False) for tree in trees])


class Surrogate:
    """Predicts scores of Archs of one space: an ensemble of a linear model and trees.

    Bayesian ridge regression on :func:`features` has the growth with cost and the part of every
    choice, from few scores on. Extremely randomised trees have what choices do together, once
    there are scores enough. They are averaged, each weighed by how well it predicts the scores
    that were left out of its fit. The uncertainty is of the prediction's mean: the spread within
    each model, and between the two.

    It is fitted in some tenths of a second, on one thread; equal data give equal predictions.

    Args:
        archs: Archs that were scored, :data:`FEWEST_SCORES` or more.
        scores: Their scores.
        seed: Seed of the trees.

    Attributes:
        weights: Weights of linear model and trees.
        error: Root mean square error of the scores that were left out, as the ensemble would have
            predicted them.

    Raises:
        UsageError: There are too few scores.

    Example:
        >>> surrogate = Surrogate(archs, scores)  # doctest: +SKIP
        >>> mean, deviation = surrogate.predict(candidates)  # doctest: +SKIP
    """

    def __init__(self, archs: Sequence[Arch], scores: Sequence[Score], seed: int = 0) -> None:
        if len(archs) < FEWEST_SCORES:
            raise UsageError(f'{len(archs)} scores: a surrogate needs {FEWEST_SCORES} or more')
        from sklearn.linear_model import BayesianRidge

        stages = zip(*(map(len, arch.stages) for arch in archs), strict=True)
        self._places = tuple(min(max(depths), _MOST_PLACES) for depths in stages)
        found = self._features(archs)
        self._mean, spread = found.mean(axis=0), found.std(axis=0)
        varying = spread > _CONSTANT * np.maximum(1.0, np.abs(self._mean))
        self._spread = np.where(varying, spread, 1.0)
        scaled = (found - self._mean) / self._spread
        # Of features that say the same, as where there is a block and where it is of the only
        # kind, one is kept.
        _, first = np.unique(np.round(scaled[:, varying], 6), axis=1, return_index=True)
        # Where all Archs are alike one feature stands for their constant score.
        self._kept = np.flatnonzero(varying)[np.sort(first)] if varying.any() else np.array([0])
        inputs = scaled[:, self._kept]
        self._ends = inputs.min(axis=0) - _BEYOND, inputs.max(axis=0) + _BEYOND
        values = np.array([float(score.value) for score in scores])
        with _one_thread():
            # On their principal axes features are independent: nothing is ill-conditioned there.
            sizes, axes = np.linalg.eigh(inputs.T @ inputs)
            self._axes = axes[:, sizes >= _CONSTANT * sizes[-1]]
            along = inputs @ self._axes
            self._linear = BayesianRidge().fit(along, values)
            self._trees, grown = _grow(inputs, values, seed)
            left_out = np.stack([self._left_out(along, values), grown])
        errors = np.mean((left_out - values) ** 2, axis=1) + _CONSTANT
        weights = errors**-_SHARPNESS
        self.weights = weights / weights.sum()
        self.error = float(np.sqrt(np.mean((self.weights @ left_out - values) ** 2)))

    def _features(self, archs: Iterable[Arch]) -> Floats:
        return np.array([features(arch, self._places) for arch in archs])

    def _left_out(self, along: Floats, values: Floats) -> Floats:
        """What the linear model predicts of each score without it, by the closed form."""
        ratio = self._linear.lambda_ / self._linear.alpha_
        leverage = along**2 @ (1 / ((along**2).sum(axis=0) + ratio)) + 1 / len(values)
        residual = values - self._linear.predict(along)
        return values - residual / np.maximum(1 - leverage, _CONSTANT)

    def predict(self, archs: Sequence[Arch]) -> tuple[Floats, Floats]:
        """Predicts scores.

        Args:
            archs: Archs of the space.

        Returns:
            Predicted scores and their standard deviations, each of shape (n,). What a single score
            has of noise, as it is of so many images, is not in it.
        """
        if not len(archs):
            return np.empty(0), np.empty(0)
        scaled = (self._features(archs) - self._mean) / self._spread
        inputs = np.clip(scaled[:, self._kept], *self._ends)
        with _one_thread():
            linear, deviation = self._linear.predict(inputs @ self._axes, return_std=True)
            trees = _predict_trees(self._trees, inputs)
        means = np.stack([linear, trees.mean(axis=0)])
        variances = np.stack([deviation**2 - 1 / self._linear.alpha_, trees.var(axis=0)])
        mean = self.weights @ means
        variance = self.weights @ (np.maximum(variances, 0) + (means - mean) ** 2)
        return mean, np.sqrt(variance)
