"""Pruning of trained networks that were never searched, through tools/prune.py --method."""

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import CheckpointLoader, Runner

from mmscale.cost import count_module
from mmscale.registry import MODELS


@pytest.fixture
def trained(retrain_config, write_config, tmp_path):
    """Config and checkpoint of a network that was never searched."""
    torch.manual_seed(1)
    checkpoint = tmp_path / 'whole.pth'
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        network = MODELS.build(copy.deepcopy(retrain_config['model']))
    torch.save({'state_dict': network.state_dict()}, checkpoint)
    retrain_config['train_cfg'] = dict(by_epoch=True, max_epochs=3, val_interval=1)
    return write_config(retrain_config), checkpoint


@pytest.mark.parametrize(
    ('method', 'options', 'bounds'),
    [
        ('dms', ['--iterations', 12], (0.58, 0.6)),
        ('taylor', ['--metric', 'params'], (0.55, 0.6)),
        ('l1', ['--keep', 0.4], (0.3, 0.4)),
    ],
)
def test_pruning_of_a_trained_network(method, options, bounds, trained, call_tool, tmp_path):
    config, checkpoint = trained
    out = tmp_path / method
    arguments = ['prune.py', config, checkpoint, '--method', method, '--out', out]
    code, errors = call_tool(*arguments, '--keep', 0.6, *options)
    assert code == 0, errors
    retrain = Config.fromfile(out / 'retrain.py')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        models = [MODELS.build(each.model) for each in (retrain, Config.fromfile(config))]
    metric = 'params' if 'params' in options else 'flops'
    costs = [getattr(count_module(model, (1, 12, 12), memory=False), metric) for model in models]
    assert bounds[0] <= costs[0] / costs[1] <= bounds[1]
    weights = CheckpointLoader.load_checkpoint(str(out / 'weights.pth'), 'cpu')['state_dict']
    before = CheckpointLoader.load_checkpoint(str(checkpoint), 'cpu')['state_dict']
    kept = weights['head.fc.weight']
    assert all(
        any(torch.equal(row, other) for other in before['head.fc.weight'].T) for row in kept.T
    )
    # Statistics are of what is left, and no longer those of a network that saw no image.
    assert weights['backbone.stem.bn.running_mean'].any()
    # The folder of the training is not touched.
    assert not (tmp_path / 'retrain').exists() and (out / 'pruning').is_dir()
    code, errors = call_tool(*arguments)
    assert code == 2 and 'exists: name another folder' in errors
    retrain.train_cfg.max_epochs = 1
    Runner.from_cfg(retrain).train()


def test_wrong_settings_of_pruning(trained, retrain_config, write_config, call_tool, tmp_path):
    config, checkpoint = trained
    start = ['prune.py', config, checkpoint, '--out', tmp_path / 'out']
    for options, message in (
        (['--keep', 0.5], '--keep only with --method'),
        (['--method', 'l1', '--keep', 1.5], 'keep=1.5 must be a number above 0 and below 1'),
        (['--method', 'l1', '--keep', 1e-6], 'the smallest widths leave'),
        (['--method', 'dms', '--keep', 1e-6], 'out of reach'),
        (['--method', 'dms', '--iterations', 0], 'iterations=0'),
    ):
        code, errors = call_tool(*start, *options)
        assert code == 2 and message in errors and 'Traceback' not in errors
    model = dict(type='mmscale.DMSModel', model=retrain_config['model'], target=0.5)
    search = write_config({**retrain_config, 'model': model}, 'search.py')
    code, errors = call_tool(
        'prune.py', search, checkpoint, '--out', tmp_path / 'out', '--method', 'l1'
    )
    assert code == 2 and 'is a search' in errors
    assert not (tmp_path / 'out' / 'weights.pth').exists()
