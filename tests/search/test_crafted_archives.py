"""Archives that somebody has made up: right checksums, and anything below them."""

import json
import os
import warnings
import zlib
from base64 import b64encode

import pytest
from archive_files import FINGERPRINT, KEY, fill, make_entries

from mmscale.errors import UsageError
from mmscale.search import Archive
from mmscale.search import archive as archive_module
from mmscale.search import entry as entry_module
from mmscale.search.entry import key_of, make_header, make_line


def crafted(path, lines):
    """Writes a file of an archive; gives its bytes."""
    path.write_bytes(b''.join(line.encode() + b'\n' for line in lines))
    return path.read_bytes()


def with_checksum(kind, payload, key=''):
    """A line of any text."""
    return f'{{"checksum":"{entry_module._checksum(payload.encode(), key)}","{kind}":{payload}}}'


def entry_with(key, text):
    """The line of an entry that has a text in place of the value of a key."""
    entry = json.loads(make_entries(2)[1].to_line())['entry']
    if key == 'failure':
        entry = {('failure' if k == 'score' else k): v for k, v in entry.items()}
    payload = json.dumps({**entry, key: '@'}, separators=(',', ':')).replace('"@"', text)
    return with_checksum('entry', payload, KEY)


def packed(text):
    return b64encode(zlib.compress(text)).decode()


def test_another_schema_is_refused(tmp_path):
    header = make_line('header', {'schema': 4, 'fingerprint': FINGERPRINT})
    (tmp_path / 'rank0000.jsonl').write_text(header + '\n')
    for opening in (
        lambda: Archive(tmp_path, FINGERPRINT),
        lambda: Archive.open_existing(tmp_path),
    ):
        with pytest.raises(ValueError, match='schema=4 is not supported, expected 3'):
            opening()


def test_an_archive_of_the_schema_before_is_read_but_not_continued(tmp_path):
    entries = make_entries(2)
    header = make_line('header', {'schema': 2, 'fingerprint': FINGERPRINT})
    lines = [header, *(entry.to_line() for entry in entries)]
    (tmp_path / 'rank0000.jsonl').write_text(''.join(f'{line}\n' for line in lines))
    archive = Archive.open_existing(tmp_path)
    assert archive.fingerprint == FINGERPRINT
    assert list(archive.entries()) == entries
    with pytest.raises(ValueError, match='schema=2, of an earlier release: no search goes on'):
        Archive(tmp_path, FINGERPRINT)


def test_lines_of_another_search_are_dropped(tmp_path):
    entries = make_entries(14)
    path = fill(tmp_path / 'mine', entries[:1])
    with Archive(tmp_path / 'other', {**FINGERPRINT, 'checkpoint': 'def'}) as other:
        for entry in entries[1:13]:
            other.append(entry)
    _, *lines = other.path.read_bytes().splitlines(keepends=True)
    with path.open('ab') as file:
        file.writelines(lines)
    before = path.read_bytes()
    with pytest.warns(UserWarning, match='dropped') as caught:
        archive = Archive(tmp_path / 'mine', FINGERPRINT)
    assert path.read_bytes() == before
    *named, rest = [str(warning.message) for warning in caught]
    assert named == [
        f'{path}, line {number}: dropped, its checksum does not match, so it is damaged, or of '
        'another archive'
        for number in range(3, 13)
    ]
    assert rest == f'{path.parent}: 2 more lines dropped'
    # What another process sends is bound too.
    for line, reason in ((lines[0].decode().strip(), 'checksum'), (entries[1].to_line(), 'che')):
        with pytest.raises(ValueError, match=reason):
            archive.merge([line], 1)
    with archive:
        archive.append(entries[1])
    with pytest.warns(UserWarning, match='dropped'):
        assert list(Archive(tmp_path / 'mine', FINGERPRINT).entries()) == entries[:2]


def test_equal_fingerprints_have_one_header(tmp_path):
    path = fill(tmp_path, make_entries(1))
    turned = dict(reversed(FINGERPRINT.items()))
    assert len(Archive(tmp_path, turned)) == 1
    # The header that the lines belong to is the one in the file, to the byte.
    _, line = path.read_text().splitlines()
    header = make_line('header', {'schema': 3, 'fingerprint': turned})
    line = make_line('entry', json.loads(line)['entry'], key_of(header.encode()))
    crafted(path, [header, line])
    with pytest.raises(ValueError, match='line 1: not written as the header'):
        Archive(tmp_path, FINGERPRINT)


@pytest.mark.parametrize(
    ('changes', 'reason'),
    [
        ({'score': {'correct': 2, 'total': 1}}, 'score: correct=2'),
        ({'score': {'correct': 0, 'total': 0}}, 'score: total=0'),
        ({'score': {'correct': 0, 'total': 10**99}}, 'not an archive entry'),
        ({'score': {'correct': -1, 'total': 1}}, 'not an archive entry'),
        ({'cost': None}, 'not an archive entry'),
        ({'cost': {'flops': 0, 'params': 1, 'acts': 1}}, 'not an archive entry'),
        ({'cost': {'flops': 10**300, 'params': 1, 'acts': 1}}, 'not an archive entry'),
        ({'cost': {'flops': float('nan'), 'params': 1, 'acts': 1}}, 'not an archive entry'),
        ({'cost': {'flops': 1, 'params': 1, 'acts': 1, 'x': 1}}, 'not an archive entry'),
        ({'arch': None}, 'not an archive entry'),
        ({'arch': {'schema': 1}}, 'not an archive entry'),
        ({'arch': 'A"A'}, 'not an archive entry'),
        ({'digest': 'x' * 64}, 'not an archive entry'),
        ({'more': 1}, 'not an archive entry'),
        ({'score': None}, 'not an archive entry'),
    ],
    ids=str,
)
def test_entries_of_another_form_are_dropped(tmp_path, changes, reason):
    entries = make_entries(2)
    good, bad = (json.loads(entry.to_line())['entry'] for entry in entries)
    path = tmp_path / 'rank0000.jsonl'
    lines = [make_header(FINGERPRINT), make_line('entry', {**bad, **changes}, KEY)]
    before = crafted(path, [*lines, make_line('entry', good, KEY)])
    with pytest.warns(UserWarning, match=f'line 2: dropped, .*{reason}'):
        archive = Archive(tmp_path, FINGERPRINT)
    assert list(archive.entries()) == entries[:1]
    assert list(archive.records(archs=False)) == [{k: good[k] for k in good if k != 'arch'}]
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ('reason', 'kept'),
    [
        ('"a\\u001b[2J"', True),
        ('"' + '\\ud83d\\ude00' * 1000 + '"', True),
        ('"' + 'a' * 1001 + '"', False),
        ('"' + 'a' * 3_000_000 + '"', False),
        ('"a\x1b"', False),
        ('"a\x00"', False),
        ('"\\q"', False),
        ('["a"]', False),
    ],
    ids=lambda text: f'{text!s:.12}',
)
def test_reasons_of_failures_are_short_texts(tmp_path, reason, kept):
    line = entry_with('failure', reason)
    crafted(tmp_path / 'rank0000.jsonl', [make_header(FINGERPRINT), line])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        archive = Archive(tmp_path, FINGERPRINT)
    assert len(archive) == len(archive.failures) == kept
    assert len(caught) == (not kept)
    assert all(len(str(warning.message)) < 400 for warning in caught)


@pytest.mark.parametrize(
    ('arch', 'reason'),
    [
        ('', 'arch of more than .* or a part of one'),
        ('\x00', 'cannot be unpacked'),
        (packed(b'"/etc/passwd"'), 'expected an object'),
        (packed(b'{}'), 'missing key'),
        (packed(b'{"schema":1e999}'), 'schema=inf'),
        (packed(b'\xff'), 'utf-8'),
        (packed(b'[' * 100_000), 'brackets'),
        (packed(b'{"stages":' + b'9' * 5000 + b'}'), 'digits'),
        ('other', 'its arch is another than its digest says'),
    ],
    ids=lambda text: f'{text!s:.12}',
)
def test_an_entry_whose_arch_is_none_is_left_out(tmp_path, arch, reason):
    entries = make_entries(2)
    good = entries[0].to_line(KEY)
    arch = json.loads(good)['entry']['arch'] if arch == 'other' else arch
    path = tmp_path / 'rank0000.jsonl'
    lines = [make_header(FINGERPRINT), entry_with('arch', f'"{arch}"'), good]
    before = crafted(path, lines)
    archive = Archive(tmp_path, FINGERPRINT)
    with pytest.warns(UserWarning, match=rf'rank0000\.jsonl, line 2: dropped, .*{reason}'):
        assert list(archive.entries()) == entries[:1]
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ('payload', 'reason'),
    [
        ('{"schema":3,"fingerprint":7}', 'fingerprint: expected an object'),
        ('{"schema":3,"fingerprint":{"a":' + '[' * 60_000 + '}}', 'brackets'),
        ('{"schema":3,"fingerprint":{"a":' + '[' * 200 + ']' * 200 + '}}', 'brackets'),
        ('{"schema":3,"fingerprint":{"a":' + '9' * 5000 + '}}', 'digits'),
        ('{"schema":3,"fingerprint":{},"x":1}', 'unknown key x'),
        ('{"schema":3,"fingerprint":{"a":1},"fingerprint":{}}', 'not written as the header'),
        ('{"schema":3,"fingerprint":{"a":"\x00"}}', 'control character'),
        ('{"schema":3,"fingerprint":{"a":"' + 'x' * 2**20 + '"}}', 'more than 1,048,576 bytes'),
        ('{"schema":9,"fingerprint":{}}', 'schema=9 is not supported'),
    ],
    ids=lambda text: f'{text!s:.40}',
)
def test_a_header_of_another_form_is_one_line(tmp_path, payload, reason):
    path = tmp_path / 'rank0000.jsonl'
    before = crafted(path, [with_checksum('header', payload)])
    for opening in (lambda: Archive(tmp_path, {}), lambda: Archive.open_existing(tmp_path)):
        with pytest.raises(UsageError, match=reason) as caught:
            opening()
        assert 'rank0000.jsonl' in str(caught.value)
        assert len(str(caught.value)) < 500
    assert path.read_bytes() == before


def test_a_fingerprint_of_no_end_is_shown_in_short(tmp_path):
    fingerprint = {f'{"k" * 300}{i}': 'x' * 300 for i in range(9)}
    crafted(tmp_path / 'rank0000.jsonl', [make_header(fingerprint)])
    with pytest.raises(UsageError, match='; and 9 more') as caught:
        Archive(tmp_path, FINGERPRINT)
    assert len(str(caught.value)) < 1000


def test_no_more_evaluations_are_read_than_fit_into_memory(tmp_path, monkeypatch):
    fill(tmp_path, make_entries(3))
    monkeypatch.setattr(archive_module, 'MOST_ENTRIES', 2)
    with pytest.raises(UsageError, match=r'line 4: the archive has more evaluations than the 2'):
        Archive(tmp_path, FINGERPRINT)


@pytest.mark.parametrize('kind', ['pipe', 'folder', 'nowhere'])
def test_only_files_are_read(tmp_path, kind):
    fill(tmp_path, make_entries(1))
    path = tmp_path / 'rank9999999999.jsonl'
    make = {'pipe': os.mkfifo, 'folder': os.mkdir, 'nowhere': lambda p: p.symlink_to('x')}
    make[kind](path)
    with pytest.raises((UsageError, OSError), match=r'rank9999999999\.jsonl'):
        Archive(tmp_path, FINGERPRINT)
    with pytest.raises((UsageError, OSError), match=r'rank9999999999\.jsonl'):
        Archive.open_existing(tmp_path)


def test_nothing_is_appended_through_a_link(tmp_path):
    mine = fill(tmp_path / 'mine', make_entries(1), rank=1)
    before = mine.read_bytes()
    link = tmp_path / 'archive' / 'rank0000.jsonl'
    link.parent.mkdir()
    link.symlink_to(mine)
    with Archive(link.parent, FINGERPRINT) as archive:
        assert len(archive) == 1
        with pytest.raises(UsageError, match='is a symbolic link'):
            archive.append(make_entries(2)[1])
    assert mine.read_bytes() == before
