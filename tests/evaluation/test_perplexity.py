import math

import pytest

from mmscale.evaluation import Perplexity


def evaluate(*rows):
    metric = Perplexity()
    for entropy, tokens in rows:
        metric.process({}, [dict(cross_entropy=entropy, tokens=tokens)])
    return metric.evaluate(len(rows))['perplexity']


def test_tokens_count_alike():
    # Uniform over 4 for 6 tokens, over 16 for 2: the geometric mean over tokens.
    assert evaluate((6 * math.log(4), 6), (2 * math.log(16), 2)) == pytest.approx(4 * 4**0.25)


def test_a_diverged_model():
    assert evaluate((1e6, 10)) == math.inf
    assert math.isnan(evaluate((math.nan, 10), (1.0, 10)))
