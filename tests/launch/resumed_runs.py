"""A small training and its checkpoint, without data: MMEngine's own resuming on a stand-in."""

import logging
import uuid
from functools import partial
from types import SimpleNamespace

import torch
from mmengine.logging import MessageHub
from mmengine.optim import CosineAnnealingLR, LinearLR, MultiStepLR, OptimWrapper
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn

SCHEDULERS = (
    partial(LinearLR, start_factor=0.1, by_epoch=False, begin=0, end=2),
    partial(MultiStepLR, milestones=[2, 6], by_epoch=False),
    partial(CosineAnnealingLR, T_max=8, eta_min=1e-3, by_epoch=False),
)
ADAM = partial(torch.optim.AdamW, lr=0.1)


class Run(SimpleNamespace):
    """What of a Runner is resumed: counters, optimizer, schedulers and message hub."""

    def __init__(self, optimizer=ADAM, schedulers=SCHEDULERS, wrapper=OptimWrapper):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        loop = IterBasedTrainLoop.__new__(IterBasedTrainLoop)
        loop._max_iters = loop._max_epochs = 8
        loop._iter = loop._epoch = 0
        groups = [{'params': [*model[0].parameters()]}, {'params': [*model[1].parameters()]}]
        optim_wrapper = wrapper(optimizer=optimizer(groups))
        super().__init__(
            model=model,
            hooks=[],
            _resume=True,
            train_loop=loop,
            train_dataloader=SimpleNamespace(dataset=None),
            message_hub=MessageHub.get_instance(uuid.uuid4().hex),
            optim_wrapper=optim_wrapper,
            build_optim_wrapper=lambda own: own,
            param_schedulers=[one(optim_wrapper) for one in schedulers],
            build_param_scheduler=lambda own: own,
            _randomness_cfg={},
            set_randomness=lambda seed: torch.manual_seed(seed),
            logger=logging.getLogger('resumed'),
            epoch=0,
            iter=0,
        )

    def step(self):
        """One iteration."""
        loss = self.model(torch.rand(4, 3)).square().sum()
        self.optim_wrapper.update_params(loss)
        for scheduler in self.param_schedulers:
            scheduler.step()
        self.message_hub.update_scalar('train/loss', 1.5)
        self.message_hub.get_scalar('train/loss').mean(2)
        self.message_hub.update_info('keep_ckpt_ids', [1, 2])
        self.message_hub.update_info('best_score', 0.5)
        self.message_hub.update_info('best_ckpt', 'work/best_top1_iter_2.pth')

    def checkpoint(self):
        """What MMEngine would save."""
        return dict(
            meta=dict(iter=3, epoch=0, seed=5, dataset_meta=dict(classes=['a']), cfg='a = 1'),
            state_dict=self.model.state_dict(),
            message_hub=self.message_hub.state_dict(),
            optimizer=self.optim_wrapper.state_dict(),
            param_schedulers=[one.state_dict() for one in self.param_schedulers],
        )

    def go_on(self, checkpoint):
        """Goes on from a checkpoint, by MMEngine's own code."""
        self.load_checkpoint = lambda *_, **__: checkpoint
        Runner.resume(self, 'file')
        self.step()


def after(steps=3, **settings):
    """A run after some steps."""
    run = Run(**settings)
    for _ in range(steps):
        run.step()
    return run
