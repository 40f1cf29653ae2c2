"""The fingerprint of an evaluator covers all images, wherever they are kept and lie."""

import shutil
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from small_setups import DEFAULT_SAMPLER, SPACE

from mmscale.arch import SearchSpace
from mmscale.cost import count
from mmscale.datasets import ClutteredDigits
from mmscale.engine import content
from mmscale.errors import UsageError
from mmscale.search import Archive, Score
from mmscale.search.entry import Entry

KEPT = [dict(cache=True), dict(cache=False), dict(cache='disk')]


def append_one(directory, fingerprint):
    """Begins or goes on with an archive."""
    arch = SearchSpace(**SPACE).smallest()
    with Archive(directory, fingerprint) as archive:
        if arch not in archive:
            archive.append(Entry(arch, count(arch), Score(3, 48)))
        return len(archive)


@pytest.mark.parametrize('kept', KEPT, ids=['memory', 'nowhere', 'disk'])
def test_one_late_image_or_label_makes_another_fingerprint(
    kept, make_evaluator, monkeypatch, tmp_path
):
    make, _ = make_evaluator
    kept = dict(kept, cache_dir=tmp_path / 'images')
    monkeypatch.setattr(content, 'SHARD', 20)
    monkeypatch.setattr('mmscale.engine.image_store.SHARD', 20)
    before = make(**kept).fingerprint
    assert append_one(tmp_path / 'archive', before) == 1
    assert append_one(tmp_path / 'archive', make(**kept).fingerprint) == 1
    assert before == make().fingerprint
    info = ClutteredDigits.get_data_info

    def flipped(self, index):
        """Of the 48 scoring images one is another; in batches of 8 it is of the fifth."""
        item = info(self, index)
        if self.source.split == 'search' and index == 37:
            item['img'] = item['img'][:, ::-1].copy()
        return item

    def relabelled(self, index):
        item = info(self, index)
        if self.source.split == 'train' and index == 46:  # the last but one of those drawn
            item['gt_label'] = (item['gt_label'] + 1) % 10
        return item

    for change, key in ((flipped, 'images'), (relabelled, 'calibration')):
        monkeypatch.setattr(ClutteredDigits, 'get_data_info', change)
        after = make(**kept).fingerprint
        assert {k for k in before if before[k] != after[k]} == {key}
        with pytest.raises(UsageError, match=rf'its scores belong to another setting \({key}: '):
            append_one(tmp_path / 'archive', after)


def test_images_that_are_kept_are_decoded_once(make_evaluator, monkeypatch, tmp_path):
    make, _ = make_evaluator
    read = []
    info = ClutteredDigits.get_data_info

    def counted(self, index):
        read.append(index)
        return info(self, index)

    arch = SearchSpace(**SPACE).smallest()
    assert arch.resolution == SearchSpace(**SPACE).resolution
    for kept in (dict(cache=True), dict(cache='disk', cache_dir=tmp_path)):
        evaluator = make(**kept)
        with monkeypatch.context() as patch:
            patch.setattr(ClutteredDigits, 'get_data_info', counted)
            assert evaluator.fingerprint == evaluator.fingerprint
            evaluator.evaluate(arch)
        # The store looks at the first one twice, for its shape.
        assert len(read) == 48 + 24 + 2 * (kept['cache'] == 'disk')
        read.clear()


@pytest.fixture
def in_files(search_config, tmp_path):
    """Makes the data loaders read image files and an annotation file in a folder."""
    first = tmp_path / 'first'
    rng = np.random.default_rng(0)
    (first / 'images').mkdir(parents=True)
    lines = []
    for i in range(12):
        cv2.imwrite(str(first / f'images/{i}.png'), rng.integers(0, 255, (16, 16), np.uint8))
        lines.append(f'{i}.png {i % 10}')
    (first / 'labels.txt').write_text('\n'.join(lines))

    def use(folder, absolute=False):
        places = dict(data_root=str(folder), ann_file='labels.txt', data_prefix='images')
        if absolute:
            places = {k: f'{folder}/{v}' for k, v in places.items() if k != 'data_root'}
        for name in ('test_dataloader', 'calibration_dataloader'):
            search_config[name] = dict(
                batch_size=4,
                num_workers=0,
                sampler=DEFAULT_SAMPLER,
                collate_fn=dict(type='default_collate'),
                dataset=dict(
                    type='CustomDataset',
                    metainfo=dict(classes=list('0123456789')),
                    pipeline=[
                        dict(type='LoadImageFromFile', color_type='grayscale'),
                        dict(type='mmscale.GrayImage'),
                        dict(type='mmscale.ResizeToResolution'),
                        dict(type='PackInputs'),
                    ],
                    **places,
                ),
            )

    return first, use


def test_only_what_files_hold_counts(in_files, make_evaluator, tmp_path):
    folder, use = in_files
    make, _ = make_evaluator

    def fingerprint():
        return make(calibration_images=12, cache=False).fingerprint

    use(folder)
    before = fingerprint()
    assert str(tmp_path) not in str(before)
    second = tmp_path / 'second'
    shutil.copytree(folder, second)
    for absolute in (False, True):
        use(second, absolute)
        assert fingerprint() == before
    labels = (second / 'labels.txt').read_text()
    (second / 'labels.txt').write_text(labels.replace('9.png 9', '9.png 8'))
    changed = fingerprint()
    append_one(tmp_path / 'archive', before)
    with pytest.raises(UsageError, match='its scores belong to another setting'):
        append_one(tmp_path / 'archive', changed)
    (second / 'labels.txt').write_text(labels)
    assert fingerprint() == before
    pixels = cv2.imread(str(second / 'images/11.png'), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(second / 'images/11.png'), pixels[:, ::-1])
    assert fingerprint() not in (before, changed)


def test_annotations_of_wrapped_datasets_count_once(tmp_path):
    class Part:
        def __init__(self, path='', **inner):
            self.ann_file = str(path)
            vars(self).update(inner)

    def digest(dataset):
        return content.annotations_digest(dataset)

    for name in 'ab':
        (tmp_path / name).write_text(name)
    first, second = Part(tmp_path / 'a'), Part(tmp_path / 'b')
    both = digest(Part(datasets=[first, second]))
    assert digest(Part(dataset=Part(datasets=[first, second, first]))) == both
    assert len({both, digest(first), digest(second), digest(Part(tmp_path / 'none'))}) == 4
    (tmp_path / 'b').write_text('c')
    assert digest(Part(datasets=[first, second])) != both


def test_a_disk_cache_needs_to_know_what_images_are_made_of(make_evaluator, monkeypatch):
    make, _ = make_evaluator
    images = make()._images
    monkeypatch.setattr(images, '_loader', SimpleNamespace(dataset=[1, 2]))
    with pytest.raises(UsageError, match=r"^cache='disk' would not notice .* list has no get_"):
        images._key({})
