"""Lets the tests of this folder import its helpers, which spawned processes import too."""

import runpy
import sys
import warnings
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

TOOLS = Path(__file__).resolve().parents[2] / 'tools'


@pytest.fixture
def own_environment(monkeypatch, tmp_path):
    """Every test in an empty folder, with the process's environment and warnings put back."""
    monkeypatch.chdir(tmp_path)
    process = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')
    slurm = ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID', 'SLURM_NODELIST')
    for key in ('TORCH_FORCE_WEIGHTS_ONLY_LOAD', *process, *slurm):
        monkeypatch.setenv(key, '')
        monkeypatch.delenv(key)
    with warnings.catch_warnings():
        yield


@pytest.fixture
def tool(monkeypatch, capfd):
    """Runs a tool in this process; returns its exit code and what it wrote to stderr."""

    def run(name, *words):
        monkeypatch.setattr(sys, 'argv', [name, *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_:
            runpy.run_path(str(TOOLS / name), run_name='__main__')
        return exit_.value.code, capfd.readouterr().err

    return run
