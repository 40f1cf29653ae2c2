"""The commands and snippets of docs/detection.md."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from documents import Workplace, run_document


@pytest.mark.slow
def test_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    run_document('docs/detection.md', Workplace(tmp_path))
