"""The archive: durable, self-contained, and honest about what is damaged."""

import errno
import hashlib
import json
import os
import shutil
import warnings
import zlib
from base64 import b64encode
from fractions import Fraction
from pathlib import Path

import pytest
from analytic_problem import search
from archive_files import FINGERPRINT, KEY, fill, make_entries
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmscale.search import Archive, Entry, Failure, Score
from mmscale.search import archive as archive_module
from mmscale.search import entry as entry_module
from mmscale.search.entry import make_header, make_line, unpacked


def scores(archive, entries):
    return [archive.score(entry.arch) for entry in entries]


def test_score_is_an_exact_fraction():
    assert Score(1, 3).value == Fraction(1, 3)
    assert Score(3334, 10000).value > Score(1, 3).value


def test_score_refuses_what_is_no_fraction():
    for score in ((-1, 3), (4, 3), (0, 0), (0.5, 1), (True, 1)):
        with pytest.raises(ValueError, match='score'):
            Score(*score)


def test_round_trip_is_self_contained_and_readable(tmp_path):
    entries = make_entries(5)
    path = fill(tmp_path / 'new' / 'folder', entries)
    archive = Archive(path.parent, FINGERPRINT)
    assert len(archive) == 5
    assert list(archive.entries()) == entries
    assert scores(archive, entries) == [entry.outcome for entry in entries]
    header, *lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert header['header'] == {'schema': 3, 'fingerprint': FINGERPRINT}
    assert unpacked(lines[2]['entry']['arch']) == entries[2].arch.to_json()
    assert make_entries(6)[5].arch not in archive


def test_opening_writes_nothing(tmp_path):
    with Archive(tmp_path / 'absent', FINGERPRINT) as archive:
        assert len(archive) == 0
    assert not (tmp_path / 'absent').exists()


def test_ranks_are_merged_whatever_rank_reads(tmp_path):
    entries = make_entries(6)
    fill(tmp_path, entries[:2], rank=0)
    fill(tmp_path, entries[2:], rank=3)
    for rank in (0, 1, 3):
        archive = Archive(tmp_path, FINGERPRINT, rank)
        assert scores(archive, entries) == [entry.outcome for entry in entries]


@pytest.fixture(scope='module')
def filled(tmp_path_factory):
    directory = tmp_path_factory.mktemp('filled')
    entries = make_entries(6)
    fill(directory, entries[:2], rank=0)
    return directory, entries, fill(directory, entries[2:5], rank=1).read_bytes()


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.one_of(st.integers(0, 7000), st.integers(-40, -1)))
def test_every_prefix_opens_and_is_repaired(filled, tmp_path, cut):
    source, entries, content = filled
    content = content[:cut]
    directory = tmp_path / 'cut'
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(source, directory)
    path = directory / 'rank0001.jsonl'
    path.write_bytes(content)
    complete = max(content.count(b'\n') - 1, 0)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with Archive(directory, FINGERPRINT, rank=1) as archive:
            assert list(archive.entries()) == entries[: 2 + complete]
            assert path.read_bytes() == content
            archive.append(entries[5])
        archive = Archive(directory, FINGERPRINT)
    assert list(archive.entries()) == [*entries[: 2 + complete], entries[5]]
    assert path.read_bytes().count(b'\n') == complete + 2


def test_a_long_cut_off_line_is_repaired(tmp_path):
    entries = make_entries(2)
    path = fill(tmp_path, entries[:1])
    with path.open('ab') as file:
        file.write(b'{"checksum":"' + b'x' * 200_000)
    fill(tmp_path, entries[1:])
    assert list(Archive(tmp_path, FINGERPRINT).entries()) == entries


def test_no_line_is_read_beyond_what_an_entry_may_take(tmp_path, monkeypatch):
    entries = make_entries(3)
    path = fill(tmp_path, entries[:2])
    header, first, second = path.read_bytes().splitlines(keepends=True)
    most = max(len(header), *(len(entry.to_line()) + 1 for entry in entries))
    monkeypatch.setattr(archive_module, 'MOST_LINE_BYTES', most)
    long = b'x' * (3 * most)
    path.write_bytes(header + first + long + b'\n' + second + long[:most] + b'\n' + second + long)
    with pytest.warns(UserWarning, match='dropped') as caught:
        archive = Archive(tmp_path, FINGERPRINT)
    assert [str(warning.message) for warning in caught] == [
        f'{path}, line {number}: dropped, it has more than {most:,} bytes' for number in (3, 5, 7)
    ]
    assert list(archive.entries()) == entries[:2]
    with archive:
        archive.append(entries[2])
    with pytest.warns(UserWarning, match='dropped'):
        assert list(Archive(tmp_path, FINGERPRINT).entries()) == entries
    path.write_bytes(long)
    for opening in (
        lambda: Archive(tmp_path, FINGERPRINT),
        lambda: Archive.open_existing(tmp_path),
    ):
        with pytest.raises(
            ValueError, match=r'rank0000\.jsonl, line 1: it is not an archive header'
        ):
            opening()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_costs_at_most_the_lines_it_touches(filled, tmp_path, data):
    _, entries, content = filled
    start = content.index(b'\n') + 1
    position = data.draw(st.integers(start, len(content) - 1))
    flipped = bytearray(content)
    flipped[position] ^= 1 << data.draw(st.integers(0, 7))
    (tmp_path / 'rank0001.jsonl').write_bytes(flipped)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        kept = list(Archive(tmp_path, FINGERPRINT).entries())
    lost = 2 if content[position] == ord('\n') else 1
    assert len(kept) >= 3 - lost
    assert [entry for entry in entries[2:5] if entry in kept] == kept
    assert len(kept) < 3


def test_a_damaged_middle_line_is_named_and_the_rest_kept(tmp_path):
    entries = make_entries(4)
    path = fill(tmp_path, entries)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b'"correct":', b'"correct":1')
    path.write_bytes(b''.join(lines))
    with pytest.warns(UserWarning, match=r'rank0000\.jsonl, line 3: dropped, .*checksum'):
        archive = Archive(tmp_path, FINGERPRINT)
    assert archive.score(entries[1].arch) is None
    with archive:
        archive.append(entries[1])
    with pytest.warns(UserWarning, match='line 3'):
        archive = Archive(tmp_path, FINGERPRINT)
    assert scores(archive, entries) == [entry.outcome for entry in entries]


def test_another_fingerprint_shows_the_difference_and_touches_nothing(tmp_path):
    path = fill(tmp_path, make_entries(2))
    before = path.read_bytes(), path.stat().st_mtime_ns
    other = {'evaluator': {'batch_size': 32, 'side': 'left'}, 'seed': 1}
    with pytest.raises(ValueError) as error:
        Archive(tmp_path, other)
    message = str(error.value)
    assert "checkpoint: 'abc' in the archive, absent now" in message
    assert 'evaluator.batch_size: 64 in the archive, 32 now' in message
    assert 'seed: absent in the archive, 1 now' in message
    assert 'side' not in message
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_a_foreign_file_is_refused(tmp_path):
    path = tmp_path / 'rank0000.jsonl'
    for content in (b'accuracy,arch\n0.5,a\n', b'\x00' * 50, b'{"a":1}\n', b'\xff\n'):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r'rank0000\.jsonl, line 1.*no archive'):
            Archive(tmp_path, FINGERPRINT)
        assert path.read_bytes() == content


def test_two_scores_for_one_arch_name_both_lines(tmp_path):
    entry = make_entries(1)[0]
    fill(tmp_path, [entry], rank=0)
    other = Entry(entry.arch, entry.cost, Score(1, 100_000))
    shutil.move(tmp_path / 'rank0000.jsonl', tmp_path / 'kept')
    fill(tmp_path, [other], rank=1)
    shutil.move(tmp_path / 'kept', tmp_path / 'rank0000.jsonl')
    with pytest.raises(ValueError) as error:
        Archive(tmp_path, FINGERPRINT)
    assert 'rank0000.jsonl, line 2' in str(error.value)
    assert 'rank0001.jsonl, line 2' in str(error.value)
    assert '1/100000' in str(error.value)


def test_two_equal_scores_for_one_arch_are_fine(tmp_path):
    entries = make_entries(2)
    path = fill(tmp_path, entries)
    shutil.copy(path, tmp_path / 'rank0001.jsonl')
    archive = Archive(tmp_path, FINGERPRINT)
    assert list(archive.entries()) == entries
    with archive:
        archive.append(entries[0])
    assert path.read_text().count('\n') == 3


def test_append_is_one_write_and_synced(tmp_path, monkeypatch):
    calls = []
    write, fsync = os.write, os.fsync
    with Archive(tmp_path, FINGERPRINT) as archive:
        archive.append(make_entries(1)[0])
        monkeypatch.setattr(os, 'write', lambda *a: calls.append('write') or write(*a))
        monkeypatch.setattr(os, 'fsync', lambda *a: calls.append('fsync') or fsync(*a))
        archive.append(make_entries(2)[1])
    assert calls == ['write', 'fsync']


def test_without_durability_the_same_bytes_are_written_and_nothing_is_synced(
    tmp_path, monkeypatch
):
    entries = make_entries(3)
    path = fill(tmp_path / 'durable', entries)
    monkeypatch.setattr(os, 'fsync', lambda *a: pytest.fail('synced'))
    with Archive(tmp_path / 'quick', FINGERPRINT, durable=False) as archive:
        for entry in entries:
            archive.append(entry)
        # Nothing waits in the process: what a kill leaves is all of it.
        assert (tmp_path / 'quick' / path.name).read_bytes() == path.read_bytes()


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    entries = make_entries(2)
    path = fill(tmp_path, entries[:1])
    before = path.read_bytes()
    write = os.write
    with Archive(tmp_path, FINGERPRINT) as archive:
        with monkeypatch.context() as patch:
            patch.setattr(os, 'write', lambda fd, data: write(fd, data[:100]))
            with pytest.raises(OSError) as error:
                archive.append(entries[1])
        assert error.value.errno == errno.ENOSPC
        assert path.read_bytes() == before
        assert entries[1].arch not in archive
        archive.append(entries[1])
    assert list(Archive(tmp_path, FINGERPRINT).entries()) == entries


def test_a_file_that_is_removed_while_the_search_runs_is_missed(tmp_path):
    first, second = make_entries(2)
    with Archive(tmp_path / 'archive', FINGERPRINT) as archive:
        archive.append(first)
        shutil.rmtree(tmp_path / 'archive')
        with pytest.raises(ValueError, match=r'rank0000\.jsonl: it was removed while'):
            archive.append(second)
        assert second.arch not in archive


@pytest.mark.parametrize('number', [errno.EINVAL, errno.EPERM, errno.EIO])
def test_file_systems_need_not_sync_directories(tmp_path, monkeypatch, number):
    fsync = os.fsync

    def sync_files(descriptor):
        if os.path.isdir(f'/proc/self/fd/{descriptor}'):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, 'fsync', sync_files)
    entries = make_entries(1)
    if number == errno.EIO:
        with pytest.raises(OSError, match='Input/output error'):
            fill(tmp_path, entries)
        return
    fill(tmp_path, entries)
    assert list(Archive(tmp_path, FINGERPRINT).entries()) == entries


def test_a_search_ends_well_where_folders_cannot_be_opened(tmp_path, monkeypatch):
    opened = os.open

    def refuse_folders(path, flags, *arguments, **settings):
        if flags & os.O_DIRECTORY:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return opened(path, flags, *arguments, **settings)

    monkeypatch.setattr(os, 'open', refuse_folders)
    search(tmp_path)
    result = json.loads((tmp_path / 'result.json').read_text())
    assert len(result['scaling_stages']) == 3


def test_paths_with_spaces_and_unicode(tmp_path):
    directory = tmp_path / 'ein Ordner' / 'größer 2×'
    fill(directory, make_entries(2))
    assert len(Archive(Path(directory), FINGERPRINT)) == 2


def test_an_existing_archive_opens_by_its_own_fingerprint(tmp_path):
    entries = make_entries(4)
    fill(tmp_path, entries[:2], rank=0)
    path = fill(tmp_path, entries[2:], rank=1)
    # Rank 0 was killed before its header was whole, rank 1 writes an entry right now.
    (tmp_path / 'rank0000.jsonl').write_bytes(b'{"checksum":"')
    with path.open('ab') as file:
        file.write(b'{"checksum":"0b95')
    before = path.read_bytes()
    archive = Archive.open_existing(tmp_path)
    assert archive.fingerprint == FINGERPRINT
    assert list(archive.entries()) == entries[2:]
    assert [record['digest'] for record in archive.records()] == [
        entry.arch.digest for entry in entries[2:]
    ]
    assert path.read_bytes() == before


def test_there_is_nothing_to_open_without_a_header(tmp_path):
    for content in (None, b'', b'{"checksum":"0b'):
        if content is not None:
            (tmp_path / 'rank0000.jsonl').write_bytes(content)
        with pytest.raises(ValueError, match='no archive with a complete header'):
            Archive.open_existing(tmp_path)


# ------------------------------------------------------------------ failures


def test_failures_are_kept_and_forgotten_on_demand(tmp_path):
    entries = make_entries(3)
    failure = Failure('out of memory: "2.00" GiB, \\ and ü')
    failed = Entry(entries[1].arch, entries[1].cost, failure)
    fill(tmp_path, [entries[0], failed, entries[2]])
    archive = Archive(tmp_path, FINGERPRINT)
    assert archive.failures == {failed.arch.digest: failure}
    assert failure.kind == 'out of memory'
    assert failed.arch in archive
    assert archive.score(failed.arch) is None
    assert archive.outcome(failed.arch) == failure
    assert list(archive.entries()) == [entries[0], entries[2]]
    assert list(archive.lines([failed.arch.digest])) == [failed.to_line(KEY)]
    with archive:
        archive.append(failed)  # Known: not written again.
        assert archive.forget_failures() == 1
        assert failed.arch not in archive
        assert failed.arch.digest not in ''.join(archive.lines())
        archive.append(entries[1])
        archive.append(failed)  # It succeeded meanwhile.
    assert archive.path.read_text().count('\n') == 5
    archive = Archive(tmp_path, FINGERPRINT)
    assert (len(archive), archive.failures) == (3, {})
    assert set(archive.entries()) == set(entries)


def test_a_score_counts_whatever_rank_failed(tmp_path):
    entry = make_entries(1)[0]
    failed = Entry(entry.arch, entry.cost, Failure('out of memory'))
    fill(tmp_path / 'first', [failed], rank=0)
    fill(tmp_path / 'second', [entry], rank=1)
    shutil.copy(tmp_path / 'second' / 'rank0001.jsonl', tmp_path / 'first')
    shutil.copy(tmp_path / 'first' / 'rank0000.jsonl', tmp_path / 'second' / 'rank0002.jsonl')
    for folder in ('first', 'second'):
        assert Archive(tmp_path / folder, FINGERPRINT).score(entry.arch) == entry.outcome
    archive = Archive(tmp_path / 'none', FINGERPRINT)
    archive.merge([failed.to_line(KEY)], 3)
    archive.merge([entry.to_line(KEY), failed.to_line(KEY)], 1)
    assert archive.score(entry.arch) == entry.outcome


# ------------------------------------------------------------------ many


def many(number):
    """Lines of an archive of so many entries, without the Archs that they stand for."""
    arch = json.loads(make_entries(1)[0].to_line())['entry']['arch']
    cost = {'flops': 300_000_000, 'params': 5_000_000, 'acts': 6_000_000}
    for i in range(number):
        digest = hashlib.sha256(str(i).encode()).hexdigest()
        score = {'correct': i % 50_000, 'total': 50_000}
        data = {'digest': digest, 'score': score, 'cost': cost, 'arch': arch}
        yield make_line('entry', data, KEY)


def test_a_large_archive_opens_whole_and_holds_no_arch_in_memory(tmp_path, monkeypatch):
    number = 100_000
    header = make_header(FINGERPRINT)
    with (tmp_path / 'rank0000.jsonl').open('w') as file:
        file.write(header + '\n')
        file.writelines(line + '\n' for line in many(number))
    monkeypatch.setattr(json, 'loads', refuse_long(json.loads))
    monkeypatch.setattr(entry_module, 'b64decode', None)
    archive = Archive(tmp_path, FINGERPRINT)
    assert len(archive) == number
    digests = archive.digests()
    assert len(set(digests)) == number
    # Of a hundred thousand outcomes only the different ones are objects of their own.
    assert len({id(outcome) for outcome in archive._outcomes.values()}) <= 65_536


def refuse_long(loads):
    def checked(text, *args, **kwargs):
        assert len(text) < 1000  # The header, no entry.
        return loads(text, *args, **kwargs)

    return checked


def test_an_arch_of_no_end_is_refused():
    packed = b64encode(zlib.compress(b'0' * (entry_module._MOST_ARCH_BYTES + 1))).decode()
    with pytest.raises(ValueError, match='an arch of more than'):
        unpacked(packed)


def test_a_reader_writes_nothing_and_sees_a_running_search(tmp_path):
    entries = make_entries(3)
    with Archive(tmp_path, FINGERPRINT) as writer:
        writer.append(entries[0])
        reader = Archive.open_existing(tmp_path)
        assert list(reader.entries()) == entries[:1]
        writer.append(entries[1])
        # What was there when it was opened; opened again, it sees more.
        assert list(reader.entries()) == entries[:1]
        assert list(Archive.open_existing(tmp_path).entries()) == entries[:2]
        with pytest.raises(RuntimeError, match='opened to be read'):
            reader.append(entries[2])
    assert [path.name for path in tmp_path.iterdir()] == ['rank0000.jsonl']


@pytest.mark.parametrize('known', [0, 3])
@pytest.mark.parametrize('fingerprint', [FINGERPRINT, {'checkpoint': 'other'}])
def test_of_two_writers_of_one_file_the_second_ends(tmp_path, known, fingerprint):
    entries = make_entries(6)
    if known:
        fingerprint = FINGERPRINT
        fill(tmp_path, entries[:known])
    first, second = Archive(tmp_path, FINGERPRINT), Archive(tmp_path, fingerprint)
    first.append(entries[3])
    content = first.path.read_bytes()
    with pytest.raises(ValueError, match='another process writes it too'):
        second.append(entries[4])
    assert first.path.read_bytes() == content
    # Whoever goes on is not disturbed, and may close its file on the way.
    first.append(entries[4])
    first.close()
    first.append(entries[5])
    assert len(Archive(tmp_path, FINGERPRINT)) == known + 3
