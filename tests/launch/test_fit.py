"""Checkpoints, heads, metrics and classes that do not fit each other are refused before a run."""

import copy
import signal
from pathlib import Path

import pytest
import torch
from command_lines import arguments

from mmscale.arch import Arch
from mmscale.errors import MMScaleError, UsageError
from mmscale.launch.command_line import load_config
from mmscale.launch.log import run
from mmscale.launch.runner import build_runner

pytestmark = pytest.mark.usefixtures('own_environment')


@pytest.fixture
def build(small_config, tmp_path):
    """Builds runners of the small config without its own hooks, each under its own name."""
    names = iter(range(100))

    def build(phase, *options, **settings):
        name = f'experiment_name={tmp_path.name}-{next(names)}'
        config = load_config(arguments(small_config, '--cfg-options', name, *options))
        config.custom_hooks = [h for h in config.custom_hooks if 'Strict' not in h['type']]
        config.merge_from_dict(settings)
        return build_runner(config, phase)

    return build


@pytest.fixture
def weights(build):
    """Weights of the small network that are not those it begins with."""
    model = build('test').model
    return {key: torch.full_like(tensor, 0.25) for key, tensor in model.state_dict().items()}


def loaded(runner):
    runner.load_or_resume()
    return runner.model.state_dict()


@pytest.mark.parametrize('prefix', ['module.', '_orig_mod.', 'module._orig_mod.'])
@pytest.mark.parametrize('phase', ['test', 'train'])
def test_weights_of_wrapped_networks_are_read(build, weights, prefix, phase):
    torch.save({'state_dict': {f'{prefix}{key}': w for key, w in weights.items()}}, 'wrapped.pth')
    found = loaded(build(phase, 'load_from=wrapped.pth'))
    assert all(torch.equal(found[key], tensor) for key, tensor in weights.items())


@pytest.mark.parametrize('key', [None, 'state_dict', 'model', 'state_dict_ema'])
def test_weights_are_found_where_code_bases_put_them(build, weights, key):
    torch.save(weights if key is None else {key: weights, 'epoch': 3}, 'weights.pth')
    found = loaded(build('test', 'load_from=weights.pth'))
    assert all(torch.equal(found[key], tensor) for key, tensor in weights.items())


@pytest.mark.parametrize('phase', ['test', 'train'])
def test_weights_by_other_names_are_refused(build, weights, phase):
    torch.save({'state_dict': {f'net.{key}': w for key, w in weights.items()}}, 'foreign.pth')
    with pytest.raises(UsageError, match=r'foreign.pth: .* missing: .* not in the model: net'):
        build(phase, 'load_from=foreign.pth')


def test_a_test_needs_all_weights_and_a_training_some(build, weights):
    some = {key: w for key, w in weights.items() if not key.startswith('head.')}
    torch.save({'state_dict': some}, 'backbone.pth')
    with pytest.raises(UsageError, match=r'2 missing: head\.fc\.'):
        build('test', 'load_from=backbone.pth')
    key = 'backbone.stem.conv.weight'
    assert torch.equal(loaded(build('train', 'load_from=backbone.pth'))[key], weights[key])
    other = {**weights, 'head.fc.weight': torch.zeros(3, 96), 'head.fc.bias': torch.zeros(3)}
    torch.save({'state_dict': other}, 'other_head.pth')
    with pytest.raises(UsageError, match=r'2 of another shape: head\.fc\.'):
        build('test', 'load_from=other_head.pth')
    build('train', 'load_from=other_head.pth')
    # What is not trained, and what is left over, may be missing or there.
    counted = {key: w for key, w in weights.items() if not key.endswith('num_batches_tracked')}
    torch.save({'state_dict': counted | {'teacher.weight': torch.zeros(1)}}, 'more.pth')
    build('test', 'load_from=more.pth')


def test_weights_that_are_not_finite_are_not_tested(build, weights):
    weights['head.fc.weight'][0, 0] = float('nan')
    torch.save({'state_dict': weights}, 'nan.pth')
    with pytest.raises(UsageError, match=r'nan\.pth: .* not finite: head\.fc\.weight'):
        build('test', 'load_from=nan.pth')


def test_pretrained_weights_of_a_part_by_other_names_are_refused(build, weights):
    torch.save({'state_dict': weights}, 'whole.pth')
    init = dict(type='Pretrained', checkpoint='whole.pth')
    build('train', **{'model.head.init_cfg': [dict(init, prefix='head.')]})
    for settings in ({}, dict(prefix='backbone.'), dict(prefix='neck')):
        with pytest.raises(
            UsageError, match=r'model\.head\.init_cfg\.checkpoint=whole.pth.* not one key fits'
        ):
            build('train', **{'model.head.init_cfg': [dict(init, **settings)]})


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['val_evaluator.topk=(1,11)'], r'val_evaluator\.topk of Accuracy=\(1, 11\)'),
        (['model.head.topk=(1,20)', 'model.head.cal_acc=True'], r'model\.head\.topk=\(1, 20\)'),
        (['val_evaluator.topk=5', 'model.head.num_classes=4'], 'so at most 4 is allowed'),
    ],
)  # fmt: skip
def test_classes_and_metrics_must_fit(build, options, message):
    with pytest.raises(UsageError, match=message):
        build('train', *options)


def test_a_last_batch_of_one_image_is_refused_where_bn_takes_none(build):
    """Maps of the smallest digit network at 8 px are 1 x 1, at its own size they are not."""
    epochs = {
        'train_cfg': dict(_delete_=True, by_epoch=True, max_epochs=1),
        'train_dataloader.batch_size': 31,
    }
    data = Arch.from_json('smallest.json').to_json()
    Arch.from_json({**data, 'resolution': 8}).save('tiny.json')
    tiny = {'model.backbone.arch': 'tiny.json'}
    message = r'^train_dataloader: batch_size=31 makes a batch of one image of 32, .* at 8 px'
    with pytest.raises(UsageError, match=message):
        build('train', **copy.deepcopy(epochs), **tiny)
    for settings in (
        {'train_dataloader.drop_last': True},
        {'train_dataloader.batch_size': 30},
        {'model.backbone.arch': 'smallest.json'},
        {'train_cfg': dict(_delete_=True, by_epoch=False, max_iters=2)},  # without end
    ):
        build('train', **copy.deepcopy({**epochs, **tiny, **settings}))


def test_data_of_more_classes_than_the_head_is_a_warning(build, capfd):
    build('train', 'model.head.num_classes=4')
    shown = ''.join(capfd.readouterr())
    assert 'num_classes=4: the images of train_dataloader are of 10 classes' in shown


def test_the_test_alone_is_checked_too(build):
    with pytest.raises(UsageError, match=r'test_evaluator\.topk'):
        build('test', 'test_evaluator.topk=(1,11)')


def test_what_stops_a_run_is_one_line_and_its_traceback_in_the_log(build, capfd):
    runner = build('train', 'train_cfg.max_iters=2')

    def broken(*args, **kwargs):
        raise KeyError('a mistake\nof two lines')

    runner.model.loss = broken
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(
        MMScaleError, match=r'train stopped at iteration 0: KeyError.*two lines'
    ) as found:
        run(runner, 'train')
    assert signal.getsignal(signal.SIGTERM) is before
    log = str(found.value).rpartition('traceback in ')[2].rstrip(')')
    assert 'Traceback' in Path(log).read_text() and 'in broken' in Path(log).read_text()
    shown = ''.join(capfd.readouterr())
    assert 'Traceback' not in shown
    # The screen says where the config is; the file has it.
    assert 'Config:' not in shown and 'Hooks will be' not in shown
    assert 'System environment' not in shown and 'config, environment and hooks' in shown
    assert all(w in Path(log).read_text() for w in ('Config:', 'System environment', 'Hooks will'))
