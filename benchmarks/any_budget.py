#!/usr/bin/env python
"""Budgets that no search was run for, answered from an archive: predicted against scored.

The best predicted networks of every budget, and random ones within it, are scored with the
super-supernet of the search, in a copy of its work dir:

    python benchmarks/any_budget.py configs/scalenet/search-random_digits.py \
        work_dirs/search-random_digits
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from mmscale.apis.any_budget import answer_budgets, verify
from mmscale.apis.budget_answers import Answer, BudgetAnswers, Ranking
from mmscale.cost import CostTable
from mmscale.errors import UsageError
from mmscale.launch.command_line import read_config, set_environment
from mmscale.search import Archive, Surrogate
from mmscale.search.best_predicted import Predicted
from mmscale.search.distinct import distinct_scalings
from mmscale.search.limits import Limits

DRAWS = 512


def random_networks(
    table: CostTable, budget: dict[str, float], surrogate: Surrogate, number: int, seed: int
) -> tuple[Answer, ...]:
    """Random networks within a budget: a uniform scaling, a base model, as they come."""
    rng, space = np.random.default_rng(seed), table.space
    limits = Limits(table, budget, grows=False)
    stages = range(len(space.scaling_stages))
    options = [(j, scaling) for j in stages for scaling in distinct_scalings(space, j)]
    found: list[Answer] = []
    while len(found) < number:
        stage, scaling = options[rng.integers(len(options))]
        genes = space.sample(rng, DRAWS)
        for row in genes[limits.excess(table.costs(genes, scaling), stage) == 0][:1]:
            arch = space.decode(row, scaling)
            mean, deviation = surrogate.predict([arch])
            base = space.genotype(row)
            one = Predicted(base, stage, scaling, arch, mean.item(), deviation.item())
            found.append(Answer(arch, table.cost(arch), None, one, None))
    return tuple(found)


def scores_of(answers: BudgetAnswers, number: int) -> list[list[tuple[float, float, float]]]:
    """Per budget (predicted, its deviation, scored) of the networks that have a score."""
    return [
        [
            (n.predicted.mean, n.predicted.deviation, float(n.score.value))
            for n in answer.networks[:number]
            if n.score is not None
        ]
        for answer in answers.answers
    ]


def summary(pairs: list[list[tuple[float, float, float]]]) -> dict[str, float | int | None]:
    """How well scores were predicted, over all budgets and within them."""
    flat = np.array([pair for own in pairs for pair in own])
    ranking = Ranking.of(flat[:, 0], flat[:, 2])
    signed = flat[:, 0] - flat[:, 2]
    return {
        'networks': ranking.networks,
        'tau': ranking.tau,
        'mean_error': ranking.error,
        'bias': float(signed.mean()),
        'within_two_deviations': float((np.abs(signed) <= 2 * flat[:, 1]).mean()),
    }


def main() -> None:
    """Prints a JSON object: what was predicted, what was scored."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config of the search, with load_from')
    parser.add_argument('work_dir', type=Path, help='its work dir; a copy is worked on')
    parser.add_argument('--budgets', type=int, default=10, help='number of budgets of flops')
    parser.add_argument('--networks', type=int, default=2, help='scored per budget, of each kind')
    parser.add_argument('--cfg-options', nargs='+', default=[])
    args = parser.parse_args()
    set_environment()
    config = read_config(args.config, args.cfg_options)
    with tempfile.TemporaryDirectory() as temporary:
        work_dir = Path(temporary) / 'run'
        shutil.copytree(args.work_dir, work_dir)
        entries = list(Archive.open_existing(work_dir / 'archive').entries())
        flops = [entry.cost.flops for entry in entries]
        # Between the cheapest and the dearest archived network, on no budget of the search.
        ends = np.log([min(flops) * 1.1, max(flops) * 0.9])
        budgets = [
            {'flops': float(round(f, -3))} for f in np.exp(np.linspace(*ends, args.budgets))
        ]
        start = time.process_time()
        answers = answer_budgets(work_dir, budgets, config=config, number=args.networks)
        seconds = time.process_time() - start
        start = time.process_time()
        answer_budgets(work_dir, budgets[:1], config=config, number=args.networks)
        alone = time.process_time() - start
        from mmscale.apis.search import plan_search

        table = plan_search(config).table
        surrogate = Surrogate([e.arch for e in entries], [e.outcome for e in entries])
        drawn = replace(
            answers,
            answers=tuple(
                replace(
                    answer,
                    networks=random_networks(table, answer.budgets, surrogate, args.networks, i),
                )
                for i, answer in enumerate(answers.answers)
            ),
        )
        best = scores_of(verify(answers, config, args.networks), args.networks)
        random = scores_of(verify(drawn, config, args.networks), args.networks)
    gains = [
        np.mean([s for *_, s in own]) - np.mean([s for *_, s in other])
        for own, other in zip(best, random, strict=True)
    ]
    report = {
        'scores': answers.scores,
        'left_out': {'tau': answers.ranking.tau, 'mean_error': answers.ranking.error},
        'processor_seconds': {'all': round(seconds, 2), 'one_alone': round(alone, 2)},
        'best': summary(best),
        'random': summary(random),
        'gain_over_random': float(np.mean(gains)),
        'gain_standard_error': float(np.std(gains, ddof=1) / len(gains) ** 0.5),
        'budgets': [
            {**budget, 'best': own, 'random': other}
            for budget, own, other in zip(budgets, best, random, strict=True)
        ],
    }
    print(json.dumps(report, indent=1))


if __name__ == '__main__':
    try:
        main()
    except UsageError as error:
        sys.exit(f'error: {error}')
