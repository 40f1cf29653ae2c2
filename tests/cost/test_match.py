"""match: the true cost meets the budget, or a brute-force search confirms that it cannot."""

import math
import random
import re
from collections import Counter
from dataclasses import replace

import pytest

from mmscale.arch import apply_scaling, get_arch
from mmscale.arch.adjust import adjust, single_adjustments
from mmscale.arch.rounding import Rounding
from mmscale.arch.rules import SCALING_RULES
from mmscale.cost import LatencyModel, LatencySetting, count
from mmscale.cost.matching import Constraints, NotReachable, match

TOLERANCE = 0.01
BASES = (
    'EfficientNet-B0',
    'EfficientNet-B2',
    'MobileNetV2',
    'MobileNetV3-Large',
    'RegNetX-200MF',
    'RegNetX-800MF',
    'RegNetY-400MF',
    'RegNetY-4.0GF',
    'RegNetZ-4GF',
    'ResNet-50',
    'ResNeXt-50',
    'ScaleNet-S0',
)
STRATEGIES = [name for name in SCALING_RULES if name != 'g']


def cases():
    """100 of (base, strategy, factor, cost), the same on every machine."""
    rng = random.Random(0)
    return [
        (
            rng.choice(BASES),
            rng.choice(STRATEGIES),
            0.5 * 64 ** rng.random(),
            rng.choice(('flops', 'params', 'acts')),
        )
        for _ in range(100)
    ]


def budget(base, factor, metric):
    return factor * getattr(count(base, 'pycls'), metric)


def networks(base, rule, target, metric):
    """All networks of a dense grid of factors, and all that lie single adjustments beside."""
    divisor = base.strides[-1]
    rounding = Rounding('nearest', 8, divisor, strict=True)
    ratio = target / getattr(count(base, 'pycls'), metric)
    seen = set()
    for step in range(-500, 501):
        try:
            arch = apply_scaling(
                base, rule.scaling(max(ratio, 1e-3) * 1.01**step), 'pycls', rounding
            )
        except ValueError:
            continue
        key = (arch.stages, arch.resolution)
        # No adjustments of these networks change the cost by more than this.
        cost = getattr(count(arch, 'pycls'), metric)
        if key in seen or not 1 / 3 < cost / target < 3:
            continue
        seen.add(key)
        yield arch
        singles = list(single_adjustments(arch, 8, divisor))
        pixels = [single for single in singles if single.kind == 'resolution']
        for single in singles:
            adjusted = adjust(arch, single, 8)
            yield adjusted
            if single.kind != 'resolution':
                yield from (adjust(adjusted, pixel, 8) for pixel in pixels)


@pytest.mark.slow
def test_a_hundred_random_budgets():
    met, asked = Counter(), Counter()
    for name, strategy, factor, metric in cases():
        base, rule = get_arch(name), SCALING_RULES[strategy]
        target = budget(base, factor, metric)
        scales_width = rule.width > 0
        asked[scales_width] += 1
        try:
            found = match(base, rule.scaling, target, metric, TOLERANCE)
        except NotReachable as error:
            assert not scales_width or error.below or error.above
            for arch in networks(base, rule, target, metric):
                cost = getattr(count(arch, 'pycls'), metric)
                assert abs(cost / target - 1) > TOLERANCE, (name, strategy, factor, metric)
            continue
        met[scales_width] += 1
        true = count(found.arch, 'pycls')
        assert (found.cost, found.achieved) == (true, getattr(true, metric))
        assert abs(found.achieved / target - 1) <= TOLERANCE
        assert found.arch.resolution % base.strides[-1] == 0
        assert all(width % 8 == 0 for width in found.arch.widths)
        assert all(block.hidden_channels % 8 == 0 for block in found.arch.blocks)
        assert len(found.adjustments) <= 2
    print(f'width: {met[True]} of {asked[True]}, others: {met[False]} of {asked[False]}')
    assert asked[True] >= 50
    assert met[True] >= 0.95 * asked[True]


def test_constraints_are_kept():
    base = get_arch('EfficientNet-B0')
    rule = SCALING_RULES['dwr']
    target = budget(base, 8, 'flops')
    assert match(base, rule.scaling, target).arch.resolution > 288
    kept = match(
        base,
        rule.scaling,
        target,
        constraints=Constraints(largest_resolution=280),
        rounding=Rounding('nearest', 16, 16, strict=True),
    )
    assert kept.arch.resolution == 272
    assert all(width % 16 == 0 for width in kept.arch.widths)
    assert kept.achieved == pytest.approx(target, rel=TOLERANCE)


def test_a_largest_resolution_below_the_divisor_is_refused():
    base = get_arch('RegNetX-200MF')
    with pytest.raises(ValueError, match='largest_resolution=20 leaves no multiple of 32'):
        match(
            base, SCALING_RULES['d'].scaling, 1e9, constraints=Constraints(largest_resolution=20)
        )


def test_the_nearest_under_a_cap_is_named_however_far_below():
    base = get_arch('EfficientNet-Lite3')
    most = 0.9 * count(base, 'pycls').acts
    with pytest.raises(NotReachable, match='above the caps; the nearest are flops') as caught:
        match(
            base,
            SCALING_RULES['r'].scaling,
            budget(base, 12, 'flops'),
            constraints=Constraints(most_acts=most),
        )
    below = caught.value.below
    assert below.cost.acts <= most
    # The next resolution is above the cap.
    beyond = replace(below.arch, resolution=below.arch.resolution + 32)
    assert count(beyond, 'pycls').acts > most
    assert caught.value.above is None


def test_caps_are_kept():
    base = get_arch('RegNetX-200MF')
    rule = SCALING_RULES['d']
    target = budget(base, 4, 'flops')
    free = match(base, rule.scaling, target)
    with pytest.raises(NotReachable, match='networks that meet it are above the caps') as caught:
        match(base, rule.scaling, target, constraints=Constraints(most_acts=free.cost.acts / 2))
    assert caught.value.above is None
    assert caught.value.below.cost.acts <= free.cost.acts / 2
    memory = 4 * (free.cost.params + free.cost.acts)
    assert match(base, rule.scaling, target, constraints=Constraints(most_memory=memory))
    with pytest.raises(NotReachable):
        match(base, rule.scaling, target, constraints=Constraints(most_memory=memory / 2))


def test_what_cannot_be_reached_names_the_nearest_on_either_side():
    base = get_arch('RegNetY-400MF')
    depth = SCALING_RULES['d']
    target = budget(base, 1.06, 'params')
    with pytest.raises(NotReachable, match='not reachable') as caught:
        match(base, depth.scaling, target, 'params', 1e-4)
    below, above = caught.value.below, caught.value.above
    assert below.achieved < target < above.achieved
    for side in (below, above):
        assert str(side) in str(caught.value)
    # The resolution has no params: nothing is far above the base model.
    with pytest.raises(NotReachable) as caught:
        match(base, SCALING_RULES['r'].scaling, budget(base, 4, 'params'), 'params')
    assert caught.value.above is None
    assert caught.value.below.solved == 1


def test_a_latency_budget_is_met_by_the_runtime_model():
    base = get_arch('RegNetX-200MF')
    costs = [count(get_arch(name)) for name in BASES[:6]]
    times = [3 + 2e-6 * cost.acts + 1e-8 * cost.flops for cost in costs]
    model = LatencyModel.fit(costs, times, LatencySetting(device_name='test'))
    target = 3 * model.predict(count(base))
    found = match(base, SCALING_RULES['dWr'].scaling, target, 'latency', latency_model=model)
    assert found.achieved == model.predict(count(found.arch))
    assert found.achieved == pytest.approx(target, rel=TOLERANCE)
    with pytest.raises(ValueError, match='metric=latency needs a latency_model'):
        match(base, SCALING_RULES['dWr'].scaling, target, 'latency')


def test_settings_are_checked(refuses):
    base, scaling = get_arch('RegNetY-400MF'), SCALING_RULES['d'].scaling
    refuses(
        lambda **bad: match(base, scaling, **{'target': 1e9, **bad}),
        metric=['speed'],
        target=[0, math.nan, '4e9'],
        tolerance=[-0.1],
        convention=['mine'],
    )
    refuses(Constraints, largest_resolution=[2.5], most_acts=['1'], most_memory=[0])


def test_a_budget_below_all_networks_names_the_least_and_where_the_rule_makes_it():
    base = get_arch('RegNetY-400MF')
    with pytest.raises(NotReachable) as caught:
        match(base, SCALING_RULES['dWr'].scaling, 2)
    words = re.fullmatch(
        r'flops=2 within 0.01 is not reachable; the nearest are flops \S+ \(.* times the budget\)'
        r'(, resolution by -32)? at factor (\S+) and (\d+) px',
        str(caught.value),
    )
    assert words, caught.value
    assert int(words[3]) == caught.value.above.arch.resolution > 0
    # A factor twice as large is another network.
    scaling, rounding = SCALING_RULES['dWr'].scaling, Rounding('nearest', 8, 32, strict=True)
    factor = float(words[2])
    here, twice = (
        apply_scaling(base, scaling(f), 'pycls', rounding) for f in (factor, 2 * factor)
    )
    assert here != twice
