"""The final round of a search from a checkpoint: more images for what they do not tell apart."""

import copy
import json
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.runner import Runner

from mmscale.errors import UsageError
from mmscale.search import Archive


@pytest.fixture
def make_runner(search_config, trained, tmp_path):
    """A function that makes the runner of a search of 24 of 48 images."""

    def make(name='search', **settings):
        test_cfg = {**search_config['test_cfg'], **settings}
        test_cfg['subnet_evaluator'] = dict(calibration_images=8, max_images=24)
        config = dict(
            search_config,
            test_cfg=test_cfg,
            load_from=trained,
            work_dir=str(tmp_path / name),
            experiment_name=f'{tmp_path.name}-{len(made)}',
        )
        made.append(name)
        return Runner.from_cfg(Config(copy.deepcopy(config)))

    made = []
    return make


def test_a_final_round_is_resumed_to_the_same_bytes(make_runner, tmp_path):
    make_runner(final_images=48, final_candidates=3).test()
    work_dir = tmp_path / 'search'
    text = (work_dir / 'result.json').read_text()
    result = json.loads(text)
    assert result['final']['images'] == 48
    leaders = result['final']['leaders']
    assert 2 <= len(leaders) <= 3
    finals = [leader['final_fitness'] for leader in leaders]
    assert finals == sorted(finals, reverse=True)
    assert result['base']['genes'] == leaders[0]['genes']
    for stage in result['scaling_stages']:
        assert stage['score']['total'] == 24 and stage['final_score']['total'] == 48
    # An archive of its own, of other images.
    archive, own = (Archive.open_existing(work_dir / name) for name in ('archive', 'final'))
    assert own.fingerprint['max_images'] == 48 and archive.fingerprint['max_images'] == 24
    differing = {
        key for key, value in own.fingerprint.items() if archive.fingerprint[key] != value
    }
    assert differing == {'max_images', 'images'}
    # A kill in the final round: one evaluation of it is left.
    path = work_dir / 'final' / 'rank0000.jsonl'
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(''.join(lines[:2]))
    (work_dir / 'result.json').unlink()
    make_runner(final_images=48, final_candidates=3, resume=True).test()
    assert (work_dir / 'result.json').read_text() == text
    assert sorted(path.read_text().splitlines()) == sorted(''.join(lines).splitlines())


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(final_images=24), r'^final_images=24 must be more than the 24 images of the search'),
        (dict(final_images=49), r'^final_images=49 must lie in 1\.\.48'),
        (dict(final_images='48'), r'^final_images='),
        (dict(final_images=48, final_candidates=1), r'^final_candidates=1 '),
        (
            dict(final_images=48, budget=None, weights=None, tolerance=None,
                 search=dict(type='mmscale.ParetoSearch', population=4, generations=1)),
            r'^final_images=48: ParetoSearch has no runners-up',
        ),
    ],
)  # fmt: skip
def test_a_final_round_that_cannot_be_is_refused(settings, message, make_runner, tmp_path):
    with pytest.raises(UsageError, match=message):
        make_runner(**settings).test()
    assert not Path(tmp_path / 'search' / 'archive').exists()


def test_of_scores_that_count_no_answers_there_is_none(make_runner, monkeypatch):
    monkeypatch.setattr('mmscale.engine.SubnetEvaluator.counts_answers', False)
    with pytest.raises(UsageError, match=r'^final_images=48: SubnetEvaluator counts no right'):
        make_runner(final_images=48).test()
