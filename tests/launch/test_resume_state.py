"""What a training goes on with besides weights: legal states pass, others are one line each."""

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.logging import HistoryBuffer
from mmengine.optim import (
    ConstantLR,
    ExponentialLR,
    OptimWrapper,
    PolyLR,
    ReduceOnPlateauLR,
    StepLR,
)
from mmengine.optim.scheduler import CosineRestartLR
from resumed_runs import ADAM, after

from mmscale.engine import FittingLoadHook
from mmscale.engine.optimizers import rmsprop_tf
from mmscale.errors import UsageError
from mmscale.launch.resume_state import check_state, check_structure_optimizer

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
OPTIMIZERS = {
    'SGD': SGD,
    'SGD without momentum': partial(torch.optim.SGD, lr=0.1),
    'AdamW, amsgrad': partial(ADAM, amsgrad=True),
    'Adagrad': torch.optim.Adagrad,
    'Adafactor': torch.optim.Adafactor,
    'ASGD': torch.optim.ASGD,
    'NAdam': torch.optim.NAdam,
    'RMSprop': partial(torch.optim.RMSprop, centered=True, momentum=0.5),
    'rmsprop_tf': partial(rmsprop_tf, lr=0.1, momentum=0.5),
    'Rprop': torch.optim.Rprop,
}
STEPS = partial(StepLR, step_size=2, by_epoch=False)
SCHEDULERS = [
    partial(ConstantLR, by_epoch=False),
    partial(CosineRestartLR, periods=[2, 9], restart_weights=[1, 0.5], eta_min=0, by_epoch=False),
    partial(ExponentialLR, gamma=0.9, by_epoch=False),
    partial(PolyLR, eta_min=1e-4, end=8, by_epoch=False),
    partial(ReduceOnPlateauLR, monitor='loss'),
    STEPS,
]


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_a_training_goes_on_with_its_own_optimizer(name):
    run = after(optimizer=OPTIMIZERS[name])
    new = after(0, optimizer=OPTIMIZERS[name])
    before = copy.deepcopy(new.optim_wrapper.state_dict())
    checkpoint = run.checkpoint()
    check_state(new, 'a.pth', checkpoint)
    # Nothing is taken over yet, and what is taken over then is the whole of it.
    assert str(new.optim_wrapper.state_dict()) == str(before)
    new.go_on(copy.deepcopy(checkpoint))
    torch.manual_seed(5)
    run.step()
    own, other = run.optim_wrapper.state_dict(), new.optim_wrapper.state_dict()
    assert str(own['param_groups']) == str(other['param_groups'])
    assert own['state'].keys() == other['state'].keys()


def test_a_training_goes_on_with_its_own_schedulers():
    run, new = (after(count, schedulers=SCHEDULERS) for count in (3, 0))
    check_state(new, 'a.pth', run.checkpoint())


def test_state_of_older_versions_of_torch_passes():
    """They counted steps in integers, and had fewer settings."""
    checkpoint = after().checkpoint()
    for kept in checkpoint['optimizer']['state'].values():
        kept['step'] = 3
    for group in checkpoint['optimizer']['param_groups']:
        for key in ('fused', 'foreach', 'capturable', 'differentiable', 'maximize'):
            del group[key]
    check_state(after(0), 'a.pth', checkpoint)


def test_how_an_optimizer_steps_may_differ():
    checkpoint, new = after().checkpoint(), after(0)
    for group in new.optim_wrapper.optimizer.param_groups:
        group['foreach'] = True
    check_state(new, 'a.pth', checkpoint)


def test_what_is_not_there_begins_anew(caplog):
    checkpoint = after().checkpoint()
    del checkpoint['optimizer'], checkpoint['param_schedulers']
    check_state(after(0), 'a.pth', checkpoint)
    assert 'a.pth has no optimizer, whose state begins anew' in caplog.text
    assert 'a.pth has no param_schedulers, whose state begins anew' in caplog.text


def wide():
    """Few bytes that stand for 2 ** 30 numbers."""
    return torch.zeros(1).expand(2**30)


HALF = HistoryBuffer([1.0, 2.0], [1, 1])
HALF._count_history = np.ones(1)
WORDS = HistoryBuffer(['x'], ['y'])

# A path into the checkpoint, a value, and what is said of it.
CASES = [
    # -- optimizer
    ('optimizer', [1], r'optimizer: expected an object, got list'),
    ('optimizer.state', None, r'optimizer\.state=None must be a dict'),
    ('optimizer.state.77', {}, r'optimizer\.state\[77\] is of no parameter'),
    ('optimizer.state.0', [1], r'optimizer\.state\[0\]=\[1\] must be a dict'),
    ('optimizer.state.0', {'step': 1.0}, r'optimizer\.state\[0\]: missing key exp_avg'),
    ('optimizer.state.0.step', -7.0, r'state\[0\]\.step=-7.0 must be a number of 0 or more'),
    ('optimizer.state.0.exp_avg', wide(), r'state\[0\] has a Tensor .* not stored whole'),
    ('optimizer.state.0.exp_avg', torch.ones(2), r'exp_avg=Tensor of shape \(2,\) must be a T'),
    ('optimizer.state.0.exp_avg', 'x', r"state\[0\] has a text, 'x', in the place of numbers"),
    ('optimizer.state.0.exp_avg', [[0] * 9] * 200, r'state\[0\] has more than 1,000 values'),
    ('optimizer.state.1.exp_avg', torch.full((2,), math.nan), r'exp_avg has numbers that are not'),
    ('optimizer.param_groups', [], r'param_groups=\[\] must be a list of 2, as in this training'),
    ('optimizer.param_groups.0.params', [0], r'params=1 must be the numbers of 2 parameters'),
    ('optimizer.param_groups.0.params', [0, 2], r'a parameter comes twice'),
    ('optimizer.param_groups.0.lr', math.nan, r'param_groups\[0\]\.lr=nan must be a finite'),
    ('optimizer.param_groups.1.lr', 10**5000, r'lr=an integer of 16610 bits must be a finite'),
    ('optimizer.param_groups.0.lr', -1.0, r'lr=-1.0 must be a number of 0 or more'),
    ('optimizer.param_groups.0.betas', (2.0, 5.0), r'param_groups\[0\] allows no step: '),
    ('optimizer.param_groups.0.capturable', True, r'param_groups\[0\] allows no step: '),
    # -- schedulers
    ('param_schedulers', {}, r'param_schedulers=\{\} must be a list of 3, as in this training'),
    ('param_schedulers.0', 5, r'param_schedulers\[0\]=5 must be a dict'),
    ('param_schedulers.0.step', 5, r'param_schedulers\[0\]: unknown key step'),
    ('param_schedulers.0.param_name', 'x', r"param_name='x' must be 'lr', as in this training"),
    ('param_schedulers.1.milestones', {2: 'x'}, r'milestones=.* must be a dict of finite numbers'),
    ('param_schedulers.1.base_values', [0.1], r'base_values=\[0.1\] must be a list of 3'),
    ('param_schedulers.2.T_max', 0, r'param_schedulers\[2\] allows no step: ZeroDivisionError'),
    # -- message hub
    ('message_hub', [], r'message_hub: expected an object, got list'),
    (
        'message_hub.log_scalars.train/loss',
        1,
        r'log_scalars\.train/loss=1 must be a HistoryBuffer',
    ),
    ('message_hub.log_scalars.train/loss', HALF, r'=\(2, 1\) must be as many values as counts'),
    ('message_hub.log_scalars.train/loss', WORDS, r"values\.dtype='<U1' must be a real number"),
    ('message_hub.runtime_info', 'x', r"runtime_info='x' must be a dict with texts as keys"),
    ('message_hub.runtime_info.best_score', 'x', r"best_score='x' must be a number"),
    (
        'message_hub.runtime_info.best_ckpt',
        '/etc/passwd',
        r'must be the path of a checkpoint best',
    ),
    ('message_hub.runtime_info.keep_ckpt_ids', ['/../x'], r'keep_ckpt_ids\[0\]=.* an integer'),
    ('message_hub.resumed_keys.train/loss', False, r'resumed_keys\.train/loss=False must be True'),
    # -- meta
    ('meta.iter', 10**30, r'meta\.iter=10{30} must be an integer in 0\.\.8'),
    ('meta.epoch', 'x', r"meta\.epoch='x' must be an integer"),
    ('meta.seed', 2**32, r'meta\.seed=4294967296 must be an integer in 0\.\.4294967295'),
    ('meta.seed', 'x', r"meta\.seed='x' must be an integer"),
]


def put(data, path, value):
    """Sets what a path of keys and numbers names."""
    first, _, rest = path.partition('.')
    key = int(first) if first.isdigit() else first
    if rest:
        put(data[key], rest, value)
    else:
        data[key] = value


@pytest.mark.parametrize(('path', 'value', 'said'), CASES, ids=[case[0] for case in CASES])
def test_what_fits_no_training_is_one_line(path, value, said):
    checkpoint = after().checkpoint()
    put(checkpoint, path, value)
    with pytest.raises(UsageError, match=rf'^a\.pth: .*{said}') as caught:
        check_state(after(0), 'a.pth', checkpoint)
    assert '\n' not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ('old', 'new', 'said'),
    [
        (ADAM, SGD, r'param_groups\[0\]: missing key momentum'),
        (SGD, ADAM, r'param_groups\[0\]: missing key betas'),
        (SGD, OPTIMIZERS['RMSprop'], r'param_groups\[0\]: missing key alpha'),
    ],
)
def test_the_state_of_another_optimizer_is_refused(old, new, said):
    checkpoint = after(optimizer=old).checkpoint()
    with pytest.raises(UsageError, match=rf'^a\.pth: optimizer\.{said}'):
        check_state(after(0, optimizer=new), 'a.pth', checkpoint)


def test_the_state_of_another_scheduler_is_refused():
    checkpoint = after(schedulers=[STEPS]).checkpoint()
    new = after(0, schedulers=[SCHEDULERS[2]])
    with pytest.raises(UsageError, match=r'param_schedulers\[0\]: unknown key step_size'):
        check_state(new, 'a.pth', checkpoint)


class Scaled(OptimWrapper):
    """As of mixed precision, which needs a GPU."""

    def state_dict(self):
        scaler = dict(scale=2.0**16, growth_factor=2.0, growth_interval=2000, _growth_tracker=0)
        return {**super().state_dict(), 'loss_scaler': scaler}


@pytest.mark.parametrize(
    ('scaler', 'said'),
    [({'scale': 1.0}, r': missing key growth_factor'), ([1], r'=\[1\] must be a dict')],
)
def test_the_scale_of_losses_is_looked_at(scaler, said):
    run, new = after(wrapper=Scaled), after(0, wrapper=Scaled)
    checkpoint = run.checkpoint()
    check_state(new, 'a.pth', checkpoint)
    checkpoint['optimizer']['loss_scaler'] = scaler
    with pytest.raises(UsageError, match=rf'optimizer\.loss_scaler{said}'):
        check_state(new, 'a.pth', checkpoint)


def test_scores_may_be_of_other_libraries():
    checkpoint = after().checkpoint()
    for score in (np.float32(0.5), torch.tensor(0.5), math.inf, 0):
        checkpoint['message_hub']['runtime_info']['best_score'] = score
        check_state(after(0), 'a.pth', checkpoint)


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        ({'module.0.weight': torch.ones(5)}, r' does not fit the model: .*0\.weight \(5,\)'),
        ({'module.0.weight': [1]}, r'\.module\.0\.weight=\[1\] must be a Tensor'),
        ({'module.x': torch.ones(5)}, r' does not fit the model: 1 not in the model: x'),
        ({'steps': torch.ones(5)}, r'\.steps=Tensor of shape \(5,\) must be one number'),
    ],
)
def test_averages_are_of_this_model(change, said):
    run, new = after(), after(0)
    new.hooks = [EMAHook()]
    averages = {f'module.{key}': value for key, value in run.model.state_dict().items()}
    averages['steps'] = torch.tensor(3)
    checkpoint = {**run.checkpoint(), 'ema_state_dict': averages}
    check_state(new, 'a.pth', checkpoint)
    averages.update(change)
    with pytest.raises(UsageError, match=rf'^a\.pth: ema_state_dict{said}'):
        check_state(new, 'a.pth', checkpoint)


def test_the_optimizer_of_a_structure_is_that_of_this_search():
    run, new = after(), after(0)
    new.model.structure_optimizer = new.optim_wrapper.optimizer
    state = run.optim_wrapper.optimizer.state_dict()
    check_structure_optimizer(new, 'a.pth', {'structure_optimizer': state})
    state['param_groups'][0]['eps'] = None
    with pytest.raises(UsageError, match=r'structure_optimizer\.param_groups\[0\]\.eps=None'):
        check_structure_optimizer(new, 'a.pth', {'structure_optimizer': state})


@pytest.mark.parametrize('versions', [5, {'0': 5}, {'0': {'version': 'x'}}])
def test_versions_of_weights_are_numbers(versions):
    run = after(0)
    state = run.model.state_dict()
    FittingLoadHook().after_load_checkpoint(run, {'state_dict': state})
    state._metadata = versions
    with pytest.raises(UsageError, match=r'_metadata=.* has no versions'):
        FittingLoadHook().after_load_checkpoint(run, {'state_dict': state})
