"""The faults of docs/scaling_out.md that are of training: each ends in one line or is survived."""

import copy
import json
import os
import resource
import shutil
import signal

import pytest
import torch
from forked_tools import PATIENCE, Ranks, finish
from mmengine.runner import CheckpointLoader
from victims import TRAIN, assert_same_training, killed, write_config

from mmscale.engine import SliceParallel
from mmscale.launch.resume import find_checkpoints


@pytest.fixture
def log(tmp_path):
    return tmp_path / 'log'


@pytest.fixture
def train(train_config, tmp_path, log):
    """Runs a training; returns the exit codes of its processes and the lines they end with."""

    def run(*arguments, config=None, **settings):
        path = write_config(config or train_config, tmp_path / 'config.py')
        log.unlink(missing_ok=True)
        codes = Ranks([TRAIN, path, *arguments], log, **settings).wait()
        return codes, [line for line in log.read_text().splitlines() if line.startswith('error')]

    return run


@pytest.fixture
def work_dir(trained, tmp_path):
    """A copy of the undisturbed training's work dir, with the checkpoints 9 and 12."""
    folder = shutil.copytree(trained / 'work', tmp_path / 'wörk dir')
    (folder / 'last_checkpoint').write_text(str(folder / 'iter_12.pth'))
    return folder


# ---------------------------------------------------------------------- batches


def test_all_ranks_train_at_one_resolution(trained):
    batches = [
        [json.loads(line) for line in (trained / f'batches{rank}.jsonl').open()]
        for rank in range(2)
    ]
    assert batches[0] == batches[1] and len(batches[0]) == 12
    sides = {shape[-1] for batch in batches[0] for shape in batch}
    assert len(sides) > 1
    assert all(len({tuple(shape) for shape in batch}) == 1 for batch in batches[0])


# ---------------------------------------------------------------------- preemption


def signal_at(iteration, ranks, number):
    """Has some processes signal themselves in an iteration, as a cluster would."""

    def before(rank):
        reduce_gradients = SliceParallel.reduce_gradients
        calls = []

        def told(wrapper, optimizer):
            calls.append(0)
            if rank in ranks and len(calls) == iteration:
                os.kill(os.getpid(), number)
            return reduce_gradients(wrapper, optimizer)

        SliceParallel.reduce_gradients = told

    return before


def test_a_signal_to_one_process_ends_all_with_a_checkpoint(train, trained, tmp_path, log):
    work_dir = tmp_path / 'work'
    told = signal_at(5, [1], signal.SIGUSR1)
    codes, _ = train('--work-dir', work_dir, before=told)
    assert codes == [os.EX_TEMPFAIL] * 2
    assert [path.name for path in find_checkpoints(work_dir)] == ['iter_5.pth', 'iter_3.pth']
    assert 'SIGUSR1: checkpoint at iteration 5, leaving' in log.read_text()
    codes, _ = train('--work-dir', work_dir, '--resume')
    assert codes == [0, 0]
    assert_same_training(work_dir / 'iter_12.pth', trained / 'work' / 'iter_12.pth')


def test_accumulated_gradients_are_waited_for(train, train_config, tmp_path):
    config = copy.deepcopy(train_config)
    config.optim_wrapper.accumulative_counts = 2
    config.default_hooks.checkpoint.interval = 4

    def told(rank):
        backward = torch.Tensor.backward
        calls = []

        def tell(tensor, *args, **kwargs):
            calls.append(0)
            if len(calls) == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            backward(tensor, *args, **kwargs)

        torch.Tensor.backward = tell

    work_dir = tmp_path / 'work'
    codes, _ = train('--work-dir', work_dir, config=config, world_size=1, before=told)
    assert codes == [os.EX_TEMPFAIL]
    assert [path.name for path in find_checkpoints(work_dir)] == ['iter_6.pth', 'iter_4.pth']


# ---------------------------------------------------------------------- checkpoints


def test_a_kill_half_way_through_a_checkpoint_leaves_the_one_before(train, trained, tmp_path):
    work_dir = tmp_path / 'work'
    codes, _ = train('--work-dir', work_dir, before=killed({0: ('checkpoint', 2)}))
    assert codes[0] == -signal.SIGKILL
    assert [path.name for path in find_checkpoints(work_dir)] == ['iter_3.pth']
    assert (work_dir / '.iter_6.pth.partial').stat().st_size > 0
    codes, _ = train('--work-dir', work_dir, '--resume')
    assert codes == [0, 0]
    assert_same_training(work_dir / 'iter_12.pth', trained / 'work' / 'iter_12.pth')
    assert not list(work_dir.glob('.*.partial'))


def test_a_damaged_checkpoint_falls_back_to_the_one_before(train, work_dir, trained, log):
    newest = work_dir / 'iter_12.pth'
    newest.write_bytes(newest.read_bytes()[:-1000])
    codes, _ = train('--work-dir', work_dir, '--resume')
    assert codes == [0, 0]
    said = log.read_text()
    assert 'iter_12.pth is not a checkpoint of tensors and plain values, or it is damaged' in said
    assert f'resuming from the one before: {work_dir / "iter_9.pth"}' in said
    assert_same_training(newest, trained / 'work' / 'iter_12.pth')


@pytest.mark.parametrize(
    ('record', 'names'),
    [
        (None, ['iter_12', 'iter_9']),
        ('', ['iter_12', 'iter_9']),
        ('gone/iter_7.pth', ['iter_12', 'iter_9']),
        # The folder has been moved; what is newer than the last one is of an earlier run.
        ('elsewhere/iter_9.pth', ['iter_9']),
    ],
)
def test_the_record_of_the_last_checkpoint_may_be_wrong(work_dir, record, names):
    file = work_dir / 'last_checkpoint'
    file.unlink() if record is None else file.write_text(record)
    (work_dir / '.iter_15.pth.partial').touch()
    assert [path.stem for path in find_checkpoints(work_dir)] == names


def test_python_in_a_checkpoint_is_not_executed(train, work_dir, tmp_path):
    path = work_dir / 'iter_12.pth'
    checkpoint = CheckpointLoader.load_checkpoint(str(path), 'cpu')
    checkpoint['meta']['config'] = f'open({str(tmp_path / "sprung")!r}, "w")'
    torch.save(checkpoint, path)
    codes, errors = train('--resume', path, world_size=1)
    assert codes == [2]
    assert 'meta.config is not allowed: it would be executed' in errors[0]
    assert not (tmp_path / 'sprung').exists()


def test_a_full_disk_leaves_the_last_checkpoint(train, train_config, work_dir, trained, log):
    size = (work_dir / 'iter_9.pth').stat().st_size
    (work_dir / 'iter_12.pth').unlink()

    def fill(rank):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

    codes, errors = train('--work-dir', work_dir, '--resume', before=fill)
    assert codes[0] == 2
    assert f'cannot write {work_dir / "iter_12.pth"}' in errors[0]
    assert [path.name for path in work_dir.glob('*.pth')] == ['iter_9.pth']
    assert not list(work_dir.glob('.*.partial'))
    finish([TRAIN, work_dir.parent / 'config.py', '--work-dir', work_dir, '--resume'], log)
    assert_same_training(work_dir / 'iter_12.pth', trained / 'work' / 'iter_12.pth')


@pytest.mark.parametrize('interval', [1, 100])
def test_a_loss_that_is_no_number_ends_the_training(train, train_config, tmp_path, interval):
    config = copy.deepcopy(train_config)
    config.optim_wrapper = dict(optimizer=dict(type='SGD', lr=1e30))
    config.param_scheduler = None
    config.default_hooks.FiniteLoss = dict(type='mmscale.FiniteLossHook', interval=interval)
    codes, errors = train('--work-dir', tmp_path / 'work', config=config, world_size=1)
    assert codes == [2]
    expected = 'loss=nan at iteration 2' if interval == 1 else 'is not finite at iteration 3'
    assert expected in errors[0]
    assert not list((tmp_path / 'work').glob('*.pth'))


# ---------------------------------------------------------------------- processes


def test_a_dead_process_ends_the_others(train, tmp_path, log):
    codes, _ = train('--work-dir', tmp_path / 'work', before=killed({1: ('all_reduce', 2)}))
    assert codes[1] == -signal.SIGKILL and codes[0] not in (0, 75)
    assert ' by peer' in log.read_text()


def test_a_process_that_hangs_ends_the_others_after_the_timeout(train_config, tmp_path, log):
    config = copy.deepcopy(train_config)
    config.env_cfg.dist_cfg.timeout = 4
    path = write_config(config, tmp_path / 'config.py')

    def hang(rank):
        if rank == 1:
            SliceParallel.reduce_gradients = lambda *_: signal.pause()

    ranks = Ranks([TRAIN, path, '--work-dir', tmp_path / 'work'], log, before=hang)
    ranks.processes[0].join(PATIENCE)
    assert ranks.processes[0].exitcode not in (None, 0, 75)
    ranks.kill([1])
    assert 'Timed out waiting 4000ms' in log.read_text()


def test_a_process_that_is_missing_is_told(train_config, tmp_path, log):
    config = copy.deepcopy(train_config)
    config.env_cfg.dist_cfg.timeout = 2
    path = write_config(config, tmp_path / 'config.py')

    def leave(rank):
        if rank == 1:
            os._exit(0)

    assert Ranks([TRAIN, path], log, before=leave).wait() == [2, 0]
    said = log.read_text().splitlines()[-1]
    assert said.startswith('error: --launcher pytorch: not all of 2 processes came together')


def test_another_number_of_processes_is_refused(train, work_dir):
    codes, errors = train('--work-dir', work_dir, '--resume', world_size=1)
    assert codes == [2]
    assert 'iter_12.pth is of another run (processes: 2 before, 1 now)' in errors[0]


def test_another_config_with_the_same_work_dir_is_refused_with_the_difference(
    train, train_config, work_dir
):
    config = copy.deepcopy(train_config)
    config.optim_wrapper.optimizer.lr = 0.3
    config.train_cfg.max_iters = 20
    codes, errors = train('--work-dir', work_dir, '--resume', config=config)
    assert codes[0] == 2
    assert '(optim_wrapper.optimizer.lr: 0.2 before, 0.3 now)' in errors[0]
    # Who names the checkpoint accepts it.
    config.train_cfg.max_iters = 13
    codes, errors = train(
        '--work-dir', work_dir, '--resume', work_dir / 'iter_12.pth', config=config
    )
    assert codes == [0, 0], errors


def test_a_work_dir_that_cannot_be_written_is_one_line(train):
    # Nobody may write there, root included.
    codes, errors = train('--work-dir', '/sys/mmscale', world_size=1)
    assert codes == [2] and len(errors) == 1 and '/sys/mmscale' in errors[0]
