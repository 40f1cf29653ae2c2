"""What a training gets that its config leaves out, however the config is written."""

import pytest
from mmengine.config import Config
from mmengine.hooks import CheckpointHook, LoggerHook

from mmscale.errors import UsageError
from mmscale.launch.defaults import log_in_one_process, make_durable

OURS = 'mmscale.DurableCheckpointHook'


@pytest.mark.parametrize(
    'settings',
    [
        {},
        dict(default_hooks=None),
        dict(default_hooks={}),
        dict(default_hooks=dict(timer=dict(type='IterTimerHook'))),
        dict(default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=2))),
        dict(default_hooks=dict(checkpoint=dict(type='mmengine.CheckpointHook', interval=2))),
        dict(default_hooks=dict(checkpoint=dict(type='mmengine.hooks.CheckpointHook'))),
        dict(default_hooks=dict(checkpoint=dict(type='mmpretrain.CheckpointHook'))),
        dict(default_hooks=dict(checkpoint=dict(type=CheckpointHook, interval=2))),
        dict(
            default_hooks=dict(
                checkpoint=dict(type='CheckpointHook', backend_args=dict(backend='local'))
            )
        ),
    ],
)
def test_a_training_is_durable_whichever_way_its_hooks_are_written(settings):
    config = Config(settings)
    make_durable(config)
    hooks = config.default_hooks
    assert hooks.checkpoint.type == OURS
    assert (hooks.Preemption.type, hooks.FiniteLoss.type) == (
        'mmscale.PreemptionHook',
        'mmscale.FiniteLossHook',
    )
    # What the user said stays.
    given = settings.get('default_hooks') or {}
    assert hooks.checkpoint.get('interval') == given.get('checkpoint', {'interval': 1}).get(
        'interval'
    )
    assert given.keys() <= hooks.keys()


def test_pure_python_configs_are_durable(tmp_path):
    path = tmp_path / 'new_style.py'
    path.write_text(
        'from mmengine.hooks import CheckpointHook\n'
        'default_hooks = dict(checkpoint=dict(type=CheckpointHook, interval=3))\n'
    )
    config = Config.fromfile(path)
    make_durable(config)
    assert dict(config.default_hooks.checkpoint) == dict(type=OURS, interval=3)


def test_checkpoint_hooks_by_other_names_and_places_are_durable():
    stock = dict(type='CheckpointHook', interval=5)
    config = Config(dict(default_hooks=dict(best=stock), custom_hooks=[stock]))
    make_durable(config)
    assert [config.default_hooks.best.type, config.custom_hooks[0].type] == [OURS, OURS]
    assert config.default_hooks.checkpoint.type == OURS


def test_what_a_user_chose_is_left_alone():
    class OwnHook(CheckpointHook):
        pass

    remote = dict(type='CheckpointHook', backend_args=dict(backend='petrel'))
    built = CheckpointHook(interval=3)
    with pytest.warns(UserWarning, match='a CheckpointHook that is built already stays'):
        make_durable(Config(dict(default_hooks=dict(checkpoint=built))))
    chosen = [None, dict(type=OwnHook), remote, dict(type='NobodysCheckpointHook')]
    for hook in chosen:
        config = Config(dict(default_hooks=dict(checkpoint=hook)))
        make_durable(config)
        assert config.default_hooks.checkpoint == hook
    config = Config(dict(default_hooks=dict(FiniteLoss=None)))
    make_durable(config)
    assert config.default_hooks.FiniteLoss is None


@pytest.mark.parametrize(
    ('hooks', 'message'),
    [('all', "default_hooks='all' must be"), (dict(checkpoint=5), 'default_hooks.checkpoint=5')],
)
def test_hooks_that_are_none_are_refused(hooks, message):
    with pytest.raises(UsageError, match=message):
        make_durable(Config(dict(default_hooks=hooks)))


@pytest.mark.parametrize('kind', ['LoggerHook', 'mmengine.LoggerHook', LoggerHook, None])
def test_one_process_writes_the_metrics(kind):
    given = {} if kind is None else dict(default_hooks=dict(logger=dict(type=kind, interval=7)))
    config = Config(given)
    log_in_one_process(config)
    assert config.default_hooks.logger.type == 'mmscale.MainProcessLoggerHook'
    assert config.default_hooks.logger.get('interval') == (None if kind is None else 7)
