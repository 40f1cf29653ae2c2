"""Files of others: links are not followed when writing, and pipes are not waited for."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from mmscale.arch.json_files import read_json
from mmscale.untrusted import check_no_link, check_work_dir, open_regular

ROOT = Path(__file__).resolve().parents[1]


def test_only_regular_files_are_opened(tmp_path):
    (tmp_path / 'file').write_bytes(b'content')
    (tmp_path / 'link').symlink_to('file')
    os.mkfifo(tmp_path / 'pipe')
    for name in ('file', 'link'):
        with open_regular(tmp_path / name) as file:
            assert file.read() == b'content'
    for path in (tmp_path / 'pipe', tmp_path, '/dev/zero'):
        with pytest.raises(ValueError, match='is not a regular file'):
            open_regular(path)
        with pytest.raises(ValueError, match='is not a regular file'):
            read_json(path)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / 'none')


def test_a_link_is_no_file_to_write(tmp_path):
    assert check_no_link(tmp_path / 'new') == tmp_path / 'new'
    (tmp_path / 'link').symlink_to(tmp_path / 'mine')
    with pytest.raises(ValueError, match=r'link is a symbolic link to .*mine'):
        check_no_link(tmp_path / 'link')


def test_links_out_of_a_work_dir_are_found(tmp_path):
    mine, work = tmp_path / 'mine', tmp_path / 'work'
    mine.mkdir()
    check_work_dir(work)
    (work / 'weights' / 'inner').mkdir(parents=True)
    (work / 'iter_1.pth').write_text('')
    (work / 'latest.pth').symlink_to('iter_1.pth')
    (tmp_path / 'linked').symlink_to(work)
    for folder in (work, tmp_path / 'linked'):
        check_work_dir(folder)
    for place in (work, work / 'weights', work / 'weights' / 'inner'):
        for target in (mine, mine / 'new', '../../../../etc/passwd'):
            (place / 'link').symlink_to(target)
            with pytest.raises(ValueError, match='link is a symbolic link out of'):
                check_work_dir(work)
            (place / 'link').unlink()
        os.mkfifo(place / 'pipe')
        with pytest.raises(ValueError, match='pipe is not a regular file'):
            check_work_dir(work)
        (place / 'pipe').unlink()


@pytest.fixture
def tool(monkeypatch, capfd, tmp_path):
    """Calls a tool in this process; returns exit code and the last line of stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')

    def call(name, *arguments):
        monkeypatch.setattr(sys, 'argv', [name, *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as leaving:
            runpy.run_path(str(ROOT / 'tools' / name), run_name='__main__')
        return leaving.value.code, capfd.readouterr().err.splitlines()[-1]

    return call


@pytest.mark.parametrize('place', ['report', 'chain.png', 'history.jsonl'])
def test_report_writes_over_no_file_of_the_user(place, tool, tmp_path):
    mine = tmp_path / 'mine'
    mine.mkdir()
    (mine / 'chain.png').write_text('precious')
    work = tmp_path / 'work'
    (work / 'report').mkdir(parents=True)
    event = dict(kind='search', round=0, evaluations=3, fitness=0.5, strategy=[], history=[0.5])
    (work / 'history.jsonl').write_text(json.dumps(event) + '\n')
    if place == 'report':
        (work / 'report').rmdir()
        (work / 'report').symlink_to(mine)
    elif place == 'chain.png':
        (work / 'report' / place).symlink_to(mine / place)
    else:
        (work / place).unlink()
        os.mkfifo(work / place)
    code, error = tool('report.py', work)
    assert code == 2 and error.startswith('error: ') and place in error
    assert (mine / 'chain.png').read_text() == 'precious' and len(list(mine.iterdir())) == 1


@pytest.mark.parametrize(
    ('name', 'words'),
    [
        ('search.py', ['configs/scalenet/search-mcea_digits.py', '--dry-run', '--resume']),
        ('search.py', ['configs/scalenet/search-mcea_digits.py', '--resume']),
        ('train.py', ['configs/scalenet/digits-s0.py', '--resume']),
    ],
    ids=['dry run', 'search', 'train'],
)
@pytest.mark.parametrize(
    'place', ['result.json', 'last_checkpoint', 'archs', 'archive/rank0000.jsonl']
)
def test_resuming_writes_over_no_file_of_the_user(name, words, place, tool, tmp_path):
    mine = tmp_path / 'mine'
    mine.write_text('precious')
    path = tmp_path / 'work' / place
    path.parent.mkdir(parents=True)
    path.symlink_to(mine)
    config, *rest = words
    options = ['--cfg-options', 'load_from=x.pth'] if name == 'search.py' else []
    (tmp_path / 'x.pth').write_text('')
    code, error = tool(name, ROOT / config, *rest, '--work-dir', tmp_path / 'work', *options)
    assert code == 2 and 'is a symbolic link out of' in error and place in error
    assert mine.read_text() == 'precious'


@pytest.mark.slow
def test_a_pipe_in_a_folder_hangs_no_report(tmp_path):
    os.mkfifo(tmp_path / 'config.py')
    found = subprocess.run(
        [sys.executable, ROOT / 'tools/report.py', tmp_path],
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert found.returncode == 2 and 'config.py is not a regular file' in found.stderr
