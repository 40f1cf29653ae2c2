"""What the quickstarts share: one at a time in a folder, and no tool that goes on unseen."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmscale.errors import UsageError
from mmscale.launch.steps import run_logged, take_work_dir

ROOT = Path(__file__).resolve().parents[2]
# A quickstart whose only step notes its number and sleeps.
QUICKSTART = """
import signal
import sys
from pathlib import Path
from mmscale.launch.steps import run_logged, run_steps, take_work_dir

STEP = 'import os, time; open("pid", "w").write(str(os.getpid())); time.sleep(600)'

def main():
    folder = Path('work')
    run_logged([sys.executable, '-c', STEP], Path('/'), folder / 'step', take_work_dir(folder))

# A test runner in the background hands down that Ctrl-C is to be ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
run_steps(main)
"""


def is_alive(pid):
    status = Path(f'/proc/{pid}/stat')
    return status.is_file() and status.read_text().rpartition(')')[2].split()[0] != 'Z'


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'it did not happen'
        time.sleep(0.02)


@pytest.fixture
def begun(tmp_path):
    """A quickstart in the middle of its step, and the step's number."""
    quickstart = subprocess.Popen(
        [sys.executable, '-c', QUICKSTART],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    file = tmp_path / 'pid'
    wait_for(lambda: file.is_file() and file.read_text())
    step = int(file.read_text())
    yield quickstart, step
    for number in (quickstart.pid, step):
        if is_alive(number):
            os.kill(number, signal.SIGKILL)
    quickstart.communicate()


def test_the_step_of_a_killed_quickstart_is_named_until_it_ends(begun, tmp_path):
    quickstart, step = begun
    with pytest.raises(UsageError, match=rf'is in use.*kill .*\b{quickstart.pid}\b'):
        take_work_dir(tmp_path / 'work')
    quickstart.kill()
    quickstart.wait()
    with pytest.raises(UsageError, match=rf'process {step} \(.*; wait, or end it: kill {step}$'):
        take_work_dir(tmp_path / 'work')
    os.kill(step, signal.SIGTERM)
    wait_for(lambda: not is_alive(step))
    os.close(take_work_dir(tmp_path / 'work'))


@pytest.mark.parametrize(
    ('sent', 'code'), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGINT, 130)]
)
def test_a_quickstart_that_is_ended_ends_its_step(begun, tmp_path, sent, code):
    quickstart, step = begun
    quickstart.send_signal(sent)
    shown = quickstart.communicate(timeout=60)[0].decode()
    assert quickstart.returncode == code
    assert 'Traceback' not in shown
    assert ('the same command goes on from here' in shown) == (sent == signal.SIGINT)
    assert not is_alive(step)
    os.close(take_work_dir(tmp_path / 'work'))


@pytest.mark.parametrize('name', ['.lock', 'console.log'])
def test_nothing_is_written_through_a_link(tmp_path, name):
    mine = tmp_path / 'mine'
    mine.write_text('text')
    work_dir = tmp_path / 'work'
    work_dir.mkdir()
    (work_dir / name).symlink_to(mine)
    with pytest.raises(UsageError, match='is a symbolic link'):
        take_work_dir(work_dir)
    if name == 'console.log':
        with pytest.raises(UsageError, match='is a symbolic link'):
            run_logged(['true'], Path('/'), work_dir, 0)
    assert mine.read_text() == 'text'
