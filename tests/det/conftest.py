"""Tests of detection need mmdet and mmcv with compiled ops: without them they fail."""

import json

import numpy as np
import pytest

try:
    import mmcv.ops  # noqa: F401
    import mmdet.models  # noqa: F401
except ImportError as error:
    raise pytest.UsageError(
        f'tests/det needs mmdet and mmcv with compiled ops ({error}): make test-detection'
    ) from error

import cv2
from mmdet.visualization import DetLocalVisualizer


@pytest.fixture(autouse=True)
def own_visualizer():
    """mmdet's has one name in all configs: a later run would write into an earlier one's."""
    DetLocalVisualizer._instance_dict.clear()


@pytest.fixture(scope='session')
def coco(tmp_path_factory):
    """A data set in COCO's format: four images of 64 x 64 with a bright box of class 0 or 1."""
    folder = tmp_path_factory.mktemp('coco')
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(4):
        x, y = (int(start) for start in rng.integers(0, 20, 2))
        picture = rng.integers(0, 60, (64, 64, 3), dtype=np.uint8)
        picture[y : y + 40, x : x + 36, number % 2] = 250
        cv2.imwrite(str(folder / f'{number}.png'), picture)
        images.append(dict(id=number, file_name=f'{number}.png', width=64, height=64))
        box = dict(bbox=[x, y, 36, 40], area=36 * 40, category_id=number % 2 + 1, iscrowd=0)
        annotations.append(dict(id=number + 1, image_id=number, **box))
    content = dict(
        images=images,
        annotations=annotations,
        categories=[dict(id=1, name='blue'), dict(id=2, name='green')],
    )
    (folder / 'annotations.json').write_text(json.dumps(content))
    return folder
