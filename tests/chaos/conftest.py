"""Options of the chaos test, and what it trains and searches: the digit data, made tiny."""

import json
import sys
import uuid
from pathlib import Path

import pytest
from mmengine.config import Config

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / 'engine'))

from forked_tools import finish
from small_setups import ROOT, SPACE
from victims import TRAIN, write_config

from mmscale.models import SuperNetClassifier


def pytest_addoption(parser):
    parser.addoption(
        '--chaos-kills', type=int, default=2, help='kills of the training, and of the search'
    )
    parser.addoption('--chaos-seed', type=int, default=0, help='decides what is killed and when')


@pytest.fixture(autouse=True)
def own_environment(monkeypatch, tmp_path):
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope='session')
def data_root(tmp_path_factory):
    return str(tmp_path_factory.mktemp('data'))


def _tiny(name, data_root):
    config = Config.fromfile(ROOT / 'configs' / 'scalenet' / name)
    config.merge_from_dict(
        {
            'model.backbone.space': {'_delete_': True, **SPACE},
            'model.head.in_channels': SPACE['head']['channels'],
            'env_cfg.dist_cfg.timeout': 60,
            'default_hooks.logger.interval': 4,
            'visualizer.vis_backends': [],
            'log_level': 'WARNING',
            'experiment_name': uuid.uuid4().hex,
        }
    )
    for loader in (config.get('train_dataloader'), config.get('test_dataloader')):
        if loader:
            loader.batch_size = 8
            loader.dataset.dataset.update(num_images=48, data_root=data_root, serialize_data=False)
    return config


@pytest.fixture(scope='session')
def train_config(data_root):
    """A super-supernet of twelve iterations, with a checkpoint every third."""
    config = _tiny('supernet_digits.py', data_root)
    config.model.update(warmup_iters=2, warmup_scaling_stage=0)
    config.merge_from_dict(
        {
            'train_cfg.max_iters': 12,
            'default_hooks.checkpoint': dict(interval=3, max_keep_ckpts=2),
            'custom_hooks.0.distribution': 'uniform',
        }
    )
    return config


@pytest.fixture(scope='session')
def search_config(data_root):
    """A search of the small space; load_from has to be set."""
    config = _tiny('search-mcea_digits.py', data_root)
    config.test_cfg.update(
        budget=22_000, tolerance=0.3, weights=[1, 1],
        subnet_evaluator=dict(calibration_images=16, max_images=40),
    )  # fmt: skip
    config.test_cfg.search.update(population=4, generations=2, rounds=1, num_base_models=2)
    config.calibration_dataloader.batch_size = 8
    config.calibration_dataloader.dataset.dataset.update(
        num_images=48, data_root=data_root, serialize_data=False
    )
    return config


def record_batches(rank):
    """Has a process write the shape of every batch that it trains."""
    step = SuperNetClassifier.backward_step

    def recorded(model, data, optim_wrapper):
        with open(f'batches{rank}.jsonl', 'a') as file:
            file.write(json.dumps([list(image.shape) for image in data['inputs']]) + '\n')
        return step(model, data, optim_wrapper)

    SuperNetClassifier.backward_step = recorded


@pytest.fixture(scope='session')
def trained(train_config, tmp_path_factory):
    """The folder of the undisturbed training: ``work`` and the batches of each process."""
    folder = tmp_path_factory.mktemp('trained')
    config = write_config(train_config, folder / 'train.py')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        finish([TRAIN, config, '--work-dir', 'work'], folder / 'log', before=record_batches)
    return folder
