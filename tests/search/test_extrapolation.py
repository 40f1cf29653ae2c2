"""What a surrogate says of a network that has not what all it was fitted to have alike."""

import numpy as np
from analytic_problem import small_space

from mmscale.search import Score, Surrogate


def test_a_feature_that_hardly_varied_is_not_worth_thousands(monkeypatch):
    space, rng = small_space(), np.random.default_rng(0)
    archs = [space.decode(row) for row in space.sample(rng, 60)]
    found = rng.normal(size=(60, 3))
    # As the ratio of widths that rounding makes.
    found[:, 2] = 4 + 1e-4 * found[:, 2]
    scores = [Score(int(5000 + 500 * one + rng.normal(0, 50)), 10_000) for one in found[:, 0]]
    monkeypatch.setattr(Surrogate, '_features', lambda self, archs: found[: len(archs)])
    surrogate = Surrogate(archs, scores)
    found = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 4.0]])
    mean, deviation = surrogate.predict(archs[:2])
    assert np.abs(mean - 0.5).max() < 0.05 and deviation.max() < 0.05


def test_features_of_any_rank_are_fitted():
    """More features than scores, sums of others, and scores that they say exactly."""
    space, rng = small_space(), np.random.default_rng(1)
    archs = [space.decode(row) for row in space.sample(rng, 40)]
    scores = [Score(4000 + 10 * len(arch.blocks), 10_000) for arch in archs]
    for count in (8, 20, 40):
        mean, deviation = Surrogate(archs[:count], scores[:count]).predict(archs)
        assert np.isfinite([mean, deviation]).all()
    np.testing.assert_allclose(mean, [float(score.value) for score in scores], atol=0.01)
