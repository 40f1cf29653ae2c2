"""Runs whose batches are recorded."""

import copy
import uuid

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner


def runner_of(config, **changes):
    config = copy.deepcopy(config)
    config = config if isinstance(config, Config) else Config(config)
    config.experiment_name = uuid.uuid4().hex
    config.merge_from_dict(changes)
    return Runner.from_cfg(config)


class Recorder(Hook):
    """Records side and sum of every batch, and the draw it is for."""

    priority = 'VERY_LOW'

    def __init__(self):
        self.seen = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        inputs = data_batch['inputs']
        draw = getattr(runner.model, '_draw', None)
        self.seen.append((tuple(inputs.shape[2:]), int(inputs.sum()), draw))


def train(runner):
    try:
        runner.train()
    finally:
        loop = runner.train_loop
        iterator = getattr(getattr(loop, 'dataloader_iterator', None), '_iterator', None)
        if hasattr(iterator, '_shutdown_workers'):
            # Garbage collection would wait five seconds for each of them.
            iterator._shutdown_workers()


def recorded(config, **changes):
    runner, recorder = runner_of(config, **changes), Recorder()
    runner.register_hook(recorder)
    train(runner)
    return recorder.seen


class Stopper(Hook):
    """Interrupts training after an iteration, before the checkpoint that may be due then."""

    def __init__(self, iteration=4):
        self.iteration = iteration

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == self.iteration:
            raise KeyboardInterrupt
