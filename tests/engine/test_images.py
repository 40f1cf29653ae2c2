"""Images that subnets are scored with: each is read once, and nothing else is taken for it."""

import os
from fractions import Fraction

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler, default_collate
from small_setups import SPACE

from mmscale.arch import SearchSpace
from mmscale.engine import SubnetEvaluator
from mmscale.engine.images import content_of
from mmscale.errors import UsageError


def test_images_on_the_disk_score_as_those_in_memory(make_evaluator, tmp_path):
    make, _ = make_evaluator
    space = SearchSpace(**SPACE)
    archs = [space.smallest(), space.largest(), space.largest(0)]
    memory = make()
    folder = tmp_path / 'images'
    disk = dict(cache='disk', cache_dir=folder)
    for evaluator in (make(**disk), make(**disk), make(**disk, cache_bytes=1)):
        assert evaluator.fingerprint == memory.fingerprint
        for arch in archs:
            assert evaluator.evaluate(arch) == memory.evaluate(arch)
    assert len(list(folder.iterdir())) == 2 * len({arch.resolution for arch in archs})
    evaluator = make(**disk)
    for store, images in zip(
        (evaluator._images, evaluator._calibration),
        (memory._images, memory._calibration),
        strict=True,
    ):
        pairs = zip(store.batches(16), images.batches(16), strict=True)
        for (inputs, labels), (same, their_labels) in pairs:
            assert torch.equal(inputs, same) and torch.equal(labels, their_labels)
    # Other images of the same data have other files.
    make(**disk, max_images=40).prepare(12)
    assert len([path for path in folder.iterdir() if '_12px_' in path.name]) == 3


def test_images_on_the_disk_are_uint8_with_a_label_each(
    make_evaluator, search_config, monkeypatch, tmp_path
):
    make, _ = make_evaluator
    disk = dict(cache='disk', cache_dir=tmp_path)
    pipeline = search_config['test_dataloader']['dataset']['dataset']['pipeline']
    pipeline.insert(1, dict(type='Normalize', mean=[0.0], std=[1.0], to_rgb=False))
    with pytest.raises(UsageError, match=r'^cache=.disk. keeps images as uint8, .*torch.float32'):
        make(**disk).evaluate(SearchSpace(**SPACE).smallest())
    del pipeline[1]
    monkeypatch.setattr(SubnetEvaluator, 'targets_of', staticmethod(lambda samples: samples))
    with pytest.raises(UsageError, match=r'^cache=.disk. keeps one label an image'):
        make(**disk).evaluate(SearchSpace(**SPACE).smallest())


def test_other_images_have_other_files(make_evaluator, monkeypatch, tmp_path):
    make, _ = make_evaluator
    path = tmp_path / 'image.bmp'
    path.write_bytes(b'pixels')
    info = {'img_path': str(path), 'gt_label': 3}
    images = make()._calibration
    monkeypatch.setattr(
        type(images._loader.dataset), 'get_data_info', lambda *_: info, raising=False
    )
    keys = [images._key({})]
    assert images._key({}) == keys[0]
    # As large as before, a second later.
    os.utime(path, ns=(path.stat().st_mtime_ns + 10**9,) * 2)
    keys.append(images._key({}))
    for value in (0, 1):
        info['img'] = np.full((2, 2), value, np.uint8)
        keys.append(images._key({}))
    assert len({*keys}) == 4


@pytest.mark.parametrize('cache', ['ram', 'True', 'False', None, 1, []])
def test_another_cache_is_refused(cache, make_evaluator):
    with pytest.raises(UsageError, match=r'^cache=.* is not one of True, False, disk$'):
        make_evaluator[0](cache=cache)


@pytest.mark.parametrize('folder', [5, None, b'images', 'a\0b'])
def test_a_cache_dir_that_is_no_path_is_refused(folder, make_evaluator):
    with pytest.raises(UsageError, match=r'^cache_dir=.* must be a path$'):
        make_evaluator[0](cache_dir=folder)


@pytest.mark.parametrize('settings', [dict(cache=False), dict(cache='disk', cache_bytes=0)])
def test_without_a_cache_workers_live_on(settings, make_evaluator, search_config, tmp_path):
    make, _ = make_evaluator
    for loader in ('test_dataloader', 'calibration_dataloader'):
        search_config[loader]['num_workers'] = 1
    arch = SearchSpace(**SPACE).smallest()
    evaluator = make(**settings, cache_dir=tmp_path)
    score = evaluator.evaluate(arch)
    (worker,) = evaluator._images._reader._iterator._workers
    # An evaluation that ends early leaves batches behind.
    assert evaluator.evaluate(arch, Fraction(1)) is None
    assert evaluator.evaluate(arch) == score == make().evaluate(arch)
    assert evaluator._images._reader._iterator._workers == [worker] and worker.is_alive()


def test_too_little_shared_memory_is_no_failure_of_the_candidate(make_evaluator, monkeypatch):
    def full(*_args, **_settings):
        # As torch says it of a worker's error, on several lines.
        yield from ()
        raise RuntimeError('Caught\nunable to allocate shared memory(shm) for file </torch_1>')

    make, _ = make_evaluator
    monkeypatch.setattr('mmscale.engine.images.DataLoader', full)
    with pytest.raises(OSError, match=r'^num_workers=0: the shared memory .* is too small'):
        make().evaluate(SearchSpace(**SPACE).smallest())


def test_prepared_images_are_read_once(make_evaluator):
    make, _ = make_evaluator
    pixels = 20 * 20
    # 48 scoring images and 24 to calibrate, one channel of floats, and a label each.
    assert make().prepare(20) == 72 * (4 * pixels + 8)
    assert make(bn='batch').prepare(20) == 48 * (4 * pixels + 8)
    assert make(cache=False).prepare(20) == 0


def test_classes_in_a_config_are_known_by_name():
    loader = dict(
        batch_size=8, sampler=dict(type=DefaultSampler), collate_fn=dict(type=default_collate)
    )
    assert content_of(loader) == dict(
        batch_size=8,
        sampler=dict(type='mmengine.dataset.sampler.DefaultSampler'),
        collate_fn=dict(type='mmengine.dataset.utils.default_collate'),
    )
