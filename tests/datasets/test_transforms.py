import struct
from pathlib import Path

import cv2
import mmcv
import numpy as np
import pytest
from mmcv.transforms import CenterCrop, LoadImageFromFile
from mmpretrain.datasets.transforms import PackInputs, RandomResizedCrop, ResizeEdge
from PIL import ExifTags, Image

from mmscale.datasets import (
    CenterCropToResolution,
    LoadRandomResizedCropToResolution,
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


def photograph(height, width):
    """Smooth shapes, as photographs have them, shape (height, width, 3)."""
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    waves = [np.sin(9 * rows + 4 * i) + np.cos(7 * columns * (i + 1)) for i in range(3)]
    return np.uint8(127 + 60 * np.stack(waves, axis=2))


def written(folder, image, kind='JPEG', orientation=None):
    """A file of an image that is given blue first."""
    path, exif = folder / 'image', Image.Exif()
    if orientation is not None:
        exif[ExifTags.Base.Orientation] = orientation
    settings = dict(quality=95) if kind == 'JPEG' else {}
    Image.fromarray(image[..., ::-1]).save(path, kind, exif=exif, **settings)
    return {'img_path': str(path), 'resolution': 40}


def both(given, **settings):
    """What the two stock transforms make of a file, and what the one of ours does."""
    outputs = []
    for pipeline in (
        [LoadImageFromFile(), RandomResizedCropToResolution(**settings)],
        [LoadRandomResizedCropToResolution(**settings)],
    ):
        np.random.seed(3)
        found = dict(given)
        for transform in pipeline:
            found = transform(found)
        # The same random numbers were taken.
        outputs.append((found, np.random.random()))
    (expected, drawn), (found, drawn_too) = outputs
    assert drawn == drawn_too and expected.keys() == found.keys()
    assert expected['ori_shape'] == found['ori_shape']
    assert expected['img_shape'] == found['img_shape'] == found['img'].shape
    return expected['img'].astype(float), found['img'].astype(float)


@pytest.fixture
def decoded(monkeypatch):
    """The shape of every image that OpenCV decodes, in their order."""
    shapes, decode = [], cv2.imdecode

    def spy(*arguments):
        shapes.append((image := decode(*arguments)).shape[:2])
        return image

    monkeypatch.setattr(cv2, 'imdecode', spy)
    return shapes


@pytest.mark.parametrize('orientation', [None, 1, 3, 6, 8])
@pytest.mark.parametrize(('height', 'width'), [(61, 90), (90, 61), (40, 40), (79, 79)])
def test_what_is_not_decoded_smaller_is_the_stock_transforms(tmp_path, height, width, orientation):
    given = written(tmp_path, photograph(height, width), orientation=orientation)
    for settings in ({}, {'backend': 'pillow', 'interpolation': 'bicubic'}):
        expected, found = both(given, **settings)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('orientation', [None, 6])
@pytest.mark.parametrize(
    ('resolution', 'share'), [(101, 1), (100, 2), (51, 2), (50, 4), (25, 8), (3, 8)]
)
def test_a_jpeg_is_decoded_as_small_as_the_crop_allows(
    tmp_path, decoded, resolution, share, orientation
):
    given = written(tmp_path, photograph(200, 301), orientation=orientation)
    given['resolution'] = resolution
    # The whole image: 200 px are the short side of every crop.
    settings = dict(crop_ratio_range=(1, 1), aspect_ratio_range=(1e-3, 1e3), max_attempts=0)
    expected, found = both(given, **settings)
    whole, reduced = decoded
    assert reduced == tuple(-(-side // share) for side in whole)
    assert np.abs(found - expected).mean() < (1e-9 if share == 1 else 6)
    assert (found != expected).any() == (share > 1)


def first_segment(path, payload):
    """Puts a segment of metadata before those that a JPEG has."""
    content = path.read_bytes()
    segment = b'\xff\xe1' + (len(payload) + 2).to_bytes(2, 'big') + payload
    path.write_bytes(content[:2] + segment + content[2:])


# Orientation 6, which lays an image on its side, as either PIL or OpenCV understands it.
ODD_METADATA = {
    'XMP': b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    b'</x:xmpmeta>',
    'LONG': b'Exif\0\0MM' + struct.pack('>HIHHHIII', 42, 8, 1, 0x112, 4, 1, 6, 0),
    'BYTE': b'Exif\0\0II' + struct.pack('<HIHHHIII', 42, 8, 1, 0x112, 1, 1, 6, 0),
    'damaged': b'Exif\0\0XX' + struct.pack('>HIHHHIII', 42, 8, 1, 0x112, 3, 1, 6 << 16, 0),
}


@pytest.mark.parametrize('resolution', [10, 150])
@pytest.mark.parametrize('metadata', ODD_METADATA.values(), ids=ODD_METADATA)
def test_an_image_lies_as_opencv_turns_it(tmp_path, metadata, resolution):
    given = written(tmp_path, photograph(200, 301))
    first_segment(Path(given['img_path']), metadata)
    expected, found = both({**given, 'resolution': resolution}, crop_ratio_range=(0.5, 1.0))
    assert np.abs(found - expected).mean() < 6


def test_crops_are_where_they_were(tmp_path):
    image = np.zeros((320, 480, 3), np.uint8)
    image[:, 237:] = 255  # an edge, a small shift of which is seen
    expected, found = both(written(tmp_path, image), crop_ratio_range=(0.5, 1.0))
    edges = [np.argmax(one.mean(axis=(0, 2)) > 127) for one in (expected, found)]
    assert 0 < edges[0] < 40 and abs(edges[0] - edges[1]) <= 1


def test_other_images_are_decoded_once_and_whole(tmp_path, decoded):
    given = written(tmp_path, photograph(200, 301), 'PNG')
    expected, found = both(given)
    np.testing.assert_array_equal(found, expected)
    assert decoded == [(200, 301)] * 2


@pytest.mark.parametrize('content', [b'', b'no image', None], ids=['empty', 'text', 'cut off'])
def test_a_file_that_is_no_image_is_refused(tmp_path, content):
    given = written(tmp_path, photograph(200, 301))
    path = Path(given['img_path'])
    path.write_bytes(path.read_bytes()[:200] if content is None else content)
    with pytest.raises((ValueError, cv2.error)):
        LoadRandomResizedCropToResolution()(given)
    assert 'img' not in given  # what errors go by that name the file
