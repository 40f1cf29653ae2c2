"""Progress lines: what they say of the time that is left."""

import errno
import logging
import os

import pytest

from mmscale.files import write_json
from mmscale.search import Progress
from mmscale.search import reporting as reporting_module
from mmscale.search.reporting import ProgressLog


def progress(evaluations, expected=0, failed=0, most=900):
    return Progress(
        step='generation 1 of 3',
        evaluations=evaluations,
        most_evaluations=most,
        expected_evaluations=expected,
        fresh=evaluations,
        failed=failed,
        best=None,
    )


@pytest.fixture
def lines(caplog, monkeypatch):
    """A function that logs progress, ten evaluations after a start and 100 s later; the line."""

    def lines(processes=1, **settings):
        clock = iter([0.0, 100.0])
        monkeypatch.setattr(reporting_module.time, 'monotonic', lambda: next(clock))
        log = ProgressLog(logging.getLogger('mmscale.test'), processes)
        with caplog.at_level(logging.INFO):
            log(progress(0, **settings))
            log(progress(10, **settings))
        return caplog.messages[-1]

    return lines


def test_the_time_left_is_of_what_is_expected(lines):
    for settings, said in (
        (dict(expected=100), 'of about 100, eta about 0:15:00'),
        (dict(expected=100, processes=2), 'eta about 0:07:30'),
        (dict(), '10 evaluations of at most 900, eta at most 2:28:20'),
        # More than expected: the bound is what is known.
        (dict(expected=10), 'of at most 900, eta at most 2:28:20'),
        (dict(expected=100, failed=3), ', 3 failed, eta about 0:15:00'),
        (dict(most=0), '10 evaluations'),
    ):
        assert lines(**settings).endswith(said)


def test_a_full_disk_leaves_the_old_json_and_no_temporary_file(tmp_path, monkeypatch):
    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / 'result.json'
    write_json(path, [1])
    with monkeypatch.context() as patch, pytest.raises(OSError) as error:
        patch.setattr(os, 'fsync', full)
        write_json(path, [2])
    assert str(error.value) == f'[Errno 28] cannot write {path}: No space left on device'
    assert list(tmp_path.iterdir()) == [path] and path.read_text() == '[\n 1\n]\n'
