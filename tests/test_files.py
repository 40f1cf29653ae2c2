"""Files that are written whole or not at all, on file systems of all kinds."""

import errno
import os
import stat
import uuid

import pytest

from mmscale.files import atomic_write, open_to_append, sync_folder, write_text


def failing(function, number, on_folders):
    """The function, which fails on folders or on files."""

    def fail(target, *arguments):
        mode = (os.stat if isinstance(target, (str, os.PathLike)) else os.fstat)(target).st_mode
        if stat.S_ISDIR(mode) == on_folders:
            raise OSError(number, os.strerror(number))
        return function(target, *arguments)

    return fail


@pytest.mark.parametrize('name', ['EACCES', 'EBADF', 'EINVAL', 'ENOSYS', 'EPERM', 'EROFS'])
@pytest.mark.parametrize('call', ['fsync', 'open'])
def test_folders_that_cannot_be_synced_are_written_to(name, call, tmp_path, monkeypatch):
    number = getattr(errno, name)
    monkeypatch.setattr(os, call, failing(getattr(os, call), number, on_folders=True))
    write_text(tmp_path / 'file', 'content')
    assert (tmp_path / 'file').read_text() == 'content'


@pytest.mark.parametrize('name', ['EIO', 'ENOSPC', 'EDQUOT'])
def test_a_folder_that_is_broken_is_an_error(name, tmp_path, monkeypatch):
    number = getattr(errno, name)
    monkeypatch.setattr(os, 'fsync', failing(os.fsync, number, on_folders=True))
    with pytest.raises(OSError, match=os.strerror(number)):
        sync_folder(tmp_path)


def test_files_need_not_be_synced_where_nothing_is(tmp_path, monkeypatch):
    fsync = os.fsync
    monkeypatch.setattr(os, 'fsync', failing(fsync, errno.EINVAL, on_folders=False))
    write_text(tmp_path / 'file', 'content')
    assert (tmp_path / 'file').read_text() == 'content'
    monkeypatch.setattr(os, 'fsync', failing(fsync, errno.EIO, on_folders=False))
    with pytest.raises(OSError, match=r'cannot write .*file: Input/output error'):
        write_text(tmp_path / 'file', 'other')
    assert (tmp_path / 'file').read_text() == 'content'
    assert os.listdir(tmp_path) == ['file']


def test_what_shared_writers_have_left_goes_with_a_later_attempt(tmp_path):
    path = tmp_path / 'a[1]'
    for name in ('a[1]', 'other'):
        for age in ('old', 'new'):
            temporary = tmp_path / f'.{name}.{uuid.uuid4().hex}.partial'
            temporary.write_text(f'{name} {age}')
            if age == 'old':
                os.utime(temporary, (1, 1))
    with atomic_write(path, shared=True) as file:
        file.write(b'whole')
    found = sorted(one.read_text() for one in tmp_path.iterdir())
    assert found == ['a[1] new', 'other new', 'other old', 'whole']


def test_a_log_is_begun_anew(tmp_path):
    for text in ('one', 'two'):
        with open_to_append(tmp_path / 'log', anew=True) as file:
            file.write(text)
    assert (tmp_path / 'log').read_text() == 'two'


def test_nothing_is_appended_to_what_is_no_file(tmp_path):
    for text in ('one', 'größer'):
        with open_to_append(tmp_path / 'log') as file:
            file.write(f'{text}\n')
    assert (tmp_path / 'log').read_text(encoding='utf-8') == 'one\ngrößer\n'
    (tmp_path / 'link').symlink_to('log')
    with pytest.raises(ValueError, match='is a symbolic link to log'):
        open_to_append(tmp_path / 'link')
    os.link(tmp_path / 'log', tmp_path / 'other')
    for anew in (False, True):
        with pytest.raises(ValueError, match=r'log has 2 names \(hard links\)'):
            open_to_append(tmp_path / 'log', anew)
    assert (tmp_path / 'other').read_text(encoding='utf-8') == 'one\ngrößer\n'
    os.mkfifo(tmp_path / 'pipe')
    reader = os.open(tmp_path / 'pipe', os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(ValueError, match='pipe is not a regular file'):
        open_to_append(tmp_path / 'pipe')
    os.close(reader)
