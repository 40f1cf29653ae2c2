"""From a command line to a runner: every mistake is one line and exit code 2, before any work."""

import os
import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from command_lines import arguments, write
from mmengine.config import Config
from mmengine.dataset import default_collate

from mmscale.errors import UsageError
from mmscale.launch.command_line import load_config, set_environment
from mmscale.launch.log import ShortLogRunner
from mmscale.launch.runner import build_runner, run_tool

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs' / 'scalenet'
pytestmark = pytest.mark.usefixtures('own_environment')


def test_a_config_of_another_task_is_refused(tool, small_config):
    code, error = tool('search.py', small_config)
    assert (code, error.count('\n')) == (2, 1)
    assert 'has no search' in error and 'mmscale.SearchLoop' in error
    code, error = tool('train.py', CONFIGS / 'search-mcea_digits.py', '--amp')
    assert (code, error.count('\n')) == (2, 1)
    assert 'search-mcea_digits.py has no train_cfg' in error
    code, error = tool('train.py', small_config, '--auto-scale-lr')
    assert (code, error.count('\n')) == (2, 1)
    assert 'base_batch_size' in error


# ---------------------------------------------------------------------- environment


TOOLS = [path.stem for path in sorted((ROOT / 'tools').glob('*.py'))]


# It installs a package, and reads nothing of ours.
@pytest.mark.parametrize('name', [name for name in TOOLS if name != 'install_mmcv_ops'])
def test_files_are_data_for_every_tool(monkeypatch, name):
    class Started(Exception):
        pass

    def start(main):
        # Called in the place of every tool's main, which would read its arguments first.
        assert callable(main)
        run_tool(note)

    def note():
        raise Started(os.environ.get('TORCH_FORCE_WEIGHTS_ONLY_LOAD'))

    monkeypatch.setattr('mmscale.launch.runner.run_tool', start)
    monkeypatch.setattr('mmscale.launch.steps.run_tool', start)
    with pytest.raises(Started, match=r'^1$'):
        runpy.run_path(str(ROOT / 'tools' / f'{name}.py'), run_name='__main__')


def test_other_errors_than_the_users_are_not_hidden(capsys):
    def usage():
        raise UsageError('no such thing')

    def bug():
        raise ZeroDivisionError

    with pytest.raises(SystemExit) as exit_:
        run_tool(usage)
    assert exit_.value.code == 2
    assert capsys.readouterr().err == 'error: no such thing\n'
    with pytest.raises(ZeroDivisionError):
        run_tool(bug)


# ---------------------------------------------------------------------- several processes


@pytest.mark.parametrize('variable', ['RANK', 'SLURM_PROCID'])
def test_the_first_process_tells_the_mistake_of_all(variable, monkeypatch, capsys):
    def usage():
        raise UsageError('no such thing')

    # What the first process's end does to the others: the launcher ends them.
    def ended(_seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr('mmscale.launch.runner.time.sleep', ended)
    monkeypatch.setenv(variable, '0')
    with pytest.raises(SystemExit) as exit_:
        run_tool(usage)
    assert exit_.value.code == 2
    assert capsys.readouterr().err == 'error: no such thing\n'
    monkeypatch.setenv(variable, '3')
    with pytest.raises(KeyboardInterrupt):
        run_tool(usage)
    assert capsys.readouterr().err == ''
    # Nothing ended it: the mistake is this process's own.
    monkeypatch.setattr('mmscale.launch.runner.time.sleep', lambda seconds: None)
    with pytest.raises(SystemExit) as exit_:
        run_tool(usage)
    assert exit_.value.code == 2
    assert capsys.readouterr().err == 'error: rank 3: no such thing\n'


@pytest.fixture
def joined(monkeypatch):
    """What the process group would be made of, on a machine without a GPU."""
    seen = {}

    def record(backend, timeout):
        names = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')
        seen.update({name: os.environ[name] for name in names}, backend=backend)
        raise ValueError('far enough')

    monkeypatch.setattr('torch.distributed.init_process_group', record)
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    return seen


SLURM = {'SLURM_PROCID': '5', 'SLURM_NTASKS': '8', 'SLURM_LOCALID': '1'}


def launch_slurm(small_config, monkeypatch, **variables):
    for name, value in (SLURM | variables).items():
        monkeypatch.setenv(name, value)
    config = load_config(arguments(small_config, '--launcher', 'slurm'))
    with pytest.raises(UsageError) as error:
        build_runner(config, 'train')
    return str(error.value)


def test_slurm_places_processes_on_cpus(joined, small_config, monkeypatch, tmp_path):
    scontrol = tmp_path / 'scontrol'
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostname n[3-4]" ] && printf "n3\\nn4\\n"\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path), prepend=os.pathsep)
    launch_slurm(small_config, monkeypatch, SLURM_NODELIST='n[3-4]')
    assert joined == {
        'RANK': '5',
        'WORLD_SIZE': '8',
        'LOCAL_RANK': '1',
        'MASTER_ADDR': 'n3',
        'MASTER_PORT': '29500',
        'backend': 'gloo',
    }
    places = {'MASTER_ADDR': 'there', 'MASTER_PORT': '29600'}
    launch_slurm(small_config, monkeypatch, SLURM_NODELIST='n[3-4]', **places)
    assert joined.items() >= places.items()


def test_slurm_without_scontrol(joined, small_config, monkeypatch, tmp_path):
    monkeypatch.setenv('PATH', str(tmp_path))
    message = launch_slurm(small_config, monkeypatch, SLURM_NODELIST='n[3-4]')
    assert 'set MASTER_ADDR to the first host of SLURM_NODELIST=n[3-4]' in message
    assert not joined
    launch_slurm(small_config, monkeypatch, SLURM_NODELIST='n3')
    assert joined['MASTER_ADDR'] == '127.0.0.1'


@pytest.mark.parametrize(
    ('launcher', 'message'),
    [
        (
            'pytorch',
            'RANK, WORLD_SIZE, MASTER_ADDR is not set .* tools/dist_train.sh, dist_search',
        ),
        ('slurm', 'SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID is not set .* tools/slurm_train.sh'),
        ('mpi', 'OMPI_COMM_WORLD_RANK, .* is not set .* mpirun'),
    ],
)
def test_a_launcher_that_started_nothing_is_one_line(launcher, message, joined, small_config):
    config = load_config(arguments(small_config, '--launcher', launcher))
    with pytest.raises(UsageError, match=message):
        build_runner(config, 'train')
    assert not joined


# ---------------------------------------------------------------------- components


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('model.backbone.archs=scalenet-s0', "unexpected keyword argument 'archs'"),
        ('model.backbone.arch=scalenet-s9', "arch='scalenet-s9' is neither a file nor a preset"),
        ('model.backbone.arch=None', 'set model.backbone.arch to the JSON file of an Arch'),
        (
            'model.backbone.arch=scalenet-s0',
            'stem.in_channels=3, but data_preprocessor.mean has 1 channels',
        ),
        (
            'model.head.in_channels=1280',
            'model.head.in_channels=1280 does not fit model.backbone.arch, whose features have 96',
        ),
        ('model.backbone.type=mmscale.ArchNets', 'mmscale.ArchNets'),
        ('train_dataloader.dataset.dataset.splits=train', "unexpected keyword argument 'splits'"),
        ('train_dataloader.sampler.sed=1', "unexpected keyword argument 'sed'"),
        ('optim_wrapper.optimizer.momentun=1', "unexpected keyword argument 'momentun'"),
        ('optim_wrapper.optimizer.type=SDG', "optimizer.type='SDG' is no optimizer; near are"),
        ('param_scheduler.1.end=10', 'param_scheduler: ValueError: end should be larger'),
        ('custom_hooks.0.size=3', 'InputResolutionHook'),
        ('load_from=missing.pth', 'load_from=missing.pth is not a file'),
        ('val_dataloader.dataset.num_images=0', 'num_images=0 must be an integer of 1 or more'),
    ],
)
def test_a_bad_component_is_one_line(option, message, tool, small_config):
    code, error = tool('train.py', small_config, '--cfg-options', option)
    assert code == 2
    lines = [line for line in error.splitlines() if line.startswith('error: ')]
    assert len(lines) == 1 and error.endswith(lines[0] + '\n')
    assert message in lines[0]
    assert 'Traceback' not in error
    assert not list(Path().rglob('iter_*.pth'))


def test_other_classes_than_the_archs_are_only_a_warning(small_config, capfd):
    def build(name, *options):
        words = [small_config, '--cfg-options', f'experiment_name={name}', *options]
        build_runner(load_config(arguments(*words)), 'train')
        return ''.join(capfd.readouterr())

    warning = 'model.head.num_classes=7 replaces head.num_classes=10 of the Arch'
    assert 'replaces' not in build('same_classes')
    assert warning in build('other_classes', 'model.head.num_classes=7')
    # What does not see the last feature map, or no mean, is not compared.
    options = ['model.backbone.out_indices=1', 'model.head.in_channels=5']
    build('other_features', *options, 'data_preprocessor.mean=None', 'data_preprocessor.std=None')


def test_a_training_is_set_up_as_by_mmpretrains_tools(small_config):
    config = load_config(arguments(small_config))
    config.auto_scale_lr = dict(enable=True, base_batch_size=48)
    for key in ('collate_fn', 'persistent_workers'):
        config.train_dataloader.pop(key)
    config.train_dataloader.num_workers = 1
    runner = build_runner(config, 'train')
    loader = runner.train_dataloader
    assert loader.persistent_workers
    assert loader.collate_fn.func is default_collate
    # 0.2 for batches of 48; the schedulers go from what is scaled, as in MMEngine.
    assert loader.batch_size == 96
    assert [scheduler.base_values for scheduler in runner.param_schedulers] == [[0.4], [0.4]]


def test_a_supernet_fits_its_head():
    words = [CONFIGS / 'supernet_digits.py', '--cfg-options', 'model.head.in_channels=5']
    with pytest.raises(UsageError, match=r'model\.head\.in_channels=5: leave it out'):
        build_runner(load_config(arguments(*words)), 'train')


def test_a_work_dir_that_cannot_be_made_is_one_line(tool, small_config):
    write('occupied', '')
    code, error = tool('train.py', small_config, '--work-dir', 'occupied/here')
    assert code == 2
    assert 'Traceback' not in error
    last = error.splitlines()[-1]
    assert last.startswith('error: ') and 'occupied' in last


# ---------------------------------------------------------------------- checkpoints


class Trap:
    """What a crafted checkpoint holds: unpickling it creates a file."""

    def __reduce__(self):
        return Path.touch, (Path('sprung'),)


def save_trap(path):
    torch.save({'state_dict': {}, 'meta': Trap()}, path)
    # The trap works: who trusts the file runs its code.
    torch.load(path, weights_only=False)
    Path('sprung').unlink()


@pytest.mark.parametrize(
    'words',
    [
        ['train.py', 'small.py', '--resume', 'crafted.pth'],
        ['train.py', 'small.py', '--cfg-options', 'load_from=crafted.pth'],
        ['test.py', 'small.py', 'crafted.pth'],
        ['search.py', CONFIGS / 'search-mcea_digits.py', '--cfg-options', 'load_from=crafted.pth'],
    ],
    ids=['resume', 'load_from', 'test', 'search'],
)
def test_a_crafted_checkpoint_is_refused(words, tool, small_config):
    save_trap('crafted.pth')
    code, error = tool(*words)
    assert code == 2
    assert not Path('sprung').exists()
    last = error.splitlines()[-1]
    assert last.startswith('error: crafted.pth is not a checkpoint of tensors and plain values')


def test_automatic_resuming_refuses_a_crafted_checkpoint(tool, small_config):
    Path('work_dirs/small').mkdir(parents=True)
    save_trap('work_dirs/small/iter_3.pth')
    write('work_dirs/small/last_checkpoint', str(Path('work_dirs/small/iter_3.pth').resolve()))
    code, error = tool('train.py', small_config, '--resume')
    assert code == 2 and not Path('sprung').exists()
    assert 'iter_3.pth is not a checkpoint' in error.splitlines()[-1]


def test_a_damaged_or_foreign_checkpoint_is_named(small_config):
    set_environment()
    for name, content in (('empty.pth', b''), ('text.pth', b'not a checkpoint at all')):
        Path(name).write_bytes(content)
    torch.save({'state_dict': {'weight': torch.zeros(1000)}}, 'foreign.pth')
    Path('cut.pth').write_bytes(Path('foreign.pth').read_bytes()[:-200])
    torch.save([1, 2], 'list.pth')
    messages = {
        'empty.pth': 'empty.pth is not a checkpoint',
        'text.pth': 'text.pth is not a checkpoint',
        'cut.pth': 'cut.pth is not a checkpoint',
        'list.pth': 'list.pth is not a checkpoint',
        'foreign.pth': 'foreign.pth: the checkpoint does not fit the model: .* missing: ',
    }
    for name, message in messages.items():
        config = load_config(arguments(small_config, '--cfg-options', f'load_from={name}'))
        config.experiment_name = f'test of {name}'
        with pytest.raises(UsageError, match=message):
            build_runner(config, 'train')


@pytest.mark.parametrize('phase', ['train', 'val'])
def test_an_image_that_cannot_be_read_stops_a_run_in_one_line(phase, tool, small_config):
    for label in range(10):
        folder = Path('photos', str(label))
        folder.mkdir(parents=True)
        for i in range(2):
            cv2.imwrite(str(folder / f'{i}.png'), np.full((32, 32), 20 * label, np.uint8))
    Path('photos/3/1.png').write_bytes(b'no image')
    photos = {
        '_delete_': True,
        'type': 'CustomDataset',
        'data_root': 'photos',
        'pipeline': [
            {'type': 'LoadImageFromFile', 'color_type': 'grayscale'},
            {'type': 'mmscale.ResizeToResolution'},
            {'type': 'PackInputs'},
        ],
    }
    config = write(
        'photos.py',
        f'_base_ = {small_config!r}\n{phase}_dataloader = dict(dataset={photos!r})\n'
        'train_cfg = dict(max_iters=2, val_interval=2)\nparam_scheduler = []\n',
    )
    code, error = tool('train.py', config)
    assert code == 2
    assert error.splitlines()[-1].startswith('error: photos/3/1.png (8 bytes), item 7 of Custom')
    assert 'Traceback' not in error


def test_a_config_is_dumped_into_no_file_of_another_name(tmp_path):
    (tmp_path / 'mine').write_text('precious')
    (tmp_path / 'work').mkdir()
    os.link(tmp_path / 'mine', tmp_path / 'work' / 'config.py')
    runner = object.__new__(ShortLogRunner)
    (tmp_path / 'config.py').write_text('seed = 3')
    runner.cfg = Config.fromfile(tmp_path / 'config.py')
    runner._work_dir, runner._timestamp = str(tmp_path / 'work'), ''
    runner.dump_config()
    assert (tmp_path / 'mine').read_text() == 'precious'
    assert Config.fromfile(tmp_path / 'work' / 'config.py').to_dict() == {'seed': 3}
