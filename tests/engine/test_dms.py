"""Differentiable searches through MMEngine's Runner: schedule, resume, checkpoints, errors."""

import copy
import json
import uuid
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import CheckpointLoader, Runner

from mmscale.cost import count_module
from mmscale.engine import DMSHook
from mmscale.models.dms import apply_pruning, plan_pruning
from mmscale.registry import MODELS


@pytest.fixture
def dms_config(retrain_config, tmp_path):
    """Searches a small network in twelve iterations, with a structure's optimizer with state."""
    config = copy.deepcopy(retrain_config)
    config['work_dir'] = str(tmp_path / 'dms')
    config['model'] = dict(
        type='mmscale.DMSModel',
        model=config['model'],
        target=0.6,
        input_shape=(1, 12, 12),
        structure_optimizer=dict(type='Adam', lr=0.03),
    )
    config['custom_hooks'].append(dict(type='mmscale.DMSHook', interval=2))
    config['train_cfg'] = dict(by_epoch=False, max_iters=10, val_interval=10)
    config['param_scheduler'] = [dict(type='CosineAnnealingLR', by_epoch=False, end=10)]
    return config


def runner_of(config, **changes):
    config = Config(copy.deepcopy(config))
    config.experiment_name = uuid.uuid4().hex
    config.merge_from_dict(changes)
    return Runner.from_cfg(config)


def checkpoint(work_dir, iteration=10):
    return CheckpointLoader.load_checkpoint(f'{work_dir}/iter_{iteration}.pth', 'cpu')


def lines(work_dir):
    return [json.loads(line) for line in (Path(work_dir) / 'structure.jsonl').open()]


def flat(value, prefix=''):
    """Every leaf of a nested state dict by its path."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in items:
        if isinstance(part, (dict, list, tuple)):
            yield from flat(part, f'{prefix}/{key}')
        else:
            yield f'{prefix}/{key}', part


class StopAfter(Hook):
    """Interrupts training, one iteration behind the last checkpoint."""

    priority = 'VERY_LOW'

    def __init__(self, iteration):
        self.iteration = iteration

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.iteration:
            raise KeyboardInterrupt


# ------------------------------------------------------------------ search


@pytest.mark.parametrize('metric', ['flops', 'params'])
def test_search_ends_on_the_budget(metric, dms_config):
    dms_config['model']['metric'] = metric
    runner = runner_of(dms_config)
    runner.train()
    model = runner.model
    saved = checkpoint(dms_config['work_dir'])['state_dict']
    plain = MODELS.build(runner.cfg.model.model)
    plain.load_state_dict(
        {key.removeprefix('model.'): v for key, v in saved.items() if key.startswith('model.')}
    )
    keep = {g.name: model.gates[g.key].keep_indices.tolist() for g in model.groups.all}
    pruned = apply_pruning(plain, plan_pruning(plain, model.groups, keep))
    counted = getattr(count_module(pruned, (1, 12, 12), memory=False), metric)
    assert 0.98 * model.goal <= counted <= model.goal
    last = lines(dms_config['work_dir'])[-1]
    assert last['value'] == last[metric] == counted
    # What was evaluated is what was saved: everything is hard.
    assert all(saved[f'gates.{key}.hard'] for key in model.gates)


def test_schedule_of_the_budget(dms_config):
    seen = []

    class Recorder(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            depth = runner.model.groups.depths[0]
            seen.append((runner.model._budget, bool(runner.model.gates[depth.key].hard)))

    runner = runner_of(dms_config)
    runner.register_hook(Recorder())
    runner.train()
    full, goal = runner.model.cost.full.flops, runner.model.goal
    assert goal == pytest.approx(0.6 * full)
    assert [budget / full for budget, _ in seen] == pytest.approx(
        [0.6 ** min(1, i / 8) for i in range(10)]
    )
    assert [hard for _, hard in seen] == [False] * 8 + [True] * 2


def test_structure_has_its_own_optimizer(dms_config):
    runner = runner_of(dms_config)
    runner.train()
    own = runner.model.structure_optimizer.param_groups
    theirs = [id(p) for group in runner.optim_wrapper.param_groups for p in group['params']]
    ratios = [gate.pruning_ratio for gate in runner.model.gates.values()]
    assert [id(p) for p in own[0]['params']] == [id(ratio) for ratio in ratios]
    assert not set(theirs) & {id(ratio) for ratio in ratios}
    assert len(theirs) == len(list(runner.model.model.parameters()))
    # The schedule took the weights' learning rate down, not the structure's.
    assert own[0]['lr'] == 0.03 and runner.optim_wrapper.get_lr()['lr'][-1] < 1e-3


# ------------------------------------------------------------------ resume


@pytest.mark.parametrize('stop', [5, 9])
def test_resumed_search_equals_uninterrupted(stop, dms_config, tmp_path):
    straight, resumed = str(tmp_path / 'straight'), str(tmp_path / 'resumed')
    runner_of(dms_config, work_dir=straight).train()
    runner = runner_of(dms_config, work_dir=resumed)
    runner.register_hook(StopAfter(stop))
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    # A kill may come in the middle of a line, or behind the checkpoint that is resumed.
    with (Path(resumed) / 'structure.jsonl').open('a') as file:
        file.write(json.dumps({'iteration': stop}) + '\n{"iterat')
    runner_of(dms_config, work_dir=resumed, resume=True).train()
    assert lines(resumed) == lines(straight)
    assert [line['iteration'] for line in lines(straight)] == [2, 4, 6, 8, 10]
    one, other = checkpoint(straight), checkpoint(resumed)
    for key in ('state_dict', 'optimizer', 'structure_optimizer'):
        left, right = dict(flat(one[key])), dict(flat(other[key]))
        assert left.keys() == right.keys()
        for name, value in left.items():
            equal = (
                torch.equal(value, right[name]) if torch.is_tensor(value) else value == right[name]
            )
            assert equal, name
    assert any('exp_avg' in name for name, _ in flat(one['structure_optimizer']))


# ------------------------------------------------------------------ tools and errors


def test_two_processes_search(dms_config, write_config, run_tool):
    from small_setups import ROOT

    path = write_config(dms_config)
    trained = run_tool(ROOT / 'tools/dist_train.sh', path, 2)
    assert trained.returncode == 0, trained.stderr[-3000:]
    last = lines(dms_config['work_dir'])[-1]
    assert 0.98 * last['budget'] <= last['value'] <= last['budget']


def test_loss_that_is_not_a_number(dms_config):
    dms_config['optim_wrapper']['optimizer']['lr'] = float('inf')
    with pytest.raises(RuntimeError, match=r'loss=nan at iteration 2: the search cannot go on'):
        runner_of(dms_config).train()


def test_hook_refuses_another_model(retrain_config):
    retrain_config['custom_hooks'].append(dict(type='mmscale.DMSHook'))
    with pytest.raises(TypeError, match=r'model.type=mmscale.DMSModel, got ImageClassifier'):
        runner_of(retrain_config).train()


def test_settings_of_the_hook():
    with pytest.raises(ValueError, match=r'falling=0 must lie in 0..1, above 0'):
        DMSHook(falling=0)
    with pytest.raises(ValueError, match='interval=0 must be an integer of 1 or more'):
        DMSHook(interval=0)


def test_a_target_out_of_reach_is_told_before_any_work(dms_config, write_config, call_tool):
    dms_config['model']['target'] = 0.01
    code, errors = call_tool('train.py', write_config(dms_config))
    assert code == 2
    assert 'error: ' in errors and 'out of reach: the whole model has' in errors
    assert not (Path(dms_config['work_dir']) / 'structure.jsonl').exists()
