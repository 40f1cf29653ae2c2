"""tools/quickstart.py: which trainings it wants, and that none is done twice."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmscale.arch import get_arch

TOOL = Path(__file__).parents[2] / 'tools' / 'quickstart.py'


@pytest.fixture(scope='module')
def quickstart():
    spec = importlib.util.spec_from_file_location('quickstart', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def args_of(**changes):
    return SimpleNamespace(**{'smoke': False, 'full': False, 'seed': 0, 'drawn': 3} | changes)


@pytest.mark.parametrize(('full', 'stages'), [(False, 3), (True, 5)])
def test_every_network_is_trained_three_times_and_drawn_ones_once(
    quickstart, tmp_path, full, stages
):
    jobs = quickstart.jobs_of(args_of(full=full), tmp_path)
    numbers = {name: len(own) for name, own in jobs.items()}
    families = ('searched', 'random', 'compound')
    expected = {
        f'{f} S{j} {s}': 3 for f in families for j in range(stages) for s in ('scratch', 'warm')
    }
    expected |= {
        k.replace('random', f'drawn{i}'): 1
        for k in expected
        for i in (1, 2, 3)
        if k.startswith('random')
    }
    if not full:
        # S0 scales nothing, and trainings from random weights are long.
        expected = {k: n for k, n in expected.items() if not k.endswith('S0 scratch')}
    assert numbers == expected
    every = [job for own in jobs.values() for job in own]
    assert len({job.name for job in every}) == len({job.work_dir for job in every}) == len(every)
    for name, own in jobs.items():
        assert [job.options['randomness.seed'] for job in own] == list(range(len(own)))
        starts = {job.weights is not None for job in own}
        assert starts == {name.endswith('warm')}
    # Other seeds share no training with these.
    others = quickstart.jobs_of(args_of(seed=1), tmp_path)['searched S0 warm']
    assert [job.options['randomness.seed'] for job in others] == [3, 4, 5]


def test_families_that_share_a_network_share_its_trainings(quickstart, tmp_path, monkeypatch):
    args = args_of(smoke=True, drawn=2, processes=1)
    for i, family in enumerate(('searched', 'random', 'compound', 'drawn1', 'drawn2')):
        (tmp_path / family / 'archs').mkdir(parents=True)
        for stage in range(2):
            # S0 of compound scaling is that of the search.
            number = 0 if (family, stage) == ('compound', 0) else 2 * i + stage
            get_arch('scalenet-s0').save(
                tmp_path / family / 'archs' / f'scaling_stage_{stage}.json'
            )
            path = tmp_path / family / 'archs' / f'scaling_stage_{stage}.json'
            path.write_text(path.read_text().replace('224', str(224 + number)))
    seen = []

    def run_jobs(jobs, processes, on_progress):
        seen.extend(jobs)
        return {job.name: {'accuracy': float(i), 'images': 9} for i, job in enumerate(jobs)}

    monkeypatch.setattr(quickstart, 'run_jobs', run_jobs)
    monkeypatch.setattr(quickstart.RetrainJob, 'result', lambda job: None)
    tested = quickstart.retrain(args, tmp_path)
    # S1 of 3 and 2 families from random weights; warm S0, of which two share one, and S1.
    assert len(seen) == 5 + 9
    assert tested['compound S0'] == tested['searched S0']
    assert set(tested['drawn2 S1']['accuracies']) == {'scratch', 'warm'}
    assert len(tested['random S1']['accuracies']['scratch']) == 1
    assert all(row['images'] == 9 for row in tested.values()) and len(tested) == 10
