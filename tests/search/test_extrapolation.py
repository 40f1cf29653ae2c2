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
