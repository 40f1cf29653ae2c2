"""Images on the disk: what is written is read, whatever else lies there is made anew."""

import logging
import os
import signal
from collections import namedtuple

import numpy as np
import pytest
from mmengine.logging import MMLogger

from mmscale import files
from mmscale.engine import image_store
from mmscale.engine.image_store import HEADER, ImageStore, open_shard, write_shard
from mmscale.errors import UsageError
from mmscale.search.scoring import SingleProcess
from mmscale.untrusted import UntrustedFileError

COUNT = 11


@pytest.fixture(autouse=True)
def short_shards(monkeypatch):
    monkeypatch.setattr(image_store, 'SHARD', 4)


@pytest.fixture
def warnings(monkeypatch):
    """What was logged."""
    lines = []
    logger = MMLogger.get_current_instance()
    monkeypatch.setattr(
        logger, 'handle', lambda record: lines.append((record.levelno, record.getMessage()))
    )
    return lines


class Decoder:
    """Makes images of numbers, three at a time, and counts them."""

    def __init__(self, salt=0):
        self.decoded, self.salt = [], salt

    def __call__(self, resolution, positions):
        self.decoded += positions
        for start in range(0, len(positions), 3):
            some = np.array(positions[start : start + 3])
            shape = (len(some), 2, resolution, resolution)
            pixels = np.arange(np.prod(shape[1:])) + 7 * some[:, None] + resolution + self.salt
            yield (pixels % 251).astype(np.uint8).reshape(shape), some * 3


def make(folder, decode=None, most_bytes=2**30, key='k' * 64, count=COUNT):
    return ImageStore(folder, key, count, decode or Decoder(), most_bytes, 'test_dataloader')


def expected(resolution, start, stop):
    parts = list(zip(*Decoder()(resolution, list(range(start, stop))), strict=True))
    return [np.concatenate(part) for part in parts]


def check_all(store, resolution):
    for start, stop in [(0, COUNT), (0, 1), (3, 5), (4, 8), (2, 11), (10, 11)]:
        for found, due in zip(
            store.read(resolution, start, stop), expected(resolution, start, stop), strict=True
        ):
            np.testing.assert_array_equal(found, due)
            assert found.flags.writeable  # a copy: torch takes no other


def test_images_are_decoded_once_and_read_by_later_runs(tmp_path, warnings):
    decode = Decoder()
    store = make(tmp_path, decode)
    for resolution in (6, 5):
        store.make(resolution, SingleProcess())
        assert store.holds(resolution)
        check_all(store, resolution)
    # Each image once, and the first to see its shape.
    assert sorted(decode.decoded) == sorted(2 * [0, *range(COUNT)])
    again = Decoder()
    other = make(tmp_path, again)
    assert not other.holds(6)
    other.make(6, SingleProcess())
    check_all(other, 6)
    # The shape, and the first image of every file: they are compared.
    assert again.decoded == [0, 0, 4, 8]
    assert len(list(tmp_path.iterdir())) == 6
    assert not warnings


def test_ranks_make_a_share_each(tmp_path):
    Rank = namedtuple('Rank', 'rank world_size gather')
    texts = ['']

    def gather(items):
        # The second rank asks when the first has finished its share.
        return [texts, items]

    decoders = Decoder(), Decoder()
    first, second = (make(tmp_path, decode) for decode in decoders)
    shares = []

    def gather_first(items):
        shares.append(items)
        if len(shares) == 2:  # the barrier: the second makes its share meanwhile
            second.make(6, Rank(1, 2, gather))
        return [items, ['']]

    first.make(6, Rank(0, 2, gather_first))
    check_all(first, 6)
    check_all(second, 6)
    assert sorted({*decoders[0].decoded} - {4}) == [0, 1, 2, 3, 8, 9, 10]
    assert decoders[1].decoded[:5] == [0, 4, 5, 6, 7]


def truncate(path):
    os.truncate(path, path.stat().st_size - 1)


def empty(path):
    path.write_bytes(b'')


def flip(offset):
    def change(path):
        data = bytearray(path.read_bytes())
        data[offset] ^= 1
        path.write_bytes(data)

    return change


def replace_by_another_set(path):
    images, labels, _ = open_shard(path, 'k' * 64, (4, 2, 6, 6))
    write_shard(path, 'j' * 64, images.copy(), labels.copy())


def replace_by_other_pixels(path):
    images, labels, _ = open_shard(path, 'k' * 64, (4, 2, 6, 6))
    write_shard(path, 'k' * 64, images[::-1].copy(), labels.copy())


@pytest.mark.parametrize(
    ('damage', 'said'),
    [
        (truncate, 'bytes where'),
        (empty, 'it has 0 bytes'),
        (flip(3), 'made of something else'),
        (flip(HEADER - 1), 'checksum'),
        (flip(HEADER + 1), 'checksum'),
        (flip(-1), 'checksum'),
        (replace_by_another_set, 'made of something else'),
        (replace_by_other_pixels, 'not what the pipeline makes'),
    ],
)
def test_a_file_that_is_no_good_is_made_anew(damage, said, tmp_path, warnings):
    make(tmp_path).make(6, SingleProcess())
    path = sorted(tmp_path.iterdir())[1]
    whole = path.read_bytes()
    damage(path)
    decode = Decoder()
    store = make(tmp_path, decode)
    store.make(6, SingleProcess())
    check_all(store, 6)
    assert path.read_bytes() == whole
    assert {*decode.decoded} == {0, 4, 5, 6, 7, 8}
    ((level, line),) = warnings
    assert level == logging.WARNING and f'{path} is made anew: ' in line and said in line


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    with pytest.raises(UntrustedFileError, match='not a regular file'):
        open_shard(tmp_path / 'pipe', 'k' * 64, (4, 2, 6, 6))
    with pytest.raises(FileNotFoundError):
        open_shard(tmp_path / 'none', 'k' * 64, (4, 2, 6, 6))
    store = make(tmp_path)
    store._path(6, 0).symlink_to(tmp_path / 'elsewhere')
    with pytest.raises(UsageError, match='symbolic link'):
        store.make(6, SingleProcess())
    assert not (tmp_path / 'elsewhere').exists()


def test_resolutions_beyond_the_bound_are_not_kept(tmp_path, warnings):
    size = 3 * HEADER + COUNT * (8 + 2 * 6 * 6)
    store = make(tmp_path, most_bytes=size)
    store.make(6, SingleProcess())
    store.make(5, SingleProcess())
    assert store.holds(6) and not store.holds(5) and store.is_known(5)
    ((level, line),) = warnings
    assert level == logging.WARNING and 'images of 5 px are decoded for every network' in line
    assert f'cache_bytes={size:,}' in line and f'{size:,} are in use' in line
    assert 'files of data that is not used any more may be removed' in line
    store.make(5, SingleProcess())  # said once
    assert len(warnings) == 1
    # What is there takes nothing more.
    later = make(tmp_path, most_bytes=size)
    later.make(6, SingleProcess())
    assert later.holds(6)


def test_a_full_disk_is_no_end(tmp_path, warnings, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(image_store, 'SPARE_BYTES', 2**62)
        store = make(tmp_path)
        store.make(6, SingleProcess())
    assert not store.holds(6) and not list(tmp_path.iterdir())
    written = []

    def full(path, *rest):
        written.append(path)
        if len(written) == 2:
            raise OSError(28, f'cannot write {path}: No space left on device')
        write_shard(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(image_store, 'write_shard', full)
        store = make(tmp_path)
        store.make(6, SingleProcess())
    # Nothing is left of it, and other resolutions may fit.
    assert not store.holds(6) and not list(tmp_path.iterdir())
    store.make(5, SingleProcess())
    assert store.holds(5)
    assert len(warnings) == 2 and 'bytes, and' in warnings[0][1]
    assert 'No space left on device' in warnings[1][1]


def kill_while_writing(folder):
    """Leaves what a writer leaves that is killed before its first file has its name."""
    pid = os.fork()
    if not pid:
        try:
            files.sync_file = lambda _: os.kill(os.getpid(), signal.SIGKILL)
            make(folder).make(6, SingleProcess())
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL


def test_what_kills_have_left_is_counted_and_removed_in_an_hour(tmp_path, warnings):
    size = 3 * HEADER + COUNT * (8 + 2 * 6 * 6)
    kill_while_writing(tmp_path)
    (left,) = tmp_path.iterdir()
    late = make(tmp_path, most_bytes=size)
    late.make(6, SingleProcess())
    assert not late.holds(6) and f'{left.stat().st_size:,} are in use' in warnings[0][1]
    assert list(tmp_path.iterdir()) == [left]  # it may be another run's
    other = tmp_path / '.other.images.partial'
    other.touch()
    for path in left, other:
        os.utime(path, (1, 1))
    late = make(tmp_path, most_bytes=size)
    late.make(6, SingleProcess())
    assert late.holds(6) and not left.exists()
    assert other.exists()  # it is not ours


def test_what_cannot_be_written_over_is_no_end(tmp_path, warnings):
    make(tmp_path).make(6, SingleProcess())
    first, second, third = sorted(tmp_path.iterdir())
    first.unlink()
    second.unlink()
    second.mkdir()
    store = make(tmp_path)
    store.make(6, SingleProcess())
    assert not store.holds(6)
    # What this run wrote is gone, what another one wrote is not.
    assert sorted(tmp_path.iterdir()) == [second, third]
    assert 'are decoded for every network anew' in warnings[-1][1]
    assert 'Is a directory' in warnings[-1][1]


def test_what_cannot_be_removed_is_no_end(tmp_path, warnings, monkeypatch):
    def fail(path, missing_ok):
        raise PermissionError(13, f'Permission denied: {path}')

    def full(path, *rest):
        if path.name.endswith('0002.images'):
            monkeypatch.setattr('pathlib.Path.unlink', fail)
            raise OSError(28, 'No space left on device')
        write_shard(path, *rest)

    monkeypatch.setattr(image_store, 'write_shard', full)
    make(tmp_path).make(6, SingleProcess())
    ((_, line),) = warnings
    assert 'No space left on device' in line and 'Permission denied' in line


def test_a_file_that_is_removed_meanwhile_is_no_end(tmp_path, warnings, monkeypatch):
    def fleeting(path, *rest):
        write_shard(path, *rest)
        path.unlink()

    monkeypatch.setattr(image_store, 'write_shard', fleeting)
    store = make(tmp_path)
    store.make(6, SingleProcess())
    assert not store.holds(6) and 'No such file' in warnings[-1][1]


def test_a_folder_that_cannot_be_made_is_no_end(tmp_path, warnings):
    (tmp_path / 'file').write_text('')
    store = make(tmp_path / 'file' / 'images')
    store.make(6, SingleProcess())
    assert not store.holds(6) and len(warnings) == 1
