"""Differentiable searches through MMEngine's Runner: schedule, resume, checkpoints, errors."""

import copy
import json
import uuid
from functools import partial
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DefaultScope
from mmengine.runner import CheckpointLoader, Runner

from mmscale.apis.pruned_files import export_search
from mmscale.apis.reports.report import report as make_report
from mmscale.arch import Arch
from mmscale.cost import Cost, LatencyModel, LatencySetting, count_module
from mmscale.datasets import Draw
from mmscale.datasets.draws import seed_of
from mmscale.engine import DMSHook
from mmscale.errors import UsageError
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
    """Interrupts training, one iteration after the last checkpoint."""

    priority = 'VERY_LOW'

    def __init__(self, iteration):
        self.iteration = iteration

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.iteration:
            raise KeyboardInterrupt


# ------------------------------------------------------------------ search


def latency_file(path):
    """Runtime of a device that takes half of its time for acts, and never less than 0.01 ms."""
    costs = [Cost(10**4, 1, 10**3), Cost(10**5, 1, 10**3), Cost(10**4, 1, 10**4)]
    times = [0.01 + cost.acts / 10**5 + cost.flops / 2e6 for cost in costs]
    LatencyModel.fit(costs, times, LatencySetting(device_name='test')).save(path)
    return str(path)


@pytest.mark.parametrize('metric', ['flops', 'params', 'acts', 'latency'])
def test_search_ends_on_the_budget(metric, dms_config, write_config, tmp_path):
    dms_config['model'].update(metric=metric, target=0.7)
    if metric == 'latency':
        dms_config['model']['latency_model'] = latency_file(tmp_path / 'latency.json')
    runner = runner_of(dms_config)
    runner.train()
    saved = checkpoint(dms_config['work_dir'])['state_dict']
    # What was evaluated is what was saved: everything is hard.
    assert all(saved[f'gates.{key}.hard'] for key in runner.model.gates)
    search = Config.fromfile(write_config(dms_config))
    report = export_search(search, saved, tmp_path / 'pruned').to_json()
    exported = MODELS.build(Config.fromfile(tmp_path / 'pruned' / 'retrain.py').model)
    counted = count_module(exported, (1, 12, 12), memory=False).cost
    assert report['after'] == {key: getattr(counted, key) for key in ('flops', 'params', 'acts')}
    value, goal = runner.model.value(counted), runner.model.goal
    assert 0.98 * goal <= value <= goal
    last = lines(dms_config['work_dir'])[-1]
    assert last['sizes'] == {group.name: group.size for group in runner.model.groups.all}
    assert last['value'] == value
    assert last['budget'] == pytest.approx(goal)
    assert {key: last[key] for key in report['after']} == report['after']


def test_averaged_weights_have_the_structure_of_the_moment(dms_config, tmp_path):
    ema = dict(type='EMAHook', momentum=0.1, update_buffers=True)
    dms_config['custom_hooks'].append(dict(ema, priority=49))
    dms_config['train_cfg']['val_interval'] = 4
    seen = []

    class Recorder(Hook):
        priority = 'LOWEST'

        def before_val_epoch(self, runner):
            seen.append((runner.model.structure(), lines(runner.work_dir)[-1]['structure']))

    runner = runner_of(dms_config)
    runner.register_hook(Recorder())
    runner.train()
    assert len(seen) == 3
    assert all(evaluated == searched for evaluated, searched in seen)
    found = checkpoint(dms_config['work_dir'])
    report = export_search(Config(dms_config), found['state_dict'], tmp_path / 'pruned').to_json()
    assert report['after']['flops'] == lines(dms_config['work_dir'])[-1]['flops']
    # The weights are averaged ones.
    name = 'model.head.fc.weight'
    assert not torch.equal(found['state_dict'][name], found['ema_state_dict'][f'module.{name}'])


@pytest.mark.parametrize(('warmup', 'begin'), [(None, 2.5), (0.0, 0.0), (0.4, 4.0)])
def test_schedule_of_the_budget(warmup, begin, dms_config):
    seen = []
    dms_config['custom_hooks'][-1]['warmup'] = warmup

    class Recorder(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            depth = runner.model.groups.depths[0]
            seen.append((runner.model._budget, bool(runner.model.gates[depth.key].hard)))
            rest = [gate.pruning_ratio.item() == 0 for gate in runner.model.gates.values()]
            assert all(rest) or runner.iter >= begin

    runner = runner_of(dms_config)
    runner.register_hook(Recorder())
    runner.train()
    full, goal = runner.model.cost.full.flops, runner.model.goal
    assert goal == pytest.approx(0.6 * full)
    assert [budget / full for budget, _ in seen] == pytest.approx(
        [0.6 ** min(1, max(0, (i - begin) / (8 - begin))) for i in range(10)]
    )
    assert [hard for _, hard in seen] == [False] * 8 + [True] * 2


def test_loops_by_epoch_fall_over_all_iterations(dms_config):
    dms_config['train_cfg'] = dict(by_epoch=True, max_epochs=3)
    dms_config['train_dataloader'].update(
        batch_size=10, sampler=dict(type='DefaultSampler', shuffle=True)
    )
    dms_config['param_scheduler'] = [dict(type='CosineAnnealingLR', by_epoch=True, end=3)]
    dms_config['default_hooks']['checkpoint'] = dict(type='CheckpointHook', interval=1)
    dms_config['custom_hooks'] = [dict(type='mmscale.DMSHook', interval=5, warmup=0.0)]
    runner = runner_of(dms_config)
    runner.train()
    found = lines(dms_config['work_dir'])  # 48 images: four batches of 10 and one of 8
    assert [line['iteration'] for line in found] == [5, 10, 15]
    full = runner.model.cost.full.flops
    assert [line['budget'] / full for line in found] == pytest.approx(
        [0.6 ** (5 / 12), 0.6 ** (10 / 12), 0.6]
    )
    assert 0.95 * found[-1]['budget'] <= found[-1]['value'] <= found[-1]['budget']


def test_accumulation_and_mixed_images(dms_config):
    """The structure steps as often as the optimizer; labels of mixed images are soft."""
    dms_config['optim_wrapper']['accumulative_counts'] = 5
    dms_config['model']['model']['train_cfg'] = dict(
        augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]
    )
    dms_config['model']['model']['head']['loss'] = dict(type='CrossEntropyLoss', use_soft=True)
    runner = runner_of(dms_config)
    runner.train()
    (state,) = {int(s['step']) for s in runner.model.structure_optimizer.state.values()}
    assert state == 2
    last = lines(dms_config['work_dir'])[-1]
    assert 0.95 * last['budget'] <= last['value'] <= last['budget']


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
    # A kill may come in the middle of a line, or after the checkpoint that is resumed.
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


def test_search_prune_retrain_and_resume(dms_config, loader, write_config, call_tool, tmp_path):
    """The tools, one after the other, on a network of mmpretrain; no number typed by hand."""
    from small_setups import DEFAULT_SAMPLER, PLAIN

    dms_config['model']['model'].update(
        backbone=dict(
            type='ResNet_CIFAR', depth=18, in_channels=1, stem_channels=4, base_channels=4
        ),
        head=dict(type='LinearClsHead', num_classes=10, in_channels=32, topk=(1,)),
    )
    # Without the hook for an ArchNet's resolution.
    dms_config['custom_hooks'] = dms_config['custom_hooks'][1:]
    pipeline = [dict(PLAIN[0], resolution=12), *PLAIN[1:]]
    for phase, sampler in (('train', dict(type='InfiniteSampler')), ('val', DEFAULT_SAMPLER)):
        dms_config[f'{phase}_dataloader'] = loader('train', pipeline, sampler, seeded=False)
    search = write_config(dms_config)
    assert call_tool('train.py', search)[0] == 0
    out = tmp_path / 'pruned'
    work_dir = Path(dms_config['work_dir'])
    assert call_tool('prune.py', search, work_dir / 'iter_10.pth', '--out', out)[0] == 0
    options = ['--cfg-options', 'train_cfg.max_iters=4', 'train_cfg.val_interval=4']
    options += [f'experiment_name={uuid.uuid4().hex}']
    assert call_tool('train.py', out / 'retrain.py', *options)[0] == 0
    weights = CheckpointLoader.load_checkpoint(str(out / 'weights.pth'), 'cpu')['state_dict']
    trained = checkpoint(out / 'retrain', 4)['state_dict']
    assert {k: v.shape for k, v in trained.items()} == {k: v.shape for k, v in weights.items()}
    assert sum(v.numel() for v in trained.values()) < 150_000
    options[1:] = ['train_cfg.max_iters=6', f'experiment_name={uuid.uuid4().hex}']
    assert call_tool('train.py', out / 'retrain.py', '--resume', *options)[0] == 0
    resumed = checkpoint(out / 'retrain', 6)
    assert resumed['meta']['iter'] == 6
    assert not torch.equal(resumed['state_dict']['head.fc.weight'], trained['head.fc.weight'])


def test_two_processes_search(dms_config, write_config, fork_tool):
    codes, said = fork_tool('train.py', write_config(dms_config), processes=2)
    assert codes == [0, 0], said[-3000:]
    last = lines(dms_config['work_dir'])[-1]
    assert 0.98 * last['budget'] <= last['value'] <= last['budget']


def test_loss_that_is_not_a_number(dms_config, write_config, call_tool):
    dms_config['optim_wrapper']['optimizer']['lr'] = 1e30
    code, errors = call_tool('train.py', write_config(dms_config))
    assert code == 2
    error = [line for line in errors.splitlines() if line.startswith('error: ')]
    assert len(error) == 1
    assert 'loss=nan at iteration 2: lower the learning rate' in error[0]


def test_hook_refuses_another_model(retrain_config):
    retrain_config['custom_hooks'].append(dict(type='mmscale.DMSHook'))
    with pytest.raises(TypeError, match=r'model.type=mmscale.DMSModel, got ImageClassifier'):
        runner_of(retrain_config).train()


def test_hook_refuses_parameters_that_a_wrapper_shards(dms_config):
    runner = runner_of(dms_config)
    gate = next(iter(runner.model.gates.values()))
    # As FSDP leaves it: the parameters lie in one flat one, what stays is a view.
    del gate._parameters['pruning_ratio']
    gate.pruning_ratio = torch.zeros(())
    with pytest.raises(UsageError, match=r"shards parameters, .*=dict.type='MMDistributedDataPar"):
        DMSHook().before_run(runner)


def test_settings_of_the_hook():
    with pytest.raises(ValueError, match=r'falling=0 must be a number above 0 and up to 1'):
        DMSHook(falling=0)
    with pytest.raises(ValueError, match='interval=0 must be an integer of 1 or more'):
        DMSHook(interval=0)


def plain_arch(path):
    """An Arch without residual blocks."""
    block = dict(kind='fused_mbconv', kernel=3, stride=2, groups=1)
    block |= dict(in_channels=4, hidden_channels=6, out_channels=12)
    stem = dict(out_channels=4, in_channels=1)
    arch = dict(schema=1, resolution=12, stem=stem, stages=[[block]], head=dict())
    Arch.from_json(arch).save(path)
    return str(path)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'model.target': 0.01}, 'out of reach: the whole model has'),
        ({'model.model.backbone.arch': plain_arch}, 'the model has no residual block that can go'),
    ],
)
def test_what_cannot_be_searched_is_told_before_any_work(
    changes, message, dms_config, write_config, call_tool, tmp_path
):
    config = Config(dms_config)
    made = {k: v(tmp_path / 'plain.json') if callable(v) else v for k, v in changes.items()}
    config.merge_from_dict(made)
    code, errors = call_tool('train.py', write_config(config))
    assert code == 2
    (error,) = [line for line in errors.splitlines() if line.startswith('error: ')]
    assert message in error
    assert not (Path(dms_config['work_dir']) / 'structure.jsonl').exists()


# ------------------------------------------------------------------ pipelines, mixed precision


@pytest.fixture
def pretrained(dms_config, tmp_path):
    """Weights of the model that is searched."""
    torch.manual_seed(1)
    path = tmp_path / 'whole.pth'
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        network = MODELS.build(dms_config['model']['model'])
    torch.save({'state_dict': network.state_dict()}, path)
    return str(path)


@pytest.mark.parametrize(
    ('pipeline', 'wrapper'), [('p', 'OptimWrapper'), ('p-', 'mmscale.BFloat16OptimWrapper')]
)
def test_pipelines_from_pretrained_weights(pipeline, wrapper, dms_config, pretrained):
    dms_config['model'].update(pipeline=pipeline, pretrained=pretrained)
    dms_config['optim_wrapper']['type'] = wrapper
    runner = runner_of(dms_config)
    runner.train()
    before = CheckpointLoader.load_checkpoint(pretrained, 'cpu')['state_dict']
    after = dict(runner.model.model.named_parameters())
    changed = [name for name, value in after.items() if not torch.equal(value, before[name])]
    # A ReLU in a squeeze may be shut for every image.
    assert len(changed) > 0.9 * len(after) if pipeline == 'p' else not changed
    last = lines(dms_config['work_dir'])[-1]
    assert 0.98 * last['budget'] <= last['value'] <= last['budget']
    gates = [gate for gate in runner.model.gates.values() if gate.elements > 1]
    assert sum(bool(gate.importance.max() > 0) for gate in gates) > 0.8 * len(gates)
    assert any(gate.pruning_ratio > 0 for gate in gates)


@pytest.fixture
def amp_on_cpu(monkeypatch):
    """AmpOptimWrapper asks for a GPU; scaling and autocast work without one, in bfloat16."""
    module = 'mmengine.optim.optimizer.amp_optimizer_wrapper'
    monkeypatch.setattr(f'{module}.is_cuda_available', lambda: True)
    monkeypatch.setattr(f'{module}.GradScaler', partial(torch.amp.GradScaler, 'cpu'))


def test_loss_scale_of_amp_changes_nothing(amp_on_cpu, dms_config, tmp_path):
    importances = {}
    for scale in (1.0, 1024.0):
        folder = str(tmp_path / f'{scale:g}')
        config = copy.deepcopy(dms_config)
        config['optim_wrapper'].update(type='AmpOptimWrapper', loss_scale=scale, dtype='bfloat16')
        runner = runner_of(config, work_dir=folder, **{'train_cfg.max_iters': 4})
        runner.train()
        importances[scale] = [gate.importance for gate in runner.model.gates.values()]
    assert lines(tmp_path / '1') == lines(tmp_path / '1024')
    for one, other in zip(*importances.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-12)


def test_amp_has_nothing_to_scale_where_no_weights_are_trained(amp_on_cpu, dms_config, pretrained):
    dms_config['model'].update(pipeline='p-', pretrained=pretrained)
    dms_config['optim_wrapper']['type'] = 'AmpOptimWrapper'
    with pytest.raises(ValueError, match=r'AmpOptimWrapper needs weights .* --bf16'):
        runner_of(dms_config).train()


# ------------------------------------------------------------------ what the task decided


@pytest.mark.parametrize('images', [0, 30])
def test_statistics_are_those_of_what_is_left(images, dms_config, pretrained):
    dms_config['model'].update(pipeline='p-', pretrained=pretrained)
    dms_config['custom_hooks'][-1]['calibration_images'] = images
    runner = runner_of(dms_config)
    runner.train()
    model = runner.model.eval()
    stem = model.model.backbone.stem
    order = torch.randperm(48, generator=torch.Generator().manual_seed(0)).tolist()[:30]
    draws = [Draw(index, None, seed_of(0, 0, place)) for place, index in enumerate(order)]
    items = [runner.train_dataloader.dataset[draw] for draw in draws]
    inputs = [
        model.data_preprocessor(dict(inputs=[item['inputs']]), False)['inputs'] for item in items
    ]
    with torch.no_grad():
        maps = stem.conv(torch.cat(inputs))
    is_equal = torch.allclose(stem.bn.running_mean, maps.mean(dim=(0, 2, 3)), rtol=1e-3, atol=1e-4)
    assert is_equal == bool(images)


@pytest.mark.parametrize(('weight', 'warns'), [(1e4, True), (1e-4, False)])
def test_a_structure_that_the_cost_decided_is_not_believed(weight, warns, dms_config, tmp_path):
    dms_config['model'].update(weight=weight, search=['width'])
    runner_of(dms_config).train()
    log = next(tmp_path.glob('dms/*/*.log')).read_text()
    assert ('the task decided' in log) == warns
    last = lines(dms_config['work_dir'])[-1]
    assert last['ratios'].keys() == last['slopes'].keys() == last['structure'].keys()
    shares = last['task_shares'].values()
    assert max(shares) < 0.1 if warns else min(shares) > 0.9
    report = make_report(dms_config['work_dir'], tmp_path / 'report')
    facts = dict(report.facts)
    assert (
        float(facts['decided by the task'].rstrip('%')) < 10 if warns else 'warning' not in facts
    )


def test_the_default_step_follows_the_length(dms_config):
    del dms_config['model']['structure_optimizer']
    dms_config['optim_wrapper']['accumulative_counts'] = 2
    dms_config['custom_hooks'][-1]['warmup'] = 0.2
    runner = runner_of(dms_config)
    runner.train()
    (group,) = runner.model.structure_optimizer.param_groups
    assert group['lr'] == pytest.approx(2.0 / 4)
