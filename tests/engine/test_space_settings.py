"""Settings around a super-supernet: what works, and what is refused as it would do nothing."""

import copy
import logging
from contextlib import nullcontext

import pytest
import torch
from mmengine.config import Config
from recorded_runs import recorded, runner_of
from small_setups import ROOT

from mmscale.apis.search import plan_search
from mmscale.engine.space_settings import check_settings
from mmscale.errors import UsageError

STAGES = [
    dict(depth=[1.0], width=[1.0], resolution=[16]),
    dict(depth=[1.0], width=[1.0], resolution=[20, 24]),
]


@pytest.fixture
def child(tmp_path):
    """A function that writes a child of a config of ours, or of another child."""

    def write(base, text, name='child.py'):
        path = tmp_path / name
        base = base if base.endswith('.py') else f'{ROOT}/configs/{base}.py'
        path.write_text(f'_base_ = {base!r}\n{text}\n')
        return Config.fromfile(path, import_custom_modules=False)

    return write


# ------------------------------------------------------------------ a space


@pytest.mark.parametrize('name', ['supernet_digits', 'search-mcea_digits', 'supernet_32xb8_in1k'])
def test_a_space_that_the_model_does_not_follow_is_refused(child, name):
    check_settings(child(f'scalenet/{name}', ''))
    with pytest.raises(UsageError, match=r'space=.* is set, .* Set model\.backbone\.space'):
        check_settings(child(f'scalenet/{name}', f'space = dict(scaling_stages={STAGES})'))


def test_the_space_of_the_model_may_differ_from_the_variable(child, tmp_path):
    text = f'model = dict(backbone=dict(space=dict(scaling_stages={STAGES})))'
    config = child('scalenet/supernet_digits', text, 'parent.py')
    assert config.space != config.model.backbone.space
    check_settings(config)
    # A child of it, too, may leave the variable alone, but not change it in vain.
    check_settings(child(str(tmp_path / 'parent.py'), 'train_cfg = dict(max_iters=3)'))
    vain = child(str(tmp_path / 'parent.py'), 'space = dict(num_classes=4)')
    with pytest.raises(UsageError, match='is set, but the model has another one'):
        check_settings(vain)


def test_a_base_may_be_named_by_an_expression(tmp_path):
    base = f"_base_ = {str(ROOT)!r} + '/configs/scalenet/' + 'supernet_digits.py'\n"
    for text, is_refused in (
        (f'model = dict(backbone=dict(space=dict(scaling_stages={STAGES})))', False),
        (f'space = dict(scaling_stages={STAGES})', True),
    ):
        (tmp_path / 'child.py').write_text(base + text)
        config = Config.fromfile(tmp_path / 'child.py', import_custom_modules=False)
        with pytest.raises(UsageError, match='another one') if is_refused else nullcontext():
            check_settings(config)


def test_a_space_in_a_pure_python_config_is_refused_too(tmp_path):
    (tmp_path / 'base.py').write_text(
        'from mmscale.models import SuperNet, SuperNetClassifier\n'
        f'space = dict(num_classes=3, scaling_stages={STAGES})\n'
        'model = dict(type=SuperNetClassifier, backbone=dict(type=SuperNet, space=space))\n'
    )
    begin = 'from mmengine.config import read_base\nwith read_base():\n    from .base import *\n'
    for name, text, is_refused in (
        ('same', 'train_cfg = dict(max_iters=3)', False),
        ('vain', 'space = dict(space, num_classes=4)', True),
        ('both', "space = dict(space, num_classes=4)\nmodel['backbone']['space'] = space", False),
    ):
        (tmp_path / f'{name}.py').write_text(begin + text)
        with pytest.raises(UsageError, match='another one') if is_refused else nullcontext():
            check_settings(Config.fromfile(tmp_path / f'{name}.py'))


def test_an_override_of_the_variable_is_refused_too():
    config = Config.fromfile(ROOT / 'configs/scalenet/search-mcea_digits.py')
    config.merge_from_dict({'space.num_classes': 4})
    with pytest.raises(UsageError, match='is set, but the model has another one'):
        plan_search(config)


def test_a_runner_refuses_before_it_trains(supernet_config, child):
    config = child('scalenet/supernet_digits', f'space = dict(scaling_stages={STAGES})')
    config.merge_from_dict(
        {
            'train_dataloader': copy.deepcopy(supernet_config['train_dataloader']),
            'work_dir': supernet_config['work_dir'],
        }
    )
    with pytest.raises(UsageError, match='is set, but the model has another one'):
        runner_of(config).train()


# ------------------------------------------------------------------ other settings


@pytest.mark.parametrize(
    ('key', 'value'), [('compile', True), ('activation_checkpointing', ['backbone.stages'])]
)
def test_what_a_super_supernet_cannot_use_is_refused(supernet_config, key, value):
    with pytest.raises(UsageError, match=rf'{key}=.* is not for super-supernets: '):
        runner_of(supernet_config, **{key: value}).train()


def warnings_of(runner):
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    runner.logger.addHandler(handler)
    runner.train()
    return [r.getMessage() for r in records if r.levelno == logging.WARNING]


@pytest.mark.parametrize('warmup', [1, 4, 5])
def test_a_warm_up_that_never_ends_is_said(supernet_config, warmup):
    changes = {'train_cfg.max_iters': 4, 'model.warmup_iters': warmup}
    found = [
        line for line in warnings_of(runner_of(supernet_config, **changes)) if 'warmup' in line
    ]
    assert len(found) == (warmup >= 4)
    assert all(f'model.warmup_iters={warmup} is not below max_iters=4' in line for line in found)


def test_mixed_labels_train(supernet_config):
    """The head's accuracy, which mixed labels have none of, is switched off."""
    plain = runner_of(supernet_config)
    assert plain.model.head.cal_acc is False
    augments = [dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]
    changes = {
        'model.train_cfg': dict(augments=augments),
        'model.head.cal_acc': True,
        'work_dir': supernet_config['work_dir'] + '_mixed',
    }
    runner = runner_of(supernet_config, **changes)
    assert runner.model.head.cal_acc is False
    before = {k: v.clone() for k, v in runner.model.state_dict().items()}
    runner.train()
    assert runner.model.data_preprocessor.batch_augments is not None
    after = runner.model.state_dict()
    assert all(value.isfinite().all() for value in after.values())
    assert not torch.equal(before['head.fc.weight'], after['head.fc.weight'])


def test_averaged_weights_are_those_of_the_checkpoint(supernet_config):
    hooks = [*supernet_config['custom_hooks'], dict(type='EMAHook', momentum=0.5)]
    runner = runner_of(supernet_config, custom_hooks=hooks)
    runner.train()
    saved = torch.load(f'{supernet_config["work_dir"]}/iter_8.pth', weights_only=False)
    name = 'backbone.stem.conv.weight'
    trained = runner.model.state_dict()[name]
    assert not torch.equal(saved['state_dict'][name], trained)
    assert torch.equal(saved['ema_state_dict'][f'module.{name}'], trained)


def test_gradients_add_up_over_iterations(supernet_config):
    """A step uses what the subnets of both its iterations used."""
    seen, steps = [], []
    wrapper = dict(supernet_config['optim_wrapper'], accumulative_counts=4)
    runner = runner_of(supernet_config, optim_wrapper=wrapper)
    train_step = runner.model.train_step
    weight = runner.model.backbone.stages[1][2].spatial.conv.weight

    def step(*args, **kwargs):
        before = weight.detach().clone()
        outputs = train_step(*args, **kwargs)
        seen.append(runner.model.backbone.used_slices)
        steps.append(not torch.equal(before, weight))
        return outputs

    runner.model.train_step = step
    runner.train()
    assert steps == [False, False, False, True] * 2
    assert [bool(used) for used in seen] == [True, True, True, False] * 2


def test_gradient_checkpointing_trains_alike(supernet_config, tmp_path):
    states = []
    for with_cp in (False, True):
        changes = {
            'model.backbone.with_cp': with_cp,
            'work_dir': str(tmp_path / str(with_cp)),
            'train_cfg.max_iters': 4,
        }
        assert len(recorded(supernet_config, **changes)) == 4
        states.append(torch.load(tmp_path / str(with_cp) / 'iter_4.pth', weights_only=False))
    one, other = (state['state_dict'] for state in states)
    assert all(torch.equal(one[key], other[key]) for key in one)
