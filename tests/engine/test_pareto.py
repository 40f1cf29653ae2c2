"""Pareto search in a super-supernet: killed and continued, its files, its refusals."""

import copy
import json
import uuid
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.runner import Runner
from small_setups import KILL_IN_EVALUATION, SPACE

from mmscale.arch import Arch, SearchSpace, get_arch
from mmscale.cost import LatencyModel, LatencySetting, count
from mmscale.search import Archive


@pytest.fixture
def pareto_config(search_config, supernet_config, data_root):
    checkpoint = Path(data_root) / 'supernet_of_pareto.pth'
    if not checkpoint.is_file():
        config = Config(copy.deepcopy(supernet_config))
        config.experiment_name = uuid.uuid4().hex
        Runner.from_cfg(config).train()
        (Path(config.work_dir) / 'iter_8.pth').rename(checkpoint)
    loop = dict(
        type='mmscale.SearchLoop',
        search=dict(type='mmscale.ParetoSearch', population=4, generations=3),
        subnet_evaluator=search_config['test_cfg']['subnet_evaluator'],
    )
    return dict(search_config, load_from=str(checkpoint), test_cfg=loop)


@pytest.fixture
def latency_file(tmp_path):
    space = SearchSpace(**SPACE)
    costs = [count(arch) for j in (0, 1) for arch in (space.smallest(j), space.largest(j))]
    model = LatencyModel.fit(costs, [1.0 + 1e-4 * c.acts for c in costs], LatencySetting())
    model.save(tmp_path / 'latency.json')
    return tmp_path / 'latency.json'


def files(work_dir):
    paths = [work_dir / 'result.json', *sorted((work_dir / 'archs').iterdir())]
    return {path.name: path.read_bytes() for path in paths}


def test_a_killed_search_ends_with_the_identical_files(
    pareto_config, write_config, fork_tool, call_tool, tmp_path
):
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    config = write_config(pareto_config, 'pareto.py')
    code, errors = call_tool('search.py', config, '--work-dir', whole)
    assert code == 0, errors
    killing = write_config(pareto_config, 'killing.py', KILL_IN_EVALUATION.format(number=6))
    assert fork_tool('search.py', killing, '--work-dir', killed)[0] == [-9]
    assert not (killed / 'result.json').exists()
    assert len(Archive.open_existing(killed / 'archive')) == 5
    code, errors = call_tool('search.py', config, '--work-dir', killed, '--resume')
    assert code == 0, errors
    # The config files differ in their custom imports alone, which no score depends on.
    assert files(killed) == files(whole)

    result = json.loads((whole / 'result.json').read_text())
    assert result['kind'] == 'pareto' and result['evaluations'] == 12
    assert {'convention', 'config_hash', 'versions'} <= set(result)
    assert len(files(whole)) == 1 + len(result['front'])
    for i, member in enumerate(result['front']):
        assert get_arch(whole / f'archs/front_{i}.json') == Arch.from_json(member['arch'])
        assert (whole / f'weights/front_{i}.pth').is_file()
    events = [json.loads(line) for line in (whole / 'history.jsonl').read_text().splitlines()]
    assert [event['number'] for event in events] == [1, 2, 3]
    assert {event['kind'] for event in events} == {'generation'}


def test_latency_comes_from_the_model_in_a_file(
    pareto_config, write_config, call_tool, tmp_path, latency_file
):
    options = ['test_cfg.search.metric=latency', f'test_cfg.search.latency_model={latency_file}']
    config = write_config(pareto_config, 'pareto.py')
    code, errors = call_tool(
        'search.py', config, '--work-dir', tmp_path / 'run', '--cfg-options', *options
    )
    assert code == 0, errors
    result = json.loads((tmp_path / 'run' / 'result.json').read_text())
    latencies = [member['cost']['latency'] for member in result['front']]
    assert result['metric'] == 'latency' and latencies == sorted(latencies)


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('test_cfg.search.metric=latency', 'latency_model'),
        ('test_cfg.search.latency_model=absent.json', 'latency_model: [Errno 2] No such file'),
        ('test_cfg.search.latency_model=[1]', 'latency_model=[1] must be the path'),
        ('test_cfg.search.cost_range=[1e9,2e9]', 'out of reach'),
        ('test_cfg.budget=1e6', 'budget=1000000.0: mmscale.ParetoSearch has no budgets'),
        ('test_cfg.metric=latency', "metric='latency': mmscale.ParetoSearch has no budgets"),
    ],
)
def test_mistakes_are_told_before_any_work(
    pareto_config, write_config, call_tool, tmp_path, option, message
):
    config = write_config(pareto_config, 'pareto.py')
    code, errors = call_tool(
        'search.py', config, '--work-dir', tmp_path / 'run', '--cfg-options', option
    )
    assert code == 2
    assert message in errors and errors.count('\n') == 1
    assert not (tmp_path / 'run' / 'archive').exists()
