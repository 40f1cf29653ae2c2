import multiprocessing

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from mmscale.datasets.composer import SPLITS, Composition, compose_image, load_originals

CROWD = Composition(canvas=128, digits=(1, 8), fragments=(10, 30))
# Nothing but digits: the ink in the image is the ink in the boxes.
CLEAN = Composition(
    canvas=160, digits=(1, 8), fragments=(0, 0), background=(0, 0), noise=(0, 0), contrast=(1, 1)
)


def test_splits_share_no_original_and_hold_all_of_them():
    ids = [set(load_originals(split).ids.tolist()) for split in SPLITS]
    assert sum(map(len, ids)) == len(set.union(*ids)) == 1797
    for split in SPLITS:
        originals = load_originals(split)
        assert np.bincount(originals.labels).min() >= 34
        np.testing.assert_array_equal(originals.labels, load_digits().target[originals.ids])


def test_no_two_originals_are_the_same_image():
    images = load_digits().images.reshape(1797, -1)
    assert len(np.unique(images, axis=0)) == 1797


@pytest.mark.parametrize('split', SPLITS)
def test_composites_use_only_originals_of_their_split_and_none_twice(split):
    own = set(load_originals(split).ids.tolist())
    labels = load_digits().target
    used = set()
    for index in range(200):
        composite = compose_image(3, split, index, CROWD)
        ids = [*composite.digit_ids.tolist(), *composite.fragment_ids.tolist()]
        assert len(ids) == len(set(ids))
        assert 10 <= len(composite.fragment_ids) <= 30
        np.testing.assert_array_equal(composite.labels, labels[composite.digit_ids])
        used.update(ids)
    assert used <= own
    assert len(used) > 0.9 * len(own)


def test_an_image_depends_on_seed_split_and_index_alone():
    backwards = {i: compose_image(0, 'train', i) for i in reversed(range(20))}
    with multiprocessing.get_context('fork').Pool(1) as pool:
        elsewhere = pool.starmap(compose_image, [(0, 'train', i) for i in range(20)])
        # Not by a signal, which an earlier test may have taken over.
        pool.close()
        pool.join()
    for index, other in enumerate(elsewhere):
        for one, two in zip(backwards[index], other, strict=True):
            np.testing.assert_array_equal(one, two)


def test_seed_split_and_index_each_change_the_image():
    keys = [(seed, split, index) for seed in (0, 1) for split in SPLITS for index in (0, 1)]
    images = {compose_image(*key).image.tobytes() for key in keys}
    assert len(images) == len(keys)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**40),
    digits=st.integers(1, 8),
    size=st.tuples(st.floats(8, 30), st.floats(8, 30)).map(sorted),
)
def test_boxes_are_inside_and_as_many_as_asked_for(seed, digits, size):
    composition = Composition(canvas=64, digits=(digits, digits), digit_size=size)
    composite = compose_image(seed, 'search', 0, composition)
    assert composite.image.shape == (64, 64)
    assert composite.image.dtype == np.uint8
    assert composite.labels.shape == (digits,)
    assert composite.boxes.shape == (digits, 4)
    assert (composite.boxes >= 0).all()
    assert (composite.boxes <= 64).all()
    extents = composite.boxes[:, 2:] - composite.boxes[:, :2]
    assert (extents.max(axis=1) >= 0.7 * size[0]).all()
    assert (extents.max(axis=1) <= 1.6 * size[1] + 2).all()


def test_boxes_are_tight_around_ink_and_hold_all_of_it():
    counts = set()
    for index in range(100):
        composite = compose_image(0, 'train', index, CLEAN)
        counts.add(len(composite.labels))
        ink = composite.image >= 64
        outside = ink.copy()
        for x1, y1, x2, y2 in composite.boxes.astype(int).tolist():
            inside = ink[y1:y2, x1:x2]
            for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
                assert edge.any()
            outside[y1:y2, x1:x2] = False
        assert not outside.any()
    assert counts == set(range(1, 9))


def test_digits_keep_apart_while_there_is_room():
    for index in range(50):
        boxes = compose_image(0, 'train', index, CLEAN).boxes
        shared = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - np.maximum(
            boxes[:, None, :2], boxes[None, :, :2]
        )
        area = np.maximum(shared, 0).prod(axis=2)
        assert area.sum() == np.diag(area).sum()


def normalized(image):
    """The ink's bounding box as a vector of 256 elements, mean zero and length one."""
    x, y, width, height = cv2.boundingRect((image >= 64).view(np.uint8))
    vector = cv2.resize(image[y : y + height, x : x + width], (16, 16)).ravel().astype(float)
    vector -= vector.mean()
    return vector / np.linalg.norm(vector)


def test_the_labelled_digit_is_the_original_it_names():
    upright = Composition(
        digit_size=(32, 32), rotation=0, shear=0, fragments=(0, 0), contrast=(1, 1),
        background=(0, 0), noise=(0, 0),
    )  # fmt: skip
    originals = load_originals('test')
    candidates = np.stack([normalized(glyph) for glyph in originals.glyphs])
    for index in range(50):
        composite = compose_image(0, 'test', index, upright)
        left, top, right, bottom = composite.boxes[0].astype(int)
        crop = normalized(composite.image[top:bottom, left:right])
        [nearest] = originals.ids[[np.argmax(candidates @ crop)]]
        assert nearest == composite.digit_ids[0]


def test_an_impossible_composition_is_refused():
    for fields, message in (
        ({'digits': (0, 1)}, r'digits=\(0, 1\)'),
        ({'digits': (3, 2)}, r'digits=\(3, 2\)'),
        ({'fragments': (0, 1000)}, r'fragments=\(0, 1000\)'),
        ({'digit_size': (4, 8)}, r'digit_size=\(4, 8\)'),
        ({'contrast': (0.5, 1.5)}, r'contrast=\(0.5, 1.5\)'),
        ({'rotation': 90}, 'rotation=90'),
        ({'canvas': 32}, 'canvas=32 is too small .* at least'),
    ):
        with pytest.raises(ValueError, match=message):
            Composition(**fields)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="split='val' is unknown; allowed are"):
        compose_image(0, 'val', 0)
    with pytest.raises(ValueError, match='seed=-1'):
        compose_image(-1, 'train', 0)
