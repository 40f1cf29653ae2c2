"""Settings that every test runs under, and fixtures that several packages' tests share."""

import gc
import os
import runpy
import sys
from pathlib import Path

# Before torch is imported: one thread a process, asleep while it waits.
os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('MKL_NUM_THREADS', '1')
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
os.environ.setdefault('MPLBACKEND', 'Agg')

import cv2
import pytest
from hypothesis import settings
from yapf.yapflib import yapf_api

from mmscale.arch import SearchSpace

# Processes that tests fork would wait for threads that stay behind, as MMEngine's workers would.
cv2.setNumThreads(0)


def checked(text, **_):
    """As yapf of a config's text, which takes longer than most trainings here; not beautiful."""
    compile(text, 'config', 'exec')
    return text, True


# Tests in processes of their own have yapf itself.
yapf_api.FormatCode = checked

# No deadline, as no test may depend on time; the same examples in every run.
settings.register_profile('mmscale', deadline=None, derandomize=True)
settings.load_profile('mmscale')

# Lets all tests import `random_spaces`.
sys.path.insert(0, str(Path(__file__).parent))


TOOLS = Path(__file__).parents[1] / 'tools'


def pytest_collection_finish():
    """Readies the process for all tests, in whatever order they come.

    What is imported is spared every garbage collection: each dataset of MMEngine asks for one.
    And autograd's engine starts before anything can make believe that there is a GPU, as fake
    tensors do without one (torch.export): it would start a thread for it, and forks of this
    process could not train.
    """
    gc.freeze()
    if 'torch' in sys.modules:
        sys.modules['torch'].ones(1, requires_grad=True).sum().backward()


@pytest.fixture(autouse=True)
def own_torch_load():
    """Puts back what a tool in the process of the tests restricts for good."""
    restriction = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
    before = os.environ.get(restriction)
    yield
    if before is None:
        os.environ.pop(restriction, None)
    checkpoints = sys.modules.get('mmscale.models.checkpoints')
    if checkpoints is not None:
        import torch

        torch.load = torch.serialization.load = checkpoints._torch_load


@pytest.fixture(scope='session')
def paper_config():
    """The paper's search space as a config dict; tests must not change it."""
    path = Path(__file__).parents[1] / 'configs/_base_/search_spaces/scalenet.py'
    return runpy.run_path(str(path))['space']


@pytest.fixture(scope='session')
def paper_space(paper_config):
    return SearchSpace(**paper_config)


@pytest.fixture
def randomise():
    """A function that gives every norm layer random statistics and affine parameters.

    With `weights` also convolutions random weights, large enough for a signal to pass through
    slices of them.
    """
    import torch
    from torch import nn
    from torch.nn.modules.batchnorm import _BatchNorm

    def apply(model, weights=False, seed=0):
        generator = torch.Generator().manual_seed(seed)
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                for tensor in (module.weight, module.running_var):
                    tensor.data.uniform_(0.5, 1.5, generator=generator)
                for tensor in (module.bias, module.running_mean):
                    tensor.data.normal_(0, 0.3, generator=generator)
            elif weights and isinstance(module, nn.Conv2d):
                dense = module.groups == 1
                scale = (5 / module.weight[0].numel()) ** 0.5 if dense else 0.5
                module.weight.data.normal_(0, scale, generator=generator)
        return model

    return apply


@pytest.fixture
def refuses():
    """Checks that bad values of a setting are refused, in a line that names it and the value.

    For what depends on one value alone; the fuzz tests cover any.
    """

    def check(call, **bad):
        for key, values in bad.items():
            for value in values:
                try:
                    call(**{key: value})
                except ValueError as error:
                    message = str(error)
                else:
                    pytest.fail(f'{key}={value!r} is accepted')
                parts = value if isinstance(value, (list, tuple)) and value else [value]
                assert key in message and '\n' not in message, message
                assert any(f'{shown!r:.20}' in message for shown in (value, *parts)), message

    return check


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
