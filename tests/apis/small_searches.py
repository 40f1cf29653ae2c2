"""Work dirs of small searches, for reports."""

import json

from mmscale.arch import SearchSpace
from mmscale.cost import CostTable
from mmscale.search import (
    MCEA,
    Archive,
    FamilyFitness,
    Feasibility,
    ParetoSearch,
    Score,
    Scorer,
)

SPACE = dict(
    in_channels=1,
    num_classes=10,
    stem=dict(channels=4),
    stages=[
        dict(channels=4, stride=1, expand=1, depths=[1, 2], kernels=[3, 5]),
        dict(channels=6, stride=2, expand=2, depths=[1, 2, 3], kernels=[3, 5, 7]),
    ],
    head=dict(channels=12),
    scaling_stages=[
        dict(depth=[1], width=[1], resolution=[12]),
        dict(depth=[1.2, 1.6, 2.2], width=[1.2, 1.4, 1.6], resolution=[12, 14, 16]),
    ],
)
BUDGET, TOLERANCE = 22_000, 0.3


class Evaluator:
    fingerprint = {'evaluator': 'by formula'}

    def evaluate(self, arch):
        return Score(len(arch.blocks) * 40 + arch.widths[-1] * 10 + arch.resolution, 1000)


def write_run(work_dir, search):
    """Runs a search as a loop does, with its files."""
    work_dir.mkdir(parents=True, exist_ok=True)
    with (
        Archive(work_dir / 'archive', Evaluator.fingerprint, durable=False) as archive,
        (work_dir / 'history.jsonl').open('w') as history,
    ):
        result = search(
            Scorer(archive, Evaluator()),
            lambda event: history.write(json.dumps(event.to_json()) + '\n'),
        )
    (work_dir / 'result.json').write_text(json.dumps(result.to_json()))
    return result


def mcea(scorer, on_step):
    feasibility = Feasibility(CostTable(SearchSpace(**SPACE)), BUDGET, tolerance=TOLERANCE)
    search = MCEA(FamilyFitness(feasibility, [1, 1]), 4, 3, rounds=2, num_base_models=2)
    return search.run(scorer, on_step)


def pareto(scorer, on_step):
    table = CostTable(SearchSpace(**SPACE))
    return ParetoSearch(table, 'params', None, 6, 4).run(scorer, on_step)


def structure_line(iteration, channels, flops):
    costs = dict(budget=60.0, value=flops, flops=flops, params=9, acts=5)
    kept = {'stem': channels, 'stages.0': [1, 0]}
    sizes = {'stem': 16}
    line = {'iteration': iteration, 'metric': 'flops', **costs, 'structure': kept, 'sizes': sizes}
    return json.dumps(line)
