"""The helpers of this folder, and an environment of its own for every test."""

import sys
import warnings
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


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
