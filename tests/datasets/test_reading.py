"""Images and annotations that cannot be read: one line that names the file, from any process."""

import gc
import io
import re
import struct
import zlib

import cv2
import numpy as np
import pytest
from mmengine.registry import init_default_scope
from PIL import Image

from mmscale.datasets import Draw, accept_draws, build_dataloader
from mmscale.errors import UsageError, one_line

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)


def encoded(suffix, pixels=PIXELS):
    return cv2.imencode(suffix, pixels)[1].tobytes()


def by_pillow(kind, mode='RGB', **settings):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(buffer, kind, **settings)
    return buffer.getvalue()


def png_of(width, height):
    """A PNG whose header claims a size, without pixels."""

    def chunk(kind, data):
        checked = kind + data
        return struct.pack('>I', len(data)) + checked + struct.pack('>I', zlib.crc32(checked))

    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    return (
        b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', b'') + chunk(b'IEND', b'')
    )


@pytest.fixture
def folder(tmp_path):
    """A folder of two classes with two images each, as CustomDataset reads it."""
    for name in ('a', 'b'):
        (tmp_path / name).mkdir()
        for i in range(2):
            (tmp_path / name / f'{i}.jpg').write_bytes(encoded('.jpg'))
    return tmp_path


def loader_of(folder, wrap=None, num_workers=0, collate='pseudo_collate', **settings):
    init_default_scope('mmpretrain')
    dataset = {
        'type': 'CustomDataset',
        'data_root': str(folder),
        'pipeline': [
            {'type': 'LoadImageFromFile'},
            {'type': 'mmscale.ResizeToResolution', 'resolution': 16},
            {'type': 'PackInputs'},
        ],
        **settings,
    }
    loader = build_dataloader(
        {
            'dataset': dataset if wrap is None else wrap(dataset),
            'batch_size': 2,
            'num_workers': num_workers,
            'sampler': {'type': 'DefaultSampler', 'shuffle': False},
            'collate_fn': {'type': collate},
        }
    )
    accept_draws(loader.dataset)
    return loader


def refusal(call, kind=UsageError):
    """The line of an error."""
    try:
        call()
    except kind as error:
        line = one_line(error)
    else:
        pytest.fail('nothing was refused')
    assert '\n' not in line
    return line


BAD = {
    'empty': b'',
    'text': b'no image\n',
    'half a JPEG': encoded('.jpg')[:300],
    'half a PNG': encoded('.png')[:300],
    'a bomb': png_of(60_000, 60_000),
}


REDUCED = [
    {'type': 'mmscale.LoadRandomResizedCropToResolution', 'resolution': 16},
    {'type': 'PackInputs'},
]


@pytest.mark.parametrize('settings', [{}, {'pipeline': REDUCED}], ids=['whole', 'reduced'])
@pytest.mark.parametrize('content', BAD.values(), ids=BAD)
def test_an_image_that_cannot_be_read_is_named(folder, content, settings, monkeypatch):
    monkeypatch.setenv('OPENCV_IO_MAX_IMAGE_PIXELS', '1000')
    path = folder / 'b' / '0.jpg'
    path.write_bytes(content)
    dataset = loader_of(folder, **settings).dataset
    for index in (2, Draw(2, 16, 0)):
        message = refusal(lambda index=index: dataset.__getitems__([0, index]))
        assert f'{path} ({len(content)} bytes), item 2 of CustomDataset' in message
        assert 'at most 1000 pixels (OPENCV_IO_MAX_IMAGE_PIXELS)' in message


def test_a_missing_image_is_named(folder):
    loader = loader_of(folder)
    (folder / 'a' / '1.jpg').unlink()
    assert 'a/1.jpg (no file), item 1 of CustomDataset' in refusal(lambda: list(loader))


@pytest.mark.parametrize(
    'content',
    [
        by_pillow('GIF', save_all=True, append_images=[Image.new('RGB', (32, 24))]),
        by_pillow('JPEG', 'CMYK'),
        by_pillow('PNG', 'L'),
        by_pillow('PNG', 'P'),
        by_pillow('TIFF'),
        encoded('.png', PIXELS.astype(np.uint16) * 256),
        encoded('.png', np.dstack([PIXELS, PIXELS[..., :1]])),
    ],
    ids=['animation', 'CMYK', 'gray', 'palette', 'TIFF', '16 bit', 'transparency'],
)
def test_other_images_become_eight_bit_colour(folder, content):
    (folder / 'a' / '0.jpg').write_bytes(content)
    image = loader_of(folder).dataset[0]['inputs']
    assert image.shape == (3, 16, 16) and image.max() > 99 and image.dtype.itemsize == 1


def test_an_error_crosses_processes(folder, monkeypatch):
    # What a loader that failed waits for its processes, once it is collected.
    monkeypatch.setattr('torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL', 0.1)
    path = folder / 'a' / '1.jpg'
    path.write_bytes(b'')
    here = refusal(lambda: list(loader_of(folder)))
    assert refusal(lambda: list(loader_of(folder, num_workers=1))) == here
    path.write_bytes(encoded('.jpg'))

    def scattered(items):
        raise RuntimeError('first line\n  second: line')

    message = refusal(
        lambda: list(loader_of(folder, num_workers=1, collate=scattered)), RuntimeError
    )
    assert message == 'RuntimeError: first line second: line'
    gc.collect()


WRAPPERS = {
    'ConcatDataset': lambda one: {'type': 'ConcatDataset', 'datasets': [one, one]},
    'RepeatDataset': lambda one: {'type': 'RepeatDataset', 'dataset': one, 'times': 2},
    'ClassBalancedDataset': lambda one: {
        'type': 'ClassBalancedDataset', 'dataset': one, 'oversample_thr': 0.1
    },
    'KFoldDataset': lambda one: {'type': 'KFoldDataset', 'dataset': one, 'num_splits': 2},
    'SeededDataset': lambda one: {'type': 'mmscale.SeededDataset', 'dataset': one},
}  # fmt: skip


@pytest.mark.parametrize('wrap', WRAPPERS.values(), ids=WRAPPERS)
def test_the_file_is_named_through_wrappers(folder, wrap):
    for path in folder.glob('*/*.jpg'):
        path.write_bytes(b'')
    message = refusal(lambda: list(loader_of(folder, wrap)))
    assert re.match(rf'{folder}/[ab]/[01]\.jpg \(0 bytes\), item \d of \w+Dataset, ', message)


def test_a_transform_that_fails_names_the_image(folder):
    steps = [{'type': 'LoadImageFromFile'}, {'type': 'ResizeEdge', 'scale': 0}]
    message = refusal(lambda: list(loader_of(folder, pipeline=steps)))
    assert f'{folder}/a/0.jpg, item 0 of CustomDataset: ' in message


@pytest.mark.parametrize('content', [b'a/0.jpg x\n', b'a/0.jpg\n', b'\xff\xfe', b''])
def test_annotations_that_cannot_be_read_are_named(folder, content):
    (folder / 'list.txt').write_bytes(content)
    message = refusal(lambda: loader_of(folder, ann_file='list.txt'))
    assert f'{folder}/list.txt: CustomDataset cannot read it: ' in message


def test_damaged_bytes_are_an_image_or_an_error_that_names_the_file(folder):
    rng = np.random.default_rng(0)
    path = folder / 'a' / '0.jpg'
    dataset = loader_of(folder).dataset
    refused = 0
    for content in [encoded('.jpg'), encoded('.png'), by_pillow('GIF')] * 40:
        data = bytearray(content)
        for place in rng.integers(len(data), size=rng.integers(1, 9)):
            data[place] = rng.integers(256)
        path.write_bytes(data[: rng.integers(len(data)) if rng.random() < 0.5 else None])
        try:
            assert dataset.__getitems__([0])[0]['inputs'].shape == (3, 16, 16)
        except UsageError as error:
            refused += 1
            assert str(error).startswith(f'{path} ') and '\n' not in str(error)
    assert 20 < refused < 120


def test_what_is_no_fault_of_a_file_names_none(folder):
    (folder / 'list.txt').write_bytes(b'a/0.jpg 0\n')
    for mistake in ({'pipeline': [{'type': 'Nonsense'}]}, {'nonsense': 1}):
        message = refusal(
            lambda mistake=mistake: loader_of(folder, ann_file='list.txt', **mistake),
            (KeyError, TypeError),
        )
        assert 'list.txt' not in message and 'onsense' in message


def test_a_folder_without_images_is_named(folder):
    (folder / 'none' / 'class').mkdir(parents=True)
    assert f'{folder}/none: ' in refusal(lambda: loader_of(folder / 'none'))
