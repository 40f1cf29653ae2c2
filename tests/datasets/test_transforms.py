import mmcv
import numpy as np
import pytest
from mmcv.transforms import CenterCrop
from mmpretrain.datasets.transforms import PackInputs, RandomResizedCrop, ResizeEdge

from mmscale.datasets import (
    CenterCropToResolution,
    RandomResizedCropToResolution,
    ResizeToResolution,
)

ALL = (ResizeToResolution, RandomResizedCropToResolution, CenterCropToResolution)


def results(shape=(60, 80), **extra):
    img = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return {'img': img, 'img_shape': shape[:2], 'ori_shape': shape[:2], **extra}


@pytest.mark.parametrize('transform', ALL)
def test_the_results_resolution_wins_over_the_transforms_own(transform):
    for shape in ((60, 80), (80, 60), (48, 48), (60, 80, 3)):
        for own in (None, 20):
            out = transform(resolution=own)(results(shape, resolution=33))
            assert out['img'].shape == (33, 33, *shape[2:])
            assert out['img_shape'][:2] == (33, 33)
        fallback = transform(resolution=20)
        assert fallback(results(shape))['img'].shape[:2] == (20, 20)
        fallback.resolution = 25
        assert fallback(results(shape))['img'].shape[:2] == (25, 25)


@pytest.mark.parametrize('transform', ALL)
def test_gray_images_pack_to_one_channel(transform):
    packed = PackInputs()(transform()(results((48, 48), resolution=31, gt_label=4)))
    assert packed['inputs'].shape == (1, 31, 31)
    assert packed['data_samples'].img_shape == (31, 31)


def test_resize_is_mmcvs():
    for interpolation in ('nearest', 'bilinear', 'bicubic', 'area'):
        given = results()
        expected = mmcv.imresize(given['img'], (24, 24), interpolation=interpolation)
        out = ResizeToResolution(24, interpolation=interpolation)(given)
        np.testing.assert_array_equal(out['img'], expected)
        assert out['scale_factor'] == (24 / 80, 24 / 60)


@pytest.mark.parametrize('resolution', [17, 40, 64])
def test_random_crop_is_mmpretrains_at_every_resolution(resolution):
    np.random.seed(7)
    expected = RandomResizedCrop(resolution, crop_ratio_range=(0.2, 1.0))(results())['img']
    np.random.seed(7)
    ours = RandomResizedCropToResolution(crop_ratio_range=(0.2, 1.0))
    np.testing.assert_array_equal(ours(results(resolution=resolution))['img'], expected)


def test_center_crop_is_the_usual_evaluation():
    shape = (300, 400, 3)
    expected = CenterCrop(224)(ResizeEdge(256)(results(shape)))['img']
    np.testing.assert_array_equal(CenterCropToResolution(224)(results(shape))['img'], expected)
    whole = CenterCropToResolution(crop_ratio=1.0)(results((60, 60), resolution=60))['img']
    np.testing.assert_array_equal(whole, results((60, 60))['img'])


def test_center_crop_has_the_resolution_whatever_the_rounding():
    for resolution in (*range(1, 60), 256, 304, 354, 458, 533):
        out = CenterCropToResolution(crop_ratio=0.93)(results((61, 50), resolution=resolution))
        assert out['img'].shape == (resolution, resolution)


@pytest.mark.parametrize('transform', ALL)
def test_an_impossible_resolution_is_refused(transform):
    with pytest.raises(ValueError, match=f'{transform.__name__}: resolution=0 must be >= 1'):
        transform()(results(resolution=0))
    with pytest.raises(ValueError, match=f'{transform.__name__}: resolution=-3 must be >= 1'):
        transform(resolution=-3)


@pytest.mark.parametrize('transform', ALL)
def test_the_network_that_was_built_says_the_resolution_where_nobody_does(transform, monkeypatch):
    monkeypatch.setattr('mmscale.input_size._resolution', 36)
    built = transform()
    # Another network is built later: it is not the one that this pipeline was built for.
    monkeypatch.setattr('mmscale.input_size._resolution', 50)
    assert built(results())['img'].shape == (36, 36)
    built.resolution = 24
    assert built(results())['img'].shape == (24, 24)


@pytest.mark.parametrize('transform', ALL)
def test_a_tool_that_only_shows_images_sees_their_short_side(transform, monkeypatch):
    monkeypatch.setattr('mmscale.input_size._resolution', None)
    assert transform()(results((60, 80)))['img'].shape == (60, 60)


def test_a_crop_ratio_above_one_is_refused():
    with pytest.raises(ValueError, match='crop_ratio'):
        CenterCropToResolution(crop_ratio=1.1)
