"""Spaces of depths and kernels mean what they meant before there were others: stored facts.

``tests/data/old_spaces.json`` was written by the version before, from its shipped configs; the
archive by its search of tests/search/analytic_problem.py.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config

from mmscale.arch import HierarchicalSampler, SearchSpace
from mmscale.cost import CostTable
from mmscale.search import Archive
from mmscale.search.feasibility import distinct_scalings
from mmscale.search.operators import crossover, mutate

ROOT = Path(__file__).parents[2]
STORED = json.loads((ROOT / 'tests/data/old_spaces.json').read_text())


@pytest.fixture(scope='module', params=STORED)
def stored(request):
    return STORED[request.param]


def test_configs_are_as_stored():
    for name in ('digits', 'digits_detection', 'scalenet'):
        path = ROOT / f'configs/_base_/search_spaces/{name}.py'
        assert (
            json.loads(json.dumps(Config.fromfile(path).space.to_dict()))
            == (STORED[name]['config'])
        )


def test_genotypes_networks_and_costs(stored):
    space = SearchSpace(**stored['config'])
    genes = np.array(stored['genes'])
    scalings = [space.scalings(j)[-1] for j in range(len(space.scaling_stages))]
    assert space.size == stored['size']
    assert space.num_choices.tolist() == stored['num_choices']
    assert space.sample(np.random.default_rng(0), 6).tolist() == stored['genes']
    found = [[space.decode(row, scaling).digest for scaling in scalings] for row in genes]
    assert found == stored['digests']
    table = CostTable(space)
    assert [table.costs(genes, s).flops.tolist() for s in scalings] == stored['flops']
    for row in genes:
        assert space.encode(space.decode(row)).genes == tuple(row)


def test_ends_and_allocation(stored):
    space = SearchSpace(**stored['config'])
    stages = range(len(space.scaling_stages))
    assert space.allocation.digest == stored['allocation']
    assert space.widest.digest == stored['widest']
    assert [space.largest(j).digest for j in stages] == stored['largest']
    assert [space.smallest(j).digest for j in stages] == stored['smallest']
    assert list(space.resolutions) == stored['resolutions']
    assert [len(distinct_scalings(space, j)) for j in stages] == stored['distinct_scalings']


def test_draws_and_operators(stored):
    space = SearchSpace(**stored['config'])
    genes = np.array(stored['genes'])
    sampler = HierarchicalSampler(space, 3)
    for i, wanted in enumerate(stored['draws']):
        draw = sampler.draw(i)
        found = [draw.scaling_stage, draw.side, list(draw.genotype.genes), draw.arch.digest]
        assert found == wanted
    rng = np.random.default_rng
    assert mutate(space, genes, rng(1), 2.0).tolist() == stored['mutated']
    assert crossover(space, genes, genes[::-1], rng(2)).tolist() == stored['crossed']


def test_a_search_goes_on_from_a_stored_archive(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tests/search'))
    import analytic_problem

    data = ROOT / 'tests/data/old_archive'
    archive = tmp_path / 'archive'
    archive.mkdir()
    lines = (data / 'rank0000.jsonl').read_bytes()
    (archive / 'rank0000.jsonl').write_bytes(lines)
    with Archive(archive, analytic_problem.AnalyticEvaluator.fingerprint, rank=None) as known:
        digests = set(known.digests())
        scores = {entry.arch: entry.outcome for entry in known.entries()}
    # The search takes other steps than that of then; what was scored then is not scored again.
    analytic_problem.search(tmp_path)
    evaluated = (tmp_path / 'evaluated0.txt').read_text().split()
    assert evaluated and not digests & set(evaluated)
    assert (archive / 'rank0000.jsonl').read_bytes().startswith(lines)
    assert scores and all(analytic_problem.analytic_score(a) == s for a, s in scores.items())
    old = json.loads((data / 'result.json').read_text())
    found = json.loads((tmp_path / 'result.json').read_text())
    assert found['evaluations'] > len(evaluated)
    assert found['fitness'] >= 0.95 * old['fitness']
    sys.modules.pop('analytic_problem', None)
