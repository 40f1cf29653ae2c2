"""Datasets, wrappers and samplers of mmpretrain, mmdet and PyTorch, in loops of both kinds."""

import importlib.util

import pytest
from recorded_runs import Stopper, recorded, runner_of, train
from small_setups import AUGMENT, RESOLUTION_SAMPLER, SPACE

from mmscale.arch import HierarchicalSampler, SearchSpace
from mmscale.errors import UsageError

HAS_MMDET = importlib.util.find_spec('mmdet') is not None
needs_mmdet = pytest.mark.skipif(not HAS_MMDET, reason='mmdet is not installed')


@pytest.fixture(autouse=True)
def no_sleep(monkeypatch):
    """MMEngine waits two seconds before it begins a finite sampler anew."""
    monkeypatch.setattr('mmengine.runner.loops.time.sleep', lambda seconds: None)


def nested(name, seeded):
    """Two seeded datasets, or what they wrap, in a wrapper; more than 48 images in all."""
    plain = seeded['dataset']
    return {
        'concat_around': dict(type='ConcatDataset', datasets=[seeded, seeded]),
        'concat_inside': dict(
            type='mmscale.SeededDataset', dataset=dict(type='ConcatDataset', datasets=[plain] * 2)
        ),
        'repeat_alone': dict(type='RepeatDataset', dataset=plain, times=2),
        'balanced_around': dict(type='ClassBalancedDataset', dataset=seeded, oversample_thr=0.2),
        'fold_around': dict(type='KFoldDataset', dataset=seeded, fold=1, num_splits=4, seed=0),
        'deep': dict(
            type='RepeatDataset',
            times=2,
            dataset=dict(type='ConcatDataset', datasets=[seeded, plain]),
        ),
        'alone': plain,
        'mixed': dict(type='mmdet.MultiImageMixDataset', dataset=plain, pipeline=[]),
    }[name]


MULTI_SOURCE = dict(type='mmdet.MultiSourceSampler', batch_size=8, source_ratio=[1, 3])
CASES = [
    ('concat_around', RESOLUTION_SAMPLER, False),
    ('deep', RESOLUTION_SAMPLER, False),
    ('concat_inside', dict(type='InfiniteSampler'), False),
    ('balanced_around', dict(type='DefaultSampler', shuffle=True), False),
    pytest.param('mixed', RESOLUTION_SAMPLER, False, marks=needs_mmdet),
    ('alone', RESOLUTION_SAMPLER, True),
    ('fold_around', dict(type='RepeatAugSampler'), True),
    pytest.param('alone', dict(type='mmdet.ClassAwareSampler'), True, marks=needs_mmdet),
    pytest.param('concat_around', MULTI_SOURCE, True, marks=needs_mmdet),
]


@pytest.mark.parametrize(('name', 'sampler', 'by_epoch'), CASES)
def test_any_dataset_and_sampler_trains_and_resumes_exactly(
    supernet_config, tmp_path, name, sampler, by_epoch
):
    config = supernet_config
    if sampler['type'].startswith('mmdet') or name == 'mixed':
        import mmdet.datasets  # noqa: F401
    loader = config['train_dataloader']
    loader['dataset'], loader['sampler'] = nested(name, loader['dataset']), sampler
    # One subnet of every draw is enough.
    config['model']['mode'] = 'single'
    if by_epoch:
        config['train_cfg'] = dict(by_epoch=True, max_epochs=2)
    whole = recorded(config, work_dir=str(tmp_path / 'straight'))
    length = len(whole) // 2
    if name == 'alone':
        assert len(whole) == 12
    draws = HierarchicalSampler(SearchSpace(**SPACE), 3, 'uniform', warmup_iters=2)
    assert [size for size, *_ in whole] == [(draws.resolution(i),) * 2 for i in range(len(whole))]
    # Augmentation differs from draw to draw.
    assert len({total for _, total, _ in whole}) == len(whole)
    # In the second epoch, if there is one.
    stop = length + 3 if by_epoch else 4
    work_dir = str(tmp_path / 'resumed')
    runner = runner_of(config, work_dir=work_dir)
    runner.register_hook(Stopper(stop))
    with pytest.raises(KeyboardInterrupt):
        train(runner)
    rest = recorded(config, work_dir=work_dir, resume=True)
    assert rest == whole[stop - stop % 2 :]


def test_images_of_another_size_than_was_drawn_are_refused(supernet_config):
    supernet_config['train_dataloader']['dataset']['dataset']['pipeline'] = [
        *AUGMENT,
        dict(type='Resize', scale=16),
        dict(type='PackInputs'),
    ]
    message = 'train_dataloader.dataset: its pipeline makes images of 16 x 16 px where'
    with pytest.raises(UsageError, match=message):
        runner_of(supernet_config).train()


def test_a_transform_that_only_sometimes_resizes_is_noticed_too(supernet_config):
    pipeline = [
        *AUGMENT,
        dict(type='RandomApply', transforms=[dict(type='Resize', scale=13)], prob=0.5),
        dict(type='PackInputs'),
    ]
    supernet_config['train_dataloader']['dataset']['dataset']['pipeline'] = pipeline
    supernet_config['train_dataloader']['batch_size'] = 1
    with pytest.raises(UsageError, match='its pipeline makes images of 13 x 13 px where'):
        runner_of(supernet_config).train()
