"""Bad archives: lines with right checksums, and texts of any kind."""

import json
import shutil
import warnings

import pytest
from test_searches import SEARCHES, config_of

from mmscale.apis.reports.run_files import read_run
from mmscale.apis.search import dry_run
from mmscale.errors import UsageError
from mmscale.search import Archive
from mmscale.search.entry import key_of, make_line


@pytest.fixture(scope='module')
def config():
    return config_of(SEARCHES['MCEALoop'])


@pytest.fixture(scope='module')
def work_dir(tmp_path_factory, config):
    """The work dir of a search that has just begun: a header and two entries."""
    config.work_dir = str(tmp_path_factory.mktemp('archives') / 'work')
    found = tmp_path_factory.mktemp('archives') / 'begun'
    dry_run(config)
    shutil.copytree(f'{config.work_dir}/archive', found / 'archive')
    path = found / 'archive' / 'rank0000.jsonl'
    path.write_bytes(b''.join(path.read_bytes().splitlines(keepends=True)[:3]))
    return found


@pytest.fixture
def content(work_dir, inputs):
    """What is below the checksums of its lines, copied to the folder that is fuzzed."""
    shutil.copytree(work_dir / 'archive', inputs / 'archive')
    header, *entries = (work_dir / 'archive' / 'rank0000.jsonl').read_text().splitlines()
    return [json.loads(header)['header'], *(json.loads(entry)['entry'] for entry in entries)]


def with_checksums(content):
    """A file of these lines, whose checksums are right."""
    header = make_line('header', content[0])
    key = key_of(header.encode())
    lines = [header, *(make_line('entry', entry, key) for entry in content[1:])]
    return '\n'.join([*lines, ''])


def read(inputs):
    """Reads an archive in all ways; raises what it tells of lines that it drops."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        archive = Archive.open_existing(inputs / 'archive')
        entries = list(archive.entries())
        assert all(archive.score(entry.arch) == entry.outcome for entry in entries)
        assert len(entries) <= len(list(archive.records(archs=False))) <= len(archive)
        records = read_run(inputs).records.evaluated
        assert [record.digest for record in records] == [e.arch.digest for e in entries]
    for warning in caught:
        raise UsageError(str(warning.message))


def test_archives(fuzz, content, inputs, unchanged):
    def use(data):
        (inputs / 'archive' / 'rank0000.jsonl').write_text(with_checksums(data))
        with unchanged(inputs):
            read(inputs)

    fuzz(0.04, content, use, name='line', foreign=True)


def test_archives_as_texts(fuzz, content, inputs, unchanged):
    def use(text):
        (inputs / 'archive' / 'rank0000.jsonl').write_bytes(text)
        with unchanged(inputs):
            read(inputs)

    fuzz(0.02, content, use, text=with_checksums)


def test_searches_that_are_resumed(fuzz, content, inputs, config):
    path = inputs / 'archive' / 'rank0000.jsonl'
    config.work_dir = str(inputs)

    def use(data):
        written = with_checksums(data)
        path.write_text(written)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            try:
                dry_run(config, resume=True)
            finally:
                # Nothing of it is lost, and what is new comes after.
                assert path.read_text().startswith(written)
        for warning in caught:
            raise UsageError(str(warning.message))

    fuzz(0.01, content, use, name='line', foreign=True)
