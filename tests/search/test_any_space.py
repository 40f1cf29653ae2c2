"""Every search in spaces of widths, expansions, kinds, SE and resolutions, scaled or not."""

import functools
import json

import numpy as np
import pytest
from analytic_problem import all_genotypes
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from random_spaces import spaces

from mmscale.arch import Arch, Genotype, Scaling, SearchSpace
from mmscale.cost import CostTable, count
from mmscale.search import (
    MCEA,
    Archive,
    EvolutionSearch,
    FamilyFitness,
    Feasibility,
    GivenFamily,
    ParetoSearch,
    RandomSearch,
    ScalingSearch,
    Scorer,
    SeparateSearch,
)
from mmscale.search.analytic import AnalyticEvaluator
from mmscale.search.forecast import forecast
from mmscale.search.profile import profile_search
from mmscale.search.reporting import describe

SEEDS = st.integers(0, 2**32)
TOLERANCE = 0.15


@functools.cache
def rich_space(scaling_stages):
    """All kinds of genes, with one scaling stage or with two."""
    stages = [dict(depth=[1], width=[1], resolution=[24, 32])]
    if scaling_stages == 2:
        stages.append(dict(depth=[1, 1.5, 2], width=[1, 1.2, 1.4], resolution=[32, 36, 40]))
    return SearchSpace(
        stages=[
            dict(channels=[8, 12], depths=[1, 2], kernels=[3, 5], kind=['mbconv', 'conv']),
            dict(
                channels=[16, 24],
                stride=2,
                depths=[1, 2, 3],
                kernels=[3, 5],
                expands=[2, 3, 4],
                se=[False, dict(ratio=0.25)],
                skips='anywhere',
            ),
            dict(
                channels=32,
                stride=2,
                depths=[1, 2],
                blocks=[
                    dict(kind='bottleneck', kernel=3, group_width=4, expand=0.5),
                    dict(kind='fused_mbconv', kernel=3, expand=2),
                    dict(kind='mbconv', kernel=5, expand=4, act='silu'),
                ],
                share='stage',
            ),
        ],
        scaling_stages=stages,
        stem=dict(channels=[8, 16]),
        head=dict(channels=[32, 48]),
        num_classes=10,
        rounding=dict(mode='divisible', channel_divisor=4),
    )


@functools.cache
def rich_family(scaling_stages):
    table = CostTable(rich_space(scaling_stages))
    low, high = table.range('flops')
    return FamilyFitness(Feasibility(table, round((low * high) ** 0.5), tolerance=TOLERANCE))


def hidden(scaling_stages, **given):
    return AnalyticEvaluator(rich_family(scaling_stages).feasibility, 0, **given)


def searches(scaling_stages):
    family = rich_family(scaling_stages)
    base, strategy = hidden(scaling_stages).base, hidden(scaling_stages).strategy
    size = dict(population=8, generations=4)
    found = [
        MCEA(family, rounds=2, num_base_models=3, **size),
        EvolutionSearch(family, strategy, **size),
        EvolutionSearch(family, **size),
        SeparateSearch(family, rounds=2, num_base_models=3, **size),
        RandomSearch(family, 40),
        GivenFamily(family, base, strategy),
        GivenFamily(family, base, 'compound'),
        ParetoSearch(family.feasibility.table, **size),
        ParetoSearch(family.feasibility.table, metric='params', **size),
    ]
    return found if scaling_stages == 1 else [*found, ScalingSearch(family, base)]


def run(directory, search, scaling_stages):
    steps, evaluator = [], hidden(scaling_stages)
    with Archive(directory, evaluator.fingerprint, durable=False) as archive:
        progress = []
        result = search.run(Scorer(archive, evaluator, progress=progress.append), steps.append)
    return result, steps, progress


@pytest.mark.parametrize('scaling_stages', [1, 2])
def test_every_search_finds_networks_of_the_space(tmp_path, scaling_stages):
    space = rich_space(scaling_stages)
    for i, search in enumerate(searches(scaling_stages)):
        result, _, _ = run(tmp_path / f'{i}', search, scaling_stages)
        assert 0 < result.evaluations <= search.most_evaluations
        members = result.front if isinstance(search, ParetoSearch) else result.family
        for member in members:
            assert space.encode(space.decode(member.base)) == member.base
            assert member.cost == count(member.arch)
            if not isinstance(search, GivenFamily):
                assert member.arch == space.decode(member.base, member.scaling)
        data = json.loads(json.dumps(result.to_json()))
        for stored in data.get('scaling_stages', data.get('front')):
            base = space.decode(Genotype(tuple(stored['genes'])), Scaling(**stored['scaling']))
            assert isinstance(search, GivenFamily) or Arch.from_json(stored['arch']) == base
        assert forecast(search, 0).candidates


@settings(max_examples=30)
@given(space=spaces(), seed=SEEDS)
def test_no_network_comes_twice_in_any_generation(tmp_path_factory, space, seed):
    """Genotypes that mean one network are one: what a generation scores is new, each of it."""
    table = CostTable(space)
    low, high = table.range('flops')
    feasibility = Feasibility(table, (low + high) / 2, tolerance=0.5, scaled_stages=[])
    search = EvolutionSearch(FamilyFitness(feasibility), population=8, generations=4, seed=seed)
    asked = []

    class Asking(AnalyticEvaluator):
        def evaluate(self, arch, needed=None):
            asked.append(arch)
            return super().evaluate(arch, needed)

    evaluator = Asking(feasibility, 0, strategy=(Scaling(),))
    with Archive(tmp_path_factory.mktemp('run'), evaluator.fingerprint, durable=False) as archive:
        result = search.run(Scorer(archive, evaluator))
    on_budget = np.abs(table.costs(all_genotypes(space)).flops / feasibility.budget - 1) <= 0.5
    assert len(set(asked)) == len(asked) == result.evaluations
    # Whatever there is for four generations of eight is found, or nearly.
    assert result.evaluations >= 0.9 * min(32, on_budget.sum())
    for arch in asked:
        assert space.decode(space.encode(arch)) == arch


def test_evolution_beats_random_search_in_a_rich_space(tmp_path):
    family, better = rich_family(1), 0
    for seed in range(4):
        evolution = EvolutionSearch(family, population=16, generations=12, seed=seed)
        found, _, _ = run(tmp_path / f'evolution{seed}', evolution, 1)
        search = RandomSearch(family, found.evaluations, seed)
        better += found.fitness > run(tmp_path / f'random{seed}', search, 1)[0].fitness
    assert better >= 3


def test_words_of_a_space_with_one_scaling_stage_speak_of_networks(tmp_path):
    family = rich_family(1)
    said = [str(profile_search(family.feasibility.table, family, 100)).split('\n', 1)[1]]
    for i, search in enumerate(searches(1)):
        result, steps, progress = run(tmp_path / f'{i}', search, 1)
        said += [str(result), *(report.step for report in progress)]
        said += [describe(step, 32) for step in steps if hasattr(step, 'strategy')]
    narrow = Feasibility(family.feasibility.table, family.feasibility.budget, tolerance=1e-9)
    said.append(narrow.explain_empty((Scaling(),), np.random.default_rng(0)))
    with pytest.raises(ValueError, match='out of reach') as error:
        Feasibility(family.feasibility.table, 1)
    said.append(str(error.value))
    for text in said:
        assert not any(word in text for word in ('famil', 'scaling', 'strateg', 'base model')), (
            text
        )


def test_a_result_says_what_the_space_chooses(tmp_path):
    result, _, _ = run(tmp_path, RandomSearch(rich_family(2), 20), 2)
    lines, arch = str(result).splitlines(), result.family[0].arch
    widths = ' | '.join(map(str, arch.widths))
    assert f'  base model: channels per network stage {widths}' in lines
    assert f'channels of stem {arch.stem.out_channels}, head {arch.head.channels}' in str(result)
    for name in ('kernels', 'kinds', 'expansions', 'group widths', 'SE', 'activations'):
        assert any(line.startswith(f'  base model: {name} per') for line in lines)


def test_a_scaling_search_needs_scaling_stages():
    with pytest.raises(ValueError, match='ScalingSearch has nothing to search'):
        ScalingSearch(rich_family(1), hidden(1).base)


@settings(max_examples=60)
@given(space=spaces(most=200), seed=SEEDS)
def test_the_analytic_score_reacts_to_every_gene(space, seed):
    base = space.sample(np.random.default_rng(seed), 1)[0]
    low, high = CostTable(space).range('flops')
    assume(low > 0)
    budgets = Feasibility(CostTable(space), (low + high) / 2, tolerance=0.99, scaled_stages=[])
    strategy = (Scaling(),) * len(space.scaling_stages)
    evaluator = AnalyticEvaluator(budgets, 0, space.genotype(base), strategy)
    arch = space.decode(base)
    for row in all_genotypes(space)[:: 1 + space.size // 40]:
        other = space.decode(row)
        # What is not hidden has 999,999 at most, as much as if it were alike.
        evaluator.archs = (other,)
        assert other == arch or evaluator.evaluate(arch).correct < 999_999


@settings(max_examples=40)
@given(space=spaces(most=500), seed=SEEDS)
def test_repair_reaches_the_budgets_of_any_space(space, seed):
    rng = np.random.default_rng(seed)
    table = CostTable(space)
    genotypes = all_genotypes(space)
    budget = int(rng.choice(table.costs(genotypes).flops))
    feasibility = Feasibility(table, budget, tolerance=0.05)
    assert feasibility.base_range == (
        table.costs(genotypes).flops.min(),
        table.costs(genotypes).flops.max(),
    )
    genes = space.sample(rng, 20)
    repaired = feasibility.repair(genes, (Scaling(),), rng)
    assert feasibility.base_feasible(repaired).all()
    assert (space.canonicalise(repaired) == repaired).all()
    drawn = feasibility.draw(rng, space.size)
    on_budget = genotypes[feasibility.base_feasible(genotypes)]
    assert len(drawn) == len(np.unique(drawn, axis=0)) > 0.5 * len(on_budget) > 0
