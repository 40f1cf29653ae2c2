import logging
import multiprocessing

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from mmpretrain.registry import DATASETS as MMPRETRAIN_DATASETS

from mmscale.datasets import ClutteredDigits, compose_image


def make(root, **kwargs):
    return ClutteredDigits(**{'split': 'search', 'num_images': 12, 'data_root': root, **kwargs})


@pytest.fixture
def warnings(monkeypatch):
    """Messages that building a dataset logs as warnings."""
    messages = []
    monkeypatch.setattr(
        'mmscale.datasets.cluttered_digits.print_log',
        lambda message, logger, level: messages.append((level, message)),
    )
    return messages


def test_items_are_the_composed_images(tmp_path):
    dataset = make(tmp_path)
    assert len(dataset) == 12
    assert dataset.metainfo['classes'] == tuple('0123456789')
    for index in (0, 7, 11):
        composite = compose_image(0, 'search', index)
        item = dataset[index]
        assert set(item) == {'img', 'img_shape', 'ori_shape', 'gt_label', 'sample_idx'}
        np.testing.assert_array_equal(item['img'], composite.image)
        assert item['img_shape'] == item['ori_shape'] == (48, 48)
        assert item['gt_label'] == composite.labels[0]
        assert item['sample_idx'] == index


def test_defaults_are_the_documented_counts(tmp_path):
    counts = [
        ClutteredDigits(split, data_root=tmp_path, lazy_init=True).source.num_images
        for split in ('train', 'search', 'test')
    ]
    assert counts == [20_000, 3_000, 4_000]


def test_an_item_may_be_changed_in_place(tmp_path):
    dataset = make(tmp_path)
    before = dataset[0]['img'].copy()
    dataset[0]['img'][:] = 0
    np.testing.assert_array_equal(dataset[0]['img'], before)


def test_fewer_images_are_a_prefix_and_indices_select(tmp_path):
    few, many = make(tmp_path, num_images=5), make(tmp_path)
    np.testing.assert_array_equal(few.images, many.images[:5])
    some = make(tmp_path, indices=[3, 1])
    np.testing.assert_array_equal(some[0]['img'], many[3]['img'])
    assert some[1]['gt_label'] == many[1]['gt_label']


def test_seed_changes_the_images(tmp_path):
    assert not np.array_equal(make(tmp_path).images, make(tmp_path, seed=1).images)
    assert len(list(tmp_path.iterdir())) == 2


def test_cache_is_read_and_when_deleted_rebuilt_equal(tmp_path, monkeypatch, warnings):
    first = make(tmp_path)
    content = first.cache_file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(ClutteredDigits, '_compose', lambda self: pytest.fail('composed again'))
        np.testing.assert_array_equal(make(tmp_path).images, first.images)
    first.cache_file.unlink()
    again = make(tmp_path)
    np.testing.assert_array_equal(again.images, first.images)
    assert again.get_gt_labels().tolist() == first.get_gt_labels().tolist()
    assert again.cache_file.read_bytes()[:1000] == content[:1000]
    assert warnings == []


def test_a_damaged_cache_is_rebuilt_with_a_warning(tmp_path, warnings):
    first = make(tmp_path)
    content = first.cache_file.read_bytes()

    def flipped(position, bits):
        return content[:position] + bytes([content[position] ^ bits]) + content[position + 1 :]

    ends = (-184 % len(content), -6 % len(content))
    damaged = [content[:keep] for keep in (0, 100, -1)]
    damaged += [flipped(position, 0x21) for position in (*ends, 60, 110)]
    damaged.append(flipped(len(content) // 2, 1))
    for number, wrong in enumerate(damaged, start=1):
        first.cache_file.write_bytes(wrong)
        np.testing.assert_array_equal(make(tmp_path).images, first.images)
        assert len(warnings) == number
        level, message = warnings[-1]
        assert level == logging.WARNING
        assert str(first.cache_file) in message and 'damaged' in message
    assert 'CRC' in message
    make(tmp_path)
    assert len(warnings) == len(damaged)


def test_a_foreign_cache_under_the_right_name_is_rebuilt(tmp_path, warnings):
    first, other = make(tmp_path), make(tmp_path, seed=1)
    other.cache_file.replace(first.cache_file)
    np.testing.assert_array_equal(make(tmp_path).images, first.images)
    assert 'other settings' in warnings[0][1]


def test_a_cache_of_another_composer_is_rebuilt(tmp_path, warnings):
    first = make(tmp_path)
    with np.load(first.cache_file) as cache:
        arrays = dict(cache)
    arrays['images'] = arrays['images'] ^ 1
    np.savez(first.cache_file, **arrays)
    np.testing.assert_array_equal(make(tmp_path).images, first.images)
    assert 'is not what the composer makes now' in warnings[0][1]


def build_after(barrier, root, results):
    barrier.wait()
    dataset = make(root, num_images=60)
    results.put((dataset.images.copy(), dataset.get_gt_labels()))


def test_two_processes_build_at_once(tmp_path):
    context = multiprocessing.get_context('fork')
    barrier, results = context.Barrier(2), context.Queue()
    processes = [
        context.Process(target=build_after, args=(barrier, tmp_path, results)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    built = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    alone = make(tmp_path / 'alone', num_images=60)
    for images, labels in built:
        np.testing.assert_array_equal(images, alone.images)
        np.testing.assert_array_equal(labels, alone.get_gt_labels())
    files = [path.name for path in tmp_path.iterdir() if path.is_file()]
    assert files == [alone.cache_file.name]


def test_an_interrupted_write_leaves_nothing_after(tmp_path, monkeypatch):
    def interrupted(file, **arrays):
        file.write(b'part')
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, 'savez', interrupted)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_stock_mmpretrain_builds_it_and_packs_one_channel(tmp_path):
    init_default_scope('mmpretrain')
    dataset = MMPRETRAIN_DATASETS.build(
        {
            'type': 'mmscale.ClutteredDigits',
            'split': 'test',
            'num_images': 10,
            'data_root': str(tmp_path),
            'pipeline': [
                # Augmentation for digits: a shift by a few pixels, and no flips.
                {'type': 'RandomCrop', 'crop_size': 48, 'padding': 4, 'padding_mode': 'reflect'},
                {'type': 'mmscale.ResizeToResolution', 'resolution': 24},
                {'type': 'PackInputs'},
            ],
        }
    )
    packed = dataset[3]
    assert packed['inputs'].shape == (1, 24, 24)
    assert packed['inputs'].dtype == torch.uint8
    assert packed['data_samples'].gt_label.item() == compose_image(0, 'test', 3).labels[0]
    assert packed['data_samples'].sample_idx == 3


def test_bad_arguments_are_refused_before_any_work(tmp_path):
    for kwargs, message in (
        ({'split': 'val'}, "split='val' is not one of train, search, test"),
        ({'num_images': 0}, 'num_images=0 must be'),
        ({'num_images': 2.5}, 'num_images=2.5 must be'),
        ({'seed': -1}, 'seed=-1 must be'),
        ({'composition': {'digits': (1, 3)}}, 'one label'),
    ):
        with pytest.raises(ValueError, match=message):
            make(tmp_path, **kwargs)
        assert list(tmp_path.iterdir()) == []


def test_unknown_keys_are_refused(tmp_path):
    with pytest.raises(TypeError, match='num_image'):
        make(tmp_path, num_image=3)
    with pytest.raises(TypeError, match='canvass'):
        make(tmp_path, composition={'canvass': 64})
