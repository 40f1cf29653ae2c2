"""Searches from a checkpoint to result.json: processes, kills, refusals, and the evaluator."""

import copy
import hashlib
import json
import uuid
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import load_state_dict
from small_setups import KILL_IN_EVALUATION, SPACE

from mmscale.arch import Arch, SearchSpace, get_arch
from mmscale.cost import CostTable, count
from mmscale.engine import SubnetEvaluator
from mmscale.engine.search_loop import _merged, build_search
from mmscale.models import ArchNet
from mmscale.registry import SEARCHES
from mmscale.search import EvaluationError


@pytest.fixture
def searched(search_config, trained, data_root, write_config, call_tool):
    """Work dir of an uninterrupted search in one process, run once; tests must not change it."""
    work_dir = Path(data_root) / 'searched'
    if not (work_dir / 'result.json').is_file():
        config = dict(search_config, work_dir=str(work_dir), load_from=trained)
        code, errors = call_tool('search.py', write_config(config))
        assert code == 0, errors
    return work_dir


def contents(folder):
    """Every file of a folder by its path, as a digest."""
    files = sorted(path for path in Path(folder).rglob('*') if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).digest() for p in files}


def results_of(work_dir):
    """What depends on config, seed and weights alone."""
    return {
        name: digest
        for name, digest in contents(work_dir).items()
        if name in ('result.json', 'history.jsonl') or name.startswith('archs/')
    }


def entries(work_dir):
    paths = sorted((Path(work_dir) / 'archive').glob('rank*.jsonl'))
    return [line for path in paths for line in path.read_text().splitlines()[1:]]


# ------------------------------------------------------------------ the result


def test_result_is_what_it_says(searched, read_result):
    result = read_result(searched)
    space = SearchSpace(**SPACE)
    assert result['seed'] == 3
    assert {'mmscale', 'torch', 'mmengine', 'numpy'} <= set(result['versions'])
    text = (searched / 'result.json').read_text()
    assert str(searched) not in text
    assert 'second' not in text
    base = Arch.from_json(result['base']['arch'])
    assert space.encode(base).genes == tuple(result['base']['genes'])
    for j, member in enumerate(result['scaling_stages']):
        arch = Arch.from_json(member['arch'])
        assert member['cost']['flops'] == count(arch).flops
        target = 22_000 if j == 0 else count(base).flops * 2
        assert abs(count(arch).flops / target - 1) <= 0.3
        assert get_arch(searched / f'archs/scaling_stage_{j}.json') == arch
        weights = CheckpointLoader.load_checkpoint(f'{searched}/weights/scaling_stage_{j}.pth')
        backbone = {
            key.removeprefix('backbone.'): tensor
            for key, tensor in weights['state_dict'].items()
            if key.startswith('backbone.')
        }
        load_state_dict(ArchNet(arch), backbone, strict=True)
    assert len(entries(searched)) == result['evaluations']
    history = [json.loads(line) for line in (searched / 'history.jsonl').read_text().splitlines()]
    assert [event for event in history if event['kind'] != 'generation'] == result['chain']
    assert [event['number'] for event in history if event['kind'] == 'generation'] == [1, 2]
    digests = [json.loads(line)['entry']['digest'] for line in entries(searched)]
    assert len(set(digests)) == len(digests)  # nothing is evaluated twice


def test_seed_and_weights_change_the_result(
    searched,
    search_config,
    trained,
    supernet_config,
    write_config,
    call_tool,
    read_result,
    train,
    tmp_path,
):
    hashes = [read_result(searched)['config_hash']]
    supernet_config['randomness'] = dict(seed=9)
    other = train(supernet_config, tmp_path / 'other.pth')
    path = write_config(dict(search_config, load_from=trained))
    for number, option in enumerate(('randomness.seed=4', f'load_from={other}')):
        work_dir = tmp_path / f'search{number}'
        code, errors = call_tool(
            'search.py', path, '--work-dir', work_dir, '--cfg-options', option
        )
        assert code == 0, errors
        hashes.append(read_result(work_dir)['config_hash'])
        assert entries(work_dir) != entries(searched)
    assert len(set(hashes)) == 3


# ------------------------------------------------------------------ processes and kills


def test_search_killed_inside_an_evaluation_goes_on(
    searched, search_config, trained, write_config, fork_tool, call_tool
):
    config = dict(search_config, load_from=trained)
    path = write_config(config, kill=KILL_IN_EVALUATION.format(number=5))
    codes, said = fork_tool('search.py', path)
    assert codes == [-9], said
    work_dir = Path(search_config['work_dir'])
    known = entries(work_dir)
    assert len(known) == 4
    assert not (work_dir / 'result.json').exists()
    (work_dir / 'timing.json').write_text('[{"seconds": 3')
    leave_networks(work_dir)
    code, errors = call_tool('search.py', write_config(config), '--resume')
    assert code == 0, errors
    assert results_of(work_dir) == results_of(searched)
    assert entries(work_dir)[:4] == known
    assert entries(work_dir) == entries(searched)
    (timing,) = json.loads((work_dir / 'timing.json').read_text())
    assert timing['evaluations_of_rank_0'] == len(entries(searched)) - 4
    assert [path.name for path in work_dir.glob('*/*_9*')] == ['scaling_stage_9.notes']


def leave_networks(work_dir):
    """What an earlier search of more scaling stages left, and what is none of its files."""
    for name in (
        'archs/scaling_stage_9.json',
        'weights/scaling_stage_9.notes',
        'weights/front_9.pth',
    ):
        (work_dir / name).parent.mkdir(exist_ok=True)
        (work_dir / name).write_text('')


def test_what_fails_is_counted_and_tried_again_on_demand(
    searched, search_config, trained, write_config, call_tool, read_result, monkeypatch
):
    config = dict(search_config, load_from=trained)
    work_dir = Path(search_config['work_dir'])
    evaluate, calls = SubnetEvaluator.evaluate, []

    def failing(evaluator, arch, needed=None):
        calls.append(arch.digest)
        if len(calls) in (2, 5):
            raise EvaluationError('out of memory: 2 GiB')
        return evaluate(evaluator, arch, needed)

    monkeypatch.setattr(SubnetEvaluator, 'evaluate', failing)
    code, errors = call_tool('search.py', write_config(config))
    assert code == 0, errors
    result = read_result(work_dir)
    assert result['failed'] == 2
    assert len(entries(work_dir)) == result['evaluations'] + 2 == len(calls)
    seconds = (work_dir / 'seconds' / 'rank0000.jsonl').read_text().splitlines()
    assert [json.loads(line)['digest'] for line in seconds] == calls
    # Asked to, it evaluates the two again, and ends as if nothing had failed.
    before = calls.copy()
    config['experiment_name'] = uuid.uuid4().hex
    (work_dir / 'timing.json').write_text('[7, {"seconds": [[]]}]')
    code, errors = call_tool('search.py', write_config(config), '--resume', '--retry-failed')
    assert code == 0, errors
    assert len(json.loads((work_dir / 'timing.json').read_text())) == 1
    assert set(calls[len(before) :]) >= {before[1], before[4]}
    assert results_of(work_dir) == results_of(searched)


def test_halving_finds_the_same_with_fewer_images(
    searched, search_config, trained, write_config, call_tool, read_result
):
    config = dict(search_config, load_from=trained)
    path = write_config(config)
    code, errors = call_tool('search.py', path, '--cfg-options', 'test_cfg.search.halving=True')
    assert code == 0, errors
    work_dir = Path(config['work_dir'])
    assert contents(work_dir / 'archs') == contents(searched / 'archs')
    result, plain = read_result(work_dir), read_result(searched)
    for key in ('base', 'scaling_stages', 'fitness'):
        assert result[key] == plain[key]
    (timing,) = json.loads((work_dir / 'timing.json').read_text())
    (whole,) = json.loads((searched / 'timing.json').read_text())
    assert whole['images_of_rank_0'] == 40 * plain['evaluations']
    assert whole['images_saved_of_rank_0'] == 0
    assert (
        timing['images_of_rank_0'] + timing['images_saved_of_rank_0']
        == 40 * (timing['evaluations_of_rank_0'])
    )
    assert timing['images_of_rank_0'] <= whole['images_of_rank_0']


# ------------------------------------------------------------------ refusals


def refusal(call_tool, *arguments):
    """The only line on stderr of a search that has to be refused."""
    code, errors = call_tool('search.py', *arguments)
    lines = [line for line in errors.splitlines() if line.strip()]
    assert code == 2, errors
    assert len(lines) == 1, errors
    assert lines[0].startswith('error: ')
    assert len(lines[0]) < 1200
    return lines[0]


@pytest.fixture
def refused(searched, search_config, trained, write_config, call_tool):
    """A function that runs a refused search over the finished one, which must lose nothing."""
    config = dict(search_config, work_dir=str(searched), load_from=trained)

    def run(*arguments, changes=()):
        before = results_of(searched), entries(searched)
        changed = Config(copy.deepcopy(config))
        changed.merge_from_dict(dict(changes))
        changed.experiment_name = uuid.uuid4().hex
        line = refusal(call_tool, write_config(changed), *arguments)
        assert (results_of(searched), entries(searched)) == before
        return line

    return run


def test_archive_without_resume_is_refused(refused, searched):
    line = refused()
    assert f'work_dir={searched} holds the archive of an earlier search' in line
    assert '--resume' in line


@pytest.mark.parametrize(
    ('changes', 'difference'),
    [
        ({'test_cfg.subnet_evaluator.calibration_images': 24}, 'calibration_images: 16 in the'),
        ({'test_dataloader.batch_size': 16}, 'dataloader.batch_size: 8 in the archive, 16 now'),
        ({'test_cfg.subnet_evaluator.side': 'right'}, "side: 'left' in the archive, 'right' now"),
    ],
)
def test_archive_of_other_settings_is_refused(refused, changes, difference):
    line = refused('--resume', changes=changes)
    assert 'rank0000.jsonl: its scores belong to another setting' in line
    assert difference in line


def test_archive_of_another_checkpoint_is_refused(refused, supernet_config, train, tmp_path):
    supernet_config['randomness'] = dict(seed=9)
    other = train(supernet_config, tmp_path / 'other.pth')
    line = refused('--resume', changes={'load_from': str(other)})
    assert "weights: '" in line


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'load_from': None}, 'load_from is not set'),
        ({'load_from': 'no/such.pth'}, 'is not a file; it must name a checkpoint'),
        ({'test_cfg': None}, 'has no search: test_cfg.type must be'),
        ({'test_cfg.type': 'mmscale.SearchLop'}, 'test_cfg.type must be mmscale.SearchLoop'),
        ({'test_cfg.type': 'mmscale.MCEALoop'}, 'test_cfg.search needs type=mmscale.SearchLoop'),
        (
            {'test_cfg.search': 'MCEA'},
            "search='MCEA' must be a dict with type",
        ),
        ({'test_cfg.search.type': 'mmscale.MCAE'}, "search.type='mmscale.MCAE' is not one of"),
        ({'test_cfg.budget': None}, 'budget is not set: mmscale.MCEA searches a family'),
        ({'calibration_dataloader': None}, 'calibration_dataloader needs a dataset'),
        (
            {'test_cfg.budget': 9e9},
            'flops is out of reach: base models of this space have 6,208 to 21,984 flops',
        ),
        ({'test_cfg.tolerance': 2.0}, 'tolerance=2'),
        ({'test_cfg.metric': 'latency'}, "metric='latency'"),
        ({'test_cfg.search.polulation': 4}, "unexpected keyword argument 'polulation'"),
        ({'test_cfg.search.population': 0}, 'population=0'),
        (
            {'test_cfg.population': 4},
            'population; those of the search itself are in',
        ),
        ({'test_cfg.weights': [1]}, 'weights'),
        ({'test_cfg.subnet_evaluator.image': 4}, "unexpected keyword argument 'image'"),
        ({'test_cfg.subnet_evaluator.max_images': 49}, 'max_images=49 must lie in 1..48'),
        ({'test_cfg.subnet_evaluator.max_images': 0}, 'max_images=0 must lie in'),
        ({'test_cfg.subnet_evaluator.calibration_images': 0}, 'calibration_images=0 must lie'),
        ({'test_cfg.subnet_evaluator.side': 'top'}, "side='top' is not one of left, right, both"),
        ({'test_cfg.subnet_evaluator.bn': 'own'}, "bn='own' is not one of recalibrated, batch"),
        ({'test_cfg.search.halving': 1}, 'halving=1 must be True or False'),
        ({'test_cfg.subnet_evaluator.threads': 0}, 'threads=0 must be an integer of 1 or more'),
        ({'model.backbone.space.stem.width': 4}, 'space.stem: unknown key width'),
        ({'model.type': 'ImageClassifier', 'model.mode': None}, 'ImageClassifier'),
    ],
)
def test_bad_settings_are_refused(refused, changes, message):
    assert message in refused('--resume', changes=changes)


def test_an_archive_that_cannot_be_written_is_one_line(
    search_config, trained, write_config, call_tool, tmp_path
):
    work_dir = tmp_path / 'work'
    work_dir.mkdir()
    (work_dir / 'archive').write_text('in the way')
    path = write_config(dict(search_config, work_dir=str(work_dir), load_from=trained))
    assert str(work_dir / 'archive') in refusal(call_tool, path)


def test_strategies_that_fit_no_budget_are_refused(refused, read_result, searched):
    # The base model meets its budget to the unit, none of its scalings does.
    flops = read_result(searched)['scaling_stages'][0]['cost']['flops']
    line = refused('--resume', changes={'test_cfg.budget': flops, 'test_cfg.tolerance': 1e-9})
    assert 'scaling stage 1' in line
    assert 'nearest within reach' in line


def test_resolutions_that_were_never_trained_are_refused(refused):
    key = 'model.backbone.space.scaling_stages'
    stages = [
        SPACE['scaling_stages'][0],
        dict(SPACE['scaling_stages'][1], resolution=[12, 13, 16, 20]),
    ]
    line = refused('--resume', changes={key: stages})
    assert 'model.backbone.space has resolutions of 13, 20 px, at which this super-' in line
    assert 'only at 12, 14, 16 px' in line


def test_images_of_another_size_than_is_searched_are_refused(refused, loader):
    pipeline = [dict(type='Resize', scale=16)]
    plain = loader('search', pipeline, dict(type='DefaultSampler'), seeded=False)
    line = refused('--resume', changes={'test_dataloader': {**plain, '_delete_': True}})
    assert 'test_dataloader.dataset: its pipeline makes images of 16 x 16 px where' in line
    assert 'to get 12 x 12' in line


def test_foreign_checkpoint_is_refused_by_its_keys(
    search_config, trained, write_config, call_tool, tmp_path
):
    path = write_config(search_config)
    state = CheckpointLoader.load_checkpoint(trained)['state_dict']
    wide = {key: torch.cat([t, t]) if t.ndim else t for key, t in state.items()}
    renamed = {key.replace('stages.1', 'layer1'): tensor for key, tensor in state.items()}
    for found, problem in [
        (renamed, 'missing: backbone.stages.1.0'),
        (renamed, 'not in the model: backbone.layer1.0'),
        (wide, 'of another shape: backbone.stem.conv.weight'),
        ({'a': torch.ones(1)}, '1 not in the model: a'),
    ]:
        torch.save({'state_dict': found}, tmp_path / 'foreign.pth')
        options = ('--cfg-options', f'load_from={tmp_path}/foreign.pth')
        line = refusal(call_tool, path, *options)
        assert 'the checkpoint does not fit the model' in line
        assert problem in line
    (tmp_path / 'foreign.pth').write_bytes(Path(trained).read_bytes()[:5000])
    assert 'foreign.pth' in refusal(call_tool, path, *options)


# ------------------------------------------------------------------ other searches


@pytest.fixture(scope='session')
def table():
    return CostTable(SearchSpace(**SPACE))


def test_a_loader_of_the_loop_says_what_differs_from_that_of_the_config():
    loader = dict(batch_size=8, dataset=dict(type='A', dataset=dict(type='B', split='train')))
    found = _merged(loader, dict(dataset=dict(dataset=dict(type='C'))))
    assert found.to_dict() == dict(
        batch_size=8, dataset=dict(type='A', dataset=dict(type='C', split='train'))
    )
    assert (_merged(None, loader), _merged(loader, None)) == (loader, loader)
    assert _merged(loader, dict(_delete_=True, batch_size=1)).to_dict() == dict(batch_size=1)


def test_a_new_search_is_one_class(table):
    class FirstOfAll:
        def __init__(self, table, size):
            self.table, self.size = table, size

    SEARCHES.register_module(module=FirstOfAll)
    try:
        search = build_search(table, 0, dict(type='FirstOfAll', size=3))
        assert (search.table, search.size) == (table, 3)
        with pytest.raises(TypeError, match="unexpected keyword argument 'polulation'"):
            build_search(table, 0, dict(type='FirstOfAll', size=3, polulation=3))
    finally:
        del SEARCHES.module_dict['FirstOfAll']


@pytest.mark.parametrize('strategy', ['fibonacci', [[1, 2, 3]] * 2, [{}]])
@pytest.mark.parametrize('name', ['GivenFamily', 'EvolutionSearch'])
def test_a_strategy_that_is_none_is_refused(name, strategy, table):
    settings = dict(base=[0] * 7) if name == 'GivenFamily' else {}
    with pytest.raises(ValueError, match=r'strategy(=|\[0\])'):
        search = dict(type=f'mmscale.{name}', strategy=strategy, **settings)
        build_search(table, 0, search, budget=22_000, tolerance=0.3)


def without_hash(work_dir):
    """What a search has found, less the hash of the text of its config."""
    result = json.loads((work_dir / 'result.json').read_text())
    del result['config_hash']
    return {**results_of(work_dir), 'result.json': result}


# Flat settings of the loops that configs had before there was one for all searches.
EVOLUTION = dict(population=3, generations=2)
LOOPS = {
    'MCEALoop': ('MCEA', dict(EVOLUTION, rounds=1, num_base_models=1)),
    'EvolutionLoop': ('EvolutionSearch', dict(EVOLUTION, strategy='found')),
    'PlainEvolutionLoop': ('EvolutionSearch', EVOLUTION),
    'ScalingLoop': ('ScalingSearch', dict(base='found')),
    'SeparateSearchLoop': ('SeparateSearch', dict(EVOLUTION, rounds=1, num_base_models=1)),
    'RandomSearchLoop': ('RandomSearch', dict(evaluations=8)),
    'FamilyLoop': ('GivenFamily', dict(base='found', strategy='found')),
    'ParetoLoop': ('ParetoSearch', dict(EVOLUTION, metric='params')),
}


@pytest.mark.parametrize('loop', LOOPS)
def test_what_a_loop_of_its_own_began_the_one_loop_goes_on_with(
    loop, searched, search_config, trained, write_config, call_tool, read_result
):
    found = read_result(searched)
    given = {
        'base': found['base']['genes'],
        'strategy': [member['scaling'] for member in found['scaling_stages']],
    }
    search, settings = LOOPS[loop]
    settings = {k: given[k] if value == 'found' else value for k, value in settings.items()}
    nested = dict(search_config['test_cfg'], search=dict(type=f'mmscale.{search}', **settings))
    if search == 'ParetoSearch':
        for key in ('budget', 'tolerance', 'weights'):
            del nested[key]
    flat = {**nested, **settings, 'type': f'mmscale.{loop.removeprefix("Plain")}'}
    del flat['search']
    # Before, the loader of images for BN statistics stood in test_cfg.
    flat['calibration_dataloader'] = search_config['calibration_dataloader']
    config = dict(search_config, load_from=trained, test_cfg=flat)
    del config['calibration_dataloader']
    work_dir = Path(search_config['work_dir'])
    code, errors = call_tool('search.py', write_config(config))
    assert code == 0, errors
    before, lines = without_hash(work_dir), entries(work_dir)
    result = read_result(work_dir)
    assert result['evaluations'] == len(lines)
    if 'base' in settings:
        assert result['base']['genes'] == given['base']
    if search != 'ParetoSearch':
        stages = [0] if loop == 'PlainEvolutionLoop' else [0, 1]
        assert [m['scaling_stage'] for m in result['scaling_stages']] == stages
    # The end of it is lost.
    archive = work_dir / 'archive' / 'rank0000.jsonl'
    text = archive.read_text().splitlines(keepends=True)
    archive.write_text(''.join(text[:-2]) + text[-2][:50])
    config = dict(search_config, load_from=trained, test_cfg=nested)
    config['experiment_name'] = uuid.uuid4().hex
    code, errors = call_tool('search.py', write_config(config), '--resume')
    assert code == 0, errors
    assert without_hash(work_dir) == before
    assert entries(work_dir) == lines
