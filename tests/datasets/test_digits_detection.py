import hashlib
import itertools
import json
import shutil

import cv2
import numpy as np
import pytest

from mmscale.datasets import DetectionFiles
from mmscale.datasets.composer import load_originals


def make(root, **kwargs):
    files = DetectionFiles(**{'split': 'search', 'num_images': 12, 'data_root': root, **kwargs})
    files.make()
    return files


def digests(files):
    return {
        path.relative_to(files.folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(files.folder.rglob('*'))
        if path.is_file()
    }


def read(files):
    return json.loads(files.annotation_file.read_text(encoding='utf-8'))


def test_files_are_a_function_of_the_settings(tmp_path):
    first, second = make(tmp_path / 'a'), make(tmp_path / 'b')
    assert first.folder.name == second.folder.name
    assert digests(first) == digests(second) and len(digests(first)) == 13
    other = make(tmp_path / 'a', seed=1)
    assert other.folder != first.folder and digests(other) != digests(first)
    # Fewer images are a prefix of more.
    fewer = digests(make(tmp_path / 'a', num_images=5))
    fewer.pop('annotations.json')
    assert fewer.items() <= digests(first).items()
    assert sorted(path.name for path in (tmp_path / 'b').iterdir()) == [second.folder.name]


def test_annotations_are_valid_coco(tmp_path):
    coco_tools = pytest.importorskip('pycocotools.coco')
    files = make(tmp_path, num_images=40)
    coco = coco_tools.COCO(str(files.annotation_file))
    assert len(coco.getImgIds()) == 40
    assert [category['name'] for category in coco.loadCats(coco.getCatIds())] == list('0123456789')
    counts = [len(coco.getAnnIds(image)) for image in coco.getImgIds()]
    assert min(counts) >= 1 and max(counts) <= 8 and len(set(counts)) > 4
    for annotation in coco.loadAnns(coco.getAnnIds()):
        x, y, width, height = annotation['bbox']
        assert 0 <= x < x + width <= 128 and 0 <= y < y + height <= 128
        assert annotation['area'] == width * height
    sides = [max(annotation['bbox'][2:]) for annotation in coco.anns.values()]
    assert min(sides) < 20 and max(sides) > 38
    assert all((files.image_folder / image['file_name']).is_file() for image in coco.imgs.values())


def test_boxes_are_tight_around_the_ink(tmp_path):
    # Without whatever else is on the canvas, the ink can be found again.
    alone = dict(digits=(1, 1), fragments=(0, 0), contrast=(1, 1), background=(0, 0), noise=(0, 0))
    files = make(tmp_path, composition=alone, num_images=30)
    coco = read(files)
    assert len(coco['annotations']) == 30
    for image, annotation in zip(coco['images'], coco['annotations'], strict=True):
        pixels = cv2.imread(str(files.image_folder / image['file_name']), cv2.IMREAD_UNCHANGED)
        ink = (pixels >= 64).view(np.uint8)
        assert annotation['image_id'] == image['id']
        assert annotation['bbox'] == list(cv2.boundingRect(ink))


def test_splits_share_no_original(tmp_path):
    used = {}
    for split in ('train', 'search', 'test'):
        coco = read(make(tmp_path, split=split, num_images=40))
        used[split] = {annotation['original'] for annotation in coco['annotations']}
        assert used[split] <= set(load_originals(split).ids.tolist())
    for one, other in itertools.combinations(used.values(), 2):
        assert not one & other


def test_damaged_files_are_made_anew_and_whole_ones_are_kept(tmp_path):
    files = make(tmp_path)
    wanted = digests(files)
    before = files.annotation_file.stat().st_mtime_ns
    files.make()
    assert files.annotation_file.stat().st_mtime_ns == before
    image = files.image_folder / '000011.png'
    damages = [
        lambda: files.annotation_file.write_text('{"info": '),
        lambda: files.annotation_file.write_text('[]'),
        lambda: files.annotation_file.unlink(),
        lambda: image.unlink(),
        lambda: image.write_bytes(image.read_bytes()[:40]),
        lambda: shutil.rmtree(files.image_folder),
    ]
    for damage in damages:
        damage()
        make(tmp_path)
        assert digests(files) == wanted
        assert [path.name for path in tmp_path.iterdir()] == [files.folder.name]


def test_wrong_settings_are_refused(tmp_path):
    for wrong, message in (
        (dict(split='val'), "split='val' is not one of"),
        (dict(num_images=0), 'num_images=0'),
        (dict(seed=-1), 'seed=-1'),
        (dict(composition=dict(digits=(2, 1))), 'digits'),
    ):
        with pytest.raises(ValueError, match=message):
            make(tmp_path, **wrong)
        assert not list(tmp_path.iterdir())
