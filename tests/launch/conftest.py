"""The helpers of this folder, and an environment of its own for every test."""

import runpy
import sys
import warnings
from pathlib import Path

import pytest

from mmscale.arch import SearchSpace

sys.path.insert(0, str(Path(__file__).parent))
from command_lines import write

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'


@pytest.fixture
def own_environment(monkeypatch, tmp_path):
    """Every test in an empty folder, with the process's environment and warnings put back."""
    monkeypatch.chdir(tmp_path)
    process = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')
    slurm = ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID', 'SLURM_NODELIST')
    own = ('TORCH_FORCE_WEIGHTS_ONLY_LOAD', 'OPENCV_IO_MAX_IMAGE_PIXELS')
    for key in (*own, *process, *slurm):
        monkeypatch.setenv(key, '')
        monkeypatch.delenv(key)
    with warnings.catch_warnings():
        yield


@pytest.fixture
def small_config(tmp_path):
    """A config that trains the smallest network of the digit space."""
    space_file = CONFIGS / '_base_' / 'search_spaces' / 'digits.py'
    space = SearchSpace(**runpy.run_path(str(space_file))['space'])
    space.smallest().save('smallest.json')
    return write(
        'small.py',
        f'_base_ = {str(CONFIGS / "scalenet" / "arch-net_digits.py")!r}\n'
        "model = dict(backbone=dict(arch='smallest.json'))\n"
        'train_dataloader = dict(dataset=dict(dataset=dict(num_images=32)))\n'
        'val_dataloader = test_dataloader = dict(dataset=dict(num_images=16))\n'
        # MMEngine's runners of one process must have different names.
        f'experiment_name = {tmp_path.name!r}\n',
    )
