"""Settings that every test runs under, and fixtures that several packages' tests share."""

import os
import runpy
from pathlib import Path

# Before torch is imported: one thread a process, asleep while it waits.
os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('MKL_NUM_THREADS', '1')
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
os.environ.setdefault('MPLBACKEND', 'Agg')

import pytest
from hypothesis import settings

from mmscale.arch import SearchSpace

# No deadline, as no test may depend on time; the same examples in every run.
settings.register_profile('mmscale', deadline=None, derandomize=True)
settings.load_profile('mmscale')


@pytest.fixture(scope='session')
def paper_config():
    """The paper's search space as a config dict; tests must not change it."""
    path = Path(__file__).parents[1] / 'configs/_base_/search_spaces/scalenet.py'
    return runpy.run_path(str(path))['space']


@pytest.fixture(scope='session')
def paper_space(paper_config):
    return SearchSpace(**paper_config)
