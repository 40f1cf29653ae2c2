"""Training through MMEngine's Runner: resolutions, resume, kills, wrong parts."""

import copy
import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import CheckpointLoader
from recorded_runs import Stopper, recorded, runner_of, train
from small_setups import AUGMENT, ROOT, SPACE

from mmscale.arch import HierarchicalSampler, SearchSpace


def checkpoint(work_dir, iteration=8):
    return CheckpointLoader.load_checkpoint(f'{work_dir}/iter_{iteration}.pth', 'cpu')


def flat(value, prefix=''):
    """Every leaf of a nested state dict by its path."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from flat(part, f'{prefix}/{key}')
    elif isinstance(value, (list, tuple)):
        for index, part in enumerate(value):
            yield from flat(part, f'{prefix}/{index}')
    else:
        yield prefix, value


def assert_equal_states(one, other):
    for key in ('state_dict', 'optimizer', 'param_schedulers'):
        left, right = dict(flat(one[key])), dict(flat(other[key]))
        assert left.keys() == right.keys()
        for name, value in left.items():
            if torch.is_tensor(value):
                assert torch.equal(value, right[name]), name
            else:
                assert value == right[name], name


# ------------------------------------------------------------------ draws


def test_every_batch_has_the_resolution_of_its_draw(supernet_config):
    seen = recorded(supernet_config, train_cfg=dict(max_iters=12))
    sampler = HierarchicalSampler(SearchSpace(**SPACE), 3, 'uniform', warmup_iters=2)
    for iteration, (size, _, draw) in enumerate(seen):
        assert draw.arch == sampler.draw(iteration).arch
        assert size == (draw.arch.resolution,) * 2
    assert len(seen) == 12
    assert len({size for size, *_ in seen}) == 3


def test_draws_follow_the_seed_alone(supernet_config, tmp_path):
    first = recorded(supernet_config)
    again = recorded(supernet_config, work_dir=str(tmp_path / 'again'))
    other = recorded(supernet_config, work_dir=str(tmp_path / 'other'), randomness=dict(seed=4))
    assert first == again
    assert [draw for *_, draw in first] != [draw for *_, draw in other]


def test_sampler_hook_refuses_another_model(retrain_config):
    retrain_config['custom_hooks'] = [dict(type='mmscale.HierarchicalSamplerHook')]
    with pytest.raises(TypeError, match=r'SuperNetClassifier .* got ImageClassifier'):
        runner_of(retrain_config).train()


def test_resolution_hook_refuses_a_backbone_without_an_arch(retrain_config):
    backbone = dict(type='ResNet', depth=18, in_channels=1)
    retrain_config['model']['backbone'] = backbone
    with pytest.raises(TypeError, match=r'model.backbone.type=mmscale.ArchNet, got ResNet'):
        runner_of(retrain_config).train()


# ------------------------------------------------------------------ resume


@pytest.mark.parametrize(
    ('kind', 'num_workers'), [('supernet', 0), ('supernet', 2), ('retrain', 0)]
)
def test_resumed_training_equals_uninterrupted(kind, num_workers, tmp_path, request):
    config = request.getfixturevalue(f'{kind}_config')
    config['train_dataloader']['num_workers'] = num_workers
    straight, resumed = tmp_path / 'straight', tmp_path / 'resumed'
    whole = recorded(config, work_dir=str(straight))
    # It stops in the middle of the schedule: the same config, ended early by an exception.
    runner, stopper = runner_of(config, work_dir=str(resumed)), Stopper()
    runner.register_hook(stopper)
    with pytest.raises(KeyboardInterrupt):
        train(runner)
    assert not (resumed / 'iter_6.pth').exists()
    rest = recorded(config, work_dir=str(resumed), resume=True)
    assert rest == whole[4:]
    assert_equal_states(checkpoint(straight), checkpoint(resumed))
    start, end = checkpoint(straight, 2), checkpoint(straight)
    name = 'head.fc.weight'
    assert not torch.equal(start['state_dict'][name], end['state_dict'][name])


# ------------------------------------------------------------------ input resolution


def test_input_size_follows_the_backbones_arch(retrain_config, tmp_path):
    runner, sizes = runner_of(retrain_config), Sizes()
    runner.register_hook(sizes)
    runner.train()
    runner.test()
    assert sizes.seen == {'train': {12}, 'val': {12}, 'test': {12}}
    scaled = {'model.backbone.scaling': dict(width=1.5, resolution=1.25)}
    runner, sizes = runner_of(retrain_config, work_dir=str(tmp_path / 'b'), **scaled), Sizes()
    runner.register_hook(sizes)
    runner.train()
    runner.test()
    assert sizes.seen == {'train': {15}, 'val': {15}, 'test': {15}}


class Sizes(Hook):
    """Records the sides of the images of each phase."""

    def __init__(self):
        self.seen = {}

    def _before_iter(self, runner, batch_idx, data_batch=None, mode='train'):
        self.seen.setdefault(mode, set()).update(data_batch['inputs'].shape[2:])


def test_a_resolution_that_the_config_sets_is_kept(retrain_config):
    pipeline = [dict(step) for step in AUGMENT]
    pipeline[0]['resolution'] = 9
    config = copy.deepcopy(retrain_config)
    config['train_dataloader']['dataset']['dataset']['pipeline'][0] = pipeline[0]
    assert {size for size, *_ in recorded(config, train_cfg=dict(max_iters=2))} == {(9, 9)}


def test_child_config_trains_under_mmpretrains_own_tool(run_tool, data_root, tmp_path):
    """A child of our config that changes the backbone alone, stock train.py."""
    import mmpretrain

    space = SearchSpace(**SPACE)
    arch = replace(space.largest(0), resolution=10)
    arch.save(tmp_path / 'arch.json')
    (tmp_path / 'record_sizes.py').write_text(RECORD_SIZES)
    (tmp_path / 'child.py').write_text(
        f"_base_ = '{ROOT}/configs/scalenet/arch-net_digits.py'\n"
        f"model = dict(backbone=dict(arch='arch.json', scaling=dict(resolution=1.4)),\n"
        f'             head=dict(in_channels=12))\n'
        "custom_imports = dict(imports=['mmscale.models', 'mmscale.datasets', 'mmscale.engine',\n"
        "                               'record_sizes'])\n"
    )
    options = ['train_cfg.max_iters=3', 'train_cfg.val_interval=3', 'param_scheduler=None']
    for phase in ('train', 'val'):
        inner = 'dataset.dataset' if phase == 'train' else 'dataset'
        options += [
            f'{phase}_dataloader.batch_size=8',
            f'{phase}_dataloader.{inner}.num_images=48',
            f'{phase}_dataloader.{inner}.data_root={data_root}',
        ]
    tool = Path(mmpretrain.__file__).parent / '.mim/tools/train.py'
    result = run_tool(tool, 'child.py', '--work-dir', 'out', '--cfg-options', *options)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / 'sizes.json').read_text()) == {'train': [14], 'val': [14]}


RECORD_SIZES = """
import json
from mmscale.engine import InputResolutionHook
seen = {}
def _before_iter(self, runner, batch_idx, data_batch=None, mode='train'):
    seen.setdefault(mode, set()).update(data_batch['inputs'].shape[2:])
    with open('sizes.json', 'w') as file:
        json.dump({mode: sorted(sides) for mode, sides in seen.items()}, file)
InputResolutionHook._before_iter = _before_iter
"""


def test_the_last_and_the_best_checkpoint_are_whole_at_every_moment(retrain_config, monkeypatch):
    """Nothing is removed before what takes its place is there under its name."""
    work_dir = Path(retrain_config['work_dir'])
    scores = iter([0.2, 0.4, 0.3, 0.5])
    monkeypatch.setattr(
        'mmpretrain.evaluation.Accuracy.compute_metrics', lambda *_: {'top1': next(scores)}
    )
    listed = []
    for name in ('unlink', 'replace'):
        function = getattr(Path, name)

        def noted(path, *args, function=function, **kwargs):
            listed.append({file.name for file in work_dir.glob('*.pth')})
            return function(path, *args, **kwargs)

        monkeypatch.setattr(Path, name, noted)
    hook = dict(
        type='mmscale.DurableCheckpointHook',
        interval=2,
        by_epoch=False,
        max_keep_ckpts=1,
        save_best='accuracy/top1',
        rule='greater',
    )
    retrain_config['train_cfg']['val_interval'] = 2
    runner_of(retrain_config, default_hooks=dict(checkpoint=hook)).train()
    # From the first on there is always one to resume from, and from its time on a best one.
    first = next(k for k, names in enumerate(listed) if names)
    assert all(any(name.startswith('iter_') for name in names) for names in listed[first:])
    first = next(k for k, names in enumerate(listed) if any('best' in name for name in names))
    assert all(any('best' in name for name in names) for names in listed[first:])
    best = 'best_accuracy_top1_iter_8.pth'
    assert {file.name for file in work_dir.glob('*.pth')} == {'iter_8.pth', best}
    assert (work_dir / 'last_checkpoint').read_text() == str(work_dir / 'iter_8.pth')
    # A resumed run knows the best one, and the number of processes.
    info = checkpoint(work_dir)['message_hub']['runtime_info']
    assert info['best_ckpt'] == str(work_dir / best)
    assert checkpoint(work_dir)['meta']['world_size'] == 1


def test_the_best_checkpoint_of_another_folder_stays(retrain_config, monkeypatch, tmp_path):
    """A checkpoint says where the best one is, which goes when there is a better one."""
    monkeypatch.setattr('mmpretrain.evaluation.Accuracy.compute_metrics', lambda *_: {'top1': 0.5})
    hook = dict(type='mmscale.DurableCheckpointHook', interval=2, by_epoch=False)
    hook.update(save_best='accuracy/top1', rule='greater')
    config = dict(retrain_config, default_hooks=dict(checkpoint=hook))
    config['train_cfg'] = dict(by_epoch=False, max_iters=2, val_interval=2)
    mine = tmp_path / 'mine'
    work_dir = Path(config['work_dir'])
    for target in (mine / 'best_of_mine.pth', mine / 'best_folder', mine.parent / 'mine' / '..'):
        (mine / 'best_folder').mkdir(parents=True, exist_ok=True)
        (mine / 'best_of_mine.pth').touch()
        runner = runner_of(config)
        runner.message_hub.update_info('best_ckpt', str(target))
        runner.message_hub.update_info('best_score', 0.1)
        runner.train()
        assert {path.name for path in mine.iterdir()} == {'best_of_mine.pth', 'best_folder'}
        assert (work_dir / 'best_accuracy_top1_iter_2.pth').is_file()


def test_a_training_ends_well_where_folders_cannot_be_synced(retrain_config, monkeypatch):
    opened, synced = os.open, os.fsync

    def refuse_folders(path, flags, *arguments, **settings):
        if flags & os.O_DIRECTORY:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        return opened(path, flags, *arguments, **settings)

    calls = []
    monkeypatch.setattr(os, 'open', refuse_folders)
    monkeypatch.setattr(os, 'fsync', lambda descriptor: calls.append(0) or synced(descriptor))
    retrain_config['default_hooks']['checkpoint']['type'] = 'mmscale.DurableCheckpointHook'
    retrain_config['train_cfg'] = dict(by_epoch=False, max_iters=2, val_interval=2)
    runner_of(retrain_config).train()
    assert checkpoint(retrain_config['work_dir'], 2)['meta']['iter'] == 2
    # The checkpoint, and the file that names it.
    assert len(calls) == 2
