"""tools/detection_quickstart.py where it ends before any work."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from mmscale.errors import UsageError

TOOL = Path(__file__).parents[2] / 'tools' / 'detection_quickstart.py'


@pytest.fixture
def tool():
    return runpy.run_path(str(TOOL))


def test_a_file_is_no_work_dir(tool, tmp_path, monkeypatch):
    (tmp_path / 'file').touch()
    monkeypatch.setattr(sys, 'argv', ['detection_quickstart.py', '--work-dir', f'{tmp_path}/file'])
    with pytest.raises(UsageError, match=r'work_dir=.*/file: File exists'):
        tool['main']()


def test_another_run_is_not_continued(tool, tmp_path):
    settings = tmp_path / 'settings.json'
    settings.write_text(json.dumps({'config': 'a.py', 'randomness.seed': 0}))
    with pytest.raises(UsageError, match='holds a run of other settings'):
        tool['train']('a.py', tmp_path, {'train_cfg.max_iters': 1, 'randomness.seed': 1}, 0)
    assert [settings] == list(tmp_path.iterdir())
