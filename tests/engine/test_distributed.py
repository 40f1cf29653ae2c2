"""SliceParallel: two processes with half a batch each are one optimizer step on the mean.

A network that one Arch describes trains with MMEngine's own wrapper, on CPUs too.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner import CheckpointLoader
from mmpretrain.structures import DataSample
from small_setups import ROOT, SPACE
from torch import distributed, multiprocessing, nn

from mmscale.arch import HierarchicalSampler, SearchSpace
from mmscale.engine import BFloat16OptimWrapper, SliceParallel
from mmscale.models import SuperNetClassifier, step_slices

STEPS, ACCUMULATED = 3, 2
SAMPLER = HierarchicalSampler(SearchSpace(**SPACE), 1, 'uniform')
# Several kinds of block in a place, and a head that subnets use parts of.
GENERAL = dict(
    in_channels=1,
    num_classes=10,
    resolution=[12, 14],
    stem=dict(channels=4),
    stages=[
        dict(channels=[4, 8], depths=[1, 2], kernels=[1, 3], kind=['mbconv', 'bottleneck']),
        dict(channels=[6, 8], stride=2, depths=[1, 2], kernels=3, kind='basic'),
    ],
    head=dict(channels=0),
)
SAMPLERS = {
    'scaled': SAMPLER,
    'general': HierarchicalSampler(SearchSpace(**GENERAL), 1, 'uniform'),
}


def make_model(mode, seed, norm_cfg=None, space='scaled'):
    torch.manual_seed(seed)
    head = dict(type='mmpretrain.LinearClsHead', num_classes=10, topk=(1,))
    if space == 'scaled':
        head['in_channels'] = 12
    return SuperNetClassifier(
        backbone=dict(type='mmscale.SuperNet', space=SAMPLERS[space].space, norm_cfg=norm_cfg),
        neck=dict(type='mmpretrain.GlobalAveragePooling'),
        head=head,
        mode=mode,
    ).train()


def make_wrapper(model, bfloat16=False):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    wrapper = BFloat16OptimWrapper if bfloat16 else OptimWrapper
    # Clipping is left out: it would hide a gradient that is too long.
    return wrapper(optimizer, accumulative_counts=ACCUMULATED)


def half_batch(iteration, rank, space='scaled'):
    generator = torch.Generator().manual_seed(10 * iteration + rank)
    side = SAMPLERS[space].draw(iteration).arch.resolution
    labels = torch.randint(10, (4,), generator=generator).tolist()
    return dict(
        inputs=torch.randn(4, 1, side, side, generator=generator),
        data_samples=[DataSample().set_gt_label(label) for label in labels],
    )


def train_rank(rank, mode, space, folder):
    torch.set_num_threads(1)
    distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=2
    )
    # Ranks that start from different weights: rank 0's count.
    model = make_model(mode, seed=rank, space=space)
    wrapped, wrapper = SliceParallel(model), make_wrapper(model)
    reduced = []
    reduce_gradients = wrapped.reduce_gradients
    wrapped.reduce_gradients = lambda optimizer: reduced.append(reduce_gradients(optimizer))
    for iteration in range(STEPS * ACCUMULATED):
        model.set_draw(SAMPLERS[space].draw(iteration), iteration)
        wrapped.train_step(half_batch(iteration, rank, space), wrapper)
    momentum = {
        name: wrapper.optimizer.state[p].get('momentum_buffer')
        for name, p in model.named_parameters()
    }
    torch.save(
        {'weights': dict(model.named_parameters()), 'momentum': momentum, 'reduced': reduced},
        f'{folder}/rank{rank}.pth',
    )
    distributed.destroy_process_group()


def train_one_process(mode, space):
    """Every step on the mean of the gradients of both halves; a reference of its own."""
    model = make_model(mode, seed=0, space=space)
    wrapper = make_wrapper(model)
    for step in range(STEPS):
        iterations = range(step * ACCUMULATED, (step + 1) * ACCUMULATED)
        for iteration in iterations:
            for rank in range(2):
                model.set_draw(SAMPLERS[space].draw(iteration), iteration)
                batch = half_batch(iteration, rank, space)
                data = model.data_preprocessor(batch, True)
                with model.backbone.slices():
                    losses = model.subnet_losses(data['inputs'], data['data_samples'])
                (model.parse_losses(losses)[0] / ACCUMULATED / 2).backward()
        with step_slices(wrapper.optimizer, model.backbone):
            wrapper.step()
        wrapper.zero_grad()
        model.backbone.forget_slices()
    return model, wrapper


@pytest.mark.parametrize(
    ('mode', 'space'),
    [
        *((mode, 'scaled') for mode in ('single', 'both_sides', 'sandwich')),
        *((mode, 'general') for mode in ('single', 'sandwich')),
    ],
)
def test_two_processes_step_on_the_mean_gradient(mode, space, tmp_path):
    multiprocessing.start_processes(
        train_rank, (mode, space, str(tmp_path)), nprocs=2, start_method='fork'
    )
    ranks = [torch.load(tmp_path / f'rank{rank}.pth', weights_only=True) for rank in range(2)]
    model, wrapper = train_one_process(mode, space)
    total = sum(p.numel() for p in model.parameters())
    for name, parameter in model.named_parameters():
        momentum = wrapper.optimizer.state[parameter].get('momentum_buffer')
        for rank in ranks:
            assert torch.equal(rank['weights'][name], ranks[0]['weights'][name])
            torch.testing.assert_close(rank['weights'][name], parameter, rtol=1e-5, atol=1e-6)
            assert (rank['momentum'][name] is None) == (momentum is None)
            if momentum is not None:
                torch.testing.assert_close(rank['momentum'][name], momentum, rtol=1e-4, atol=1e-6)
    # Once per optimizer step, and only what was used.
    assert len(ranks[0]['reduced']) == STEPS
    assert ranks[0]['reduced'] == ranks[1]['reduced']
    if mode == 'single':
        assert max(ranks[0]['reduced']) < 0.8 * total


def test_two_processes_train_and_test_one_network(
    retrain_config, write_config, run_tool, fork_tool, call_tool, tmp_path
):
    retrain_config['train_cfg'] = dict(by_epoch=False, max_iters=4, val_interval=4)
    path = write_config(retrain_config)
    # By torchrun itself; what the scripts hand it is for tests/tools/test_launch_scripts.py.
    trained = run_tool(ROOT / 'tools/dist_train.sh', path, 2)
    assert trained.returncode == 0, trained.stderr[-3000:]
    weights = Path(retrain_config['work_dir']) / 'iter_4.pth'
    checkpoint = CheckpointLoader.load_checkpoint(str(weights))
    assert checkpoint['meta']['iter'] == 4
    # No prefix of the wrapper: one process reads it as well.
    assert {name.split('.')[0] for name in checkpoint['state_dict']} == {'backbone', 'head'}
    assert all(torch.isfinite(tensor).all() for tensor in checkpoint['state_dict'].values())

    def accuracy(work_dir):
        (log,) = Path(work_dir).glob('*/*.json')
        return json.loads(log.read_text())['accuracy/top1']

    codes, said = fork_tool('test.py', path, weights, '--work-dir', tmp_path / 'two', processes=2)
    assert codes == [0, 0], said[-3000:]
    code, errors = call_tool('test.py', path, weights, '--work-dir', tmp_path / 'one')
    assert code == 0, errors
    assert accuracy(tmp_path / 'two') == accuracy(tmp_path / 'one')


def test_two_processes_tell_a_mistake_once(retrain_config, write_config, fork_tool):
    retrain_config['model']['head']['in_channels'] = 5
    codes, said = fork_tool('train.py', write_config(retrain_config), processes=2)
    assert 0 not in codes
    assert said.count('error: ') == said.count('model.head.in_channels=5 does not fit') == 1
    assert 'Traceback' not in said


def test_bfloat16_computes_in_bfloat16_and_keeps_float32():
    model = make_model('sandwich', seed=0)
    wrapper = make_wrapper(model, bfloat16=True)
    seen = set()
    model.head.fc.register_forward_hook(lambda fc, inputs, output: seen.add(output.dtype))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = []
    for iteration in range(STEPS * ACCUMULATED):
        model.set_draw(SAMPLER.draw(iteration), iteration)
        losses.append(model.train_step(half_batch(iteration, 0), wrapper)['loss'].item())
    assert seen == {torch.bfloat16}
    assert all(torch.isfinite(torch.tensor(losses)))
    changed = 0
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        state = wrapper.optimizer.state[parameter].values()
        assert all(tensor.dtype == torch.float32 for tensor in state if torch.is_tensor(tensor))
        changed += not torch.equal(parameter, before[name])
    assert changed > len(before) / 2
    # The same losses as with float32, to the precision of bfloat16.
    model = make_model('sandwich', seed=0)
    model.set_draw(SAMPLER.draw(0), 0)
    expected = model.train_step(half_batch(0, 0), make_wrapper(model))['loss'].item()
    assert losses[0] != expected and losses[0] == pytest.approx(expected, rel=0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('kind', ['AmpOptimWrapper', 'mmscale.BFloat16OptimWrapper'])
def test_mixed_precision_and_nccl_on_a_gpu(kind, tmp_path):
    distributed.init_process_group(
        'nccl', init_method=f'file://{tmp_path}/rendezvous', rank=0, world_size=1
    )
    try:
        model = make_model('sandwich', seed=0, norm_cfg=dict(type='SyncBN')).cuda()
        wrapped = SliceParallel(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        wrapper = OPTIM_WRAPPERS.build(dict(type=kind, optimizer=optimizer))
        for iteration in range(STEPS):
            model.set_draw(SAMPLER.draw(iteration), iteration)
            assert torch.isfinite(wrapped.train_step(half_batch(iteration, 0), wrapper)['loss'])
    finally:
        distributed.destroy_process_group()


def test_synchronised_statistics_reach_the_subnets_and_not_what_is_extracted():
    model = make_model('single', seed=0, norm_cfg=dict(type='SyncBN'))
    arch = SAMPLER.draw(0).arch
    used = set()
    handle = nn.modules.module.register_module_forward_pre_hook(
        lambda module, _: (
            used.add(isinstance(module, nn.SyncBatchNorm))
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
            else None
        )
    )
    model.eval().extract_feat(torch.zeros(1, 1, 12, 12))
    handle.remove()
    assert used == {True}
    modules = list(model.extract(arch).modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in modules)
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in modules)


def test_sync_bn_that_would_do_nothing_is_refused():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(make_model('single', seed=0))
    with pytest.raises(ValueError, match=r'set model\.backbone\.norm_cfg'):
        SliceParallel(model)


def test_only_a_super_supernet_is_wrapped():
    with pytest.raises(TypeError, match=r'wraps a SuperNetClassifier .* got Linear'):
        SliceParallel(nn.Linear(1, 1))


def test_fork_leaves_this_process_alone():
    # The processes of these tests are forks: nothing of their group may be left here.
    assert not distributed.is_initialized()
    assert 'RANK' not in os.environ
