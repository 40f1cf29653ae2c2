"""The archive of evaluated Archs, durable on disk: it is the state of a search."""

from __future__ import annotations

import errno
import json
import os
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from mmscale.arch import Arch
from mmscale.cost import Cost
from mmscale.errors import UsageError
from mmscale.files import check_own_file, sync_file, sync_folder
from mmscale.search.entry import (
    OLD_SCHEMA,
    SCHEMA,
    Entry,
    Failure,
    Outcome,
    Score,
    key_of,
    make_header,
    read_header,
    read_outcome,
    read_record,
)
from mmscale.settings import differences, flat
from mmscale.shown import visible
from mmscale.untrusted import check_no_link, open_regular

# More than the Arch of the most blocks there may be takes.
MOST_LINE_BYTES = 1 << 23
# So many evaluations are read. They take up to 1 GB, as a long reason counts as several.
MOST_ENTRIES = 2_000_000
_REASON_CHARACTERS = 100
# So many lines that are dropped are named.
_MOST_NAMED = 10
_MOST_DIFFERENCES = 3


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines of a file; of one that is too long its first MOST_LINE_BYTES, without a line break."""
    is_rest = False
    for line in iter(partial(file.readline, MOST_LINE_BYTES), b''):
        if not is_rest:
            yield line
        is_rest = len(line) == MOST_LINE_BYTES and not line.endswith(b'\n')


def _first_line(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.readline(MOST_LINE_BYTES)


def _header_of(path: Path, line: bytes) -> tuple[int, dict[str, Any]]:
    try:
        return read_header(line.removesuffix(b'\n'))
    except ValueError as error:
        raise UsageError(
            f'{path}, line 1: {error}: this is no archive, or a damaged one; move the file '
            f'away to evaluate its entries again'
        ) from None


def differing(fingerprint: Mapping[str, Any], present: Mapping[str, Any], where: str) -> str:
    """The keys that differ in two fingerprints, and how; see :func:`differences`."""
    found = differences(flat(fingerprint), flat(present), where)
    if not found:
        return 'numbers of other types'
    more = len(found) - _MOST_DIFFERENCES
    named = [f'{one:.120}' for one in found[:_MOST_DIFFERENCES]]
    return '; '.join(named) + (f'; and {more:,} more' if more > 0 else '')


class _Dropped:
    """Warns of lines that are dropped: names the first ones, and counts the others."""

    def __init__(self) -> None:
        self._more = -_MOST_NAMED
        self._path = Path()

    def warn(self, path: Path, number: int, error: ValueError) -> None:
        """Warns of a line, or counts it."""
        self._more += 1
        self._path = path
        if self._more <= 0:
            where = f'{visible(path)}, line {number}'
            warnings.warn(f'{where}: dropped, {error!s:.200}', stacklevel=6)

    def close(self) -> None:
        """Warns of those that were only counted."""
        if self._more > 0:
            folder = visible(self._path.parent)
            warnings.warn(f'{folder}: {self._more:,} more lines dropped', stacklevel=6)


class Archive:
    """Outcomes by Arch, kept in a directory of JSON-lines files, one file per rank.

    The first line of a file is its header: schema version and fingerprint, that is, what the
    scores depend on. Every further line is one :class:`Entry`, its Arch packed. Every line carries
    a checksum, which for an entry covers that of the header too: an entry counts below the header
    that it was written under, and below no other. A process writes its own rank's file only and
    reads all of them, so the number of ranks may change from run to run.

    Opening only reads, and reads all: every checksum is compared, no Arch is unpacked. In memory
    are digests and outcomes, so that a look-up takes the same time however many there are. A last
    line without a line break was cut off while it was written: it is dropped, and cut off the
    file before the next entry is appended. A damaged line in the middle is dropped with a warning
    that names it. What was dropped counts as not evaluated.

    Args:
        directory: Where the files lie; made when the first entry is appended.
        fingerprint: What the scores depend on, as plain JSON data: a checkpoint's hash, the
            evaluator's settings, and so on.
        rank: Rank of this process; None for a process that only reads.
        durable: Whether an entry is on the disk when it is appended. Without, it is the operating
            system's to write: a kill of the process loses nothing, a power cut may. For scores
            that cost less than the writing.

    Attributes:
        cut_off: Files whose last line was cut off when they were read.

    Raises:
        ValueError: A file has another fingerprint (the message shows the keys that differ),
            another schema or no archive header, or two lines give one Arch different scores. One
            of an earlier release's schema is refused unless it is only read.
        UntrustedFileError: What should be a file is none.
    """

    def __init__(
        self,
        directory: str | Path,
        fingerprint: Mapping[str, Any],
        rank: int | None = 0,
        durable: bool = True,
    ) -> None:
        self.directory = Path(directory)
        self.durable = durable
        self.fingerprint: dict[str, Any] = json.loads(json.dumps(fingerprint))
        self.rank = rank
        self.cut_off: list[Path] = []
        self._header = make_header(self.fingerprint)
        self._key = key_of(self._header.encode())
        self._outcomes: dict[str, Outcome] = {}
        self._entries_read = 0
        self._descriptor: int | None = None
        # Bytes of the files as far as this process knows them.
        self._sizes: dict[Path, int] = {}
        for path in self.files:
            self._read(path)

    @classmethod
    def open_existing(cls, directory: str | Path) -> Archive:
        """Opens an archive to read it, by the fingerprint that it holds.

        Nothing is locked or changed, so that the search that writes it may be running.

        Raises:
            ValueError: There is no archive, or a file is no archive.
        """
        for path in sorted(Path(directory).glob('rank*.jsonl')):
            line = _first_line(path)
            if line.endswith(b'\n') or len(line) == MOST_LINE_BYTES:
                return cls(directory, _header_of(path, line)[1], rank=None)
        raise UsageError(f'{directory}: there is no archive with a complete header')

    @property
    def path(self) -> Path:
        """File of this process."""
        return self.directory / f'rank{self.rank:04d}.jsonl'

    @property
    def files(self) -> list[Path]:
        """Files of all ranks that exist, in the order of their names."""
        return sorted(self.directory.glob('rank*.jsonl'))

    def __len__(self) -> int:
        return len(self._outcomes)

    def __contains__(self, arch: Arch) -> bool:
        return arch.digest in self._outcomes

    def outcome(self, arch: Arch) -> Outcome | None:
        """Score or failure of an Arch, or None if it was not evaluated."""
        return self._outcomes.get(arch.digest)

    def score(self, arch: Arch) -> Score | None:
        """The score of an Arch, or None if it has none."""
        outcome = self.outcome(arch)
        return outcome if isinstance(outcome, Score) else None

    def digests(self) -> list[str]:
        """Digests of all known Archs, sorted."""
        return sorted(self._outcomes)

    @property
    def failures(self) -> dict[str, Failure]:
        """Why Archs could not be scored, by their digests."""
        known = self._outcomes.items()
        return {digest: outcome for digest, outcome in known if isinstance(outcome, Failure)}

    def forget_failures(self) -> int:
        """Forgets which Archs could not be scored, so that they are evaluated again.

        Returns:
            Their number.
        """
        failed = self.failures
        for digest in failed:
            del self._outcomes[digest]
        return len(failed)

    def entries(self) -> Iterator[Entry]:
        """Reads the scored entries back from disk, see :meth:`records`."""
        for data in self.records():
            cost, score = Cost(**data['cost']), Score(**data['score'])
            yield Entry(Arch.from_json(data['arch']), cost, score)

    def records(
        self, digests: Collection[str] | None = None, archs: bool = True
    ) -> Iterator[dict[str, Any]]:
        """Digest, score, cost and Arch of the scored entries as plain JSON data, checked.

        They are read from disk, file after file, one per Arch. One whose Arch is none, or another
        than its digest says, is left out with a warning that names its line.

        Args:
            digests: Of which Archs; None for all.
            archs: Whether to unpack the Archs, which takes most of the time; else they are left
                out.
        """
        dropped = _Dropped()
        for path, number, line, outcome in self._counting(digests):
            if isinstance(outcome, Score):
                try:
                    record = read_record(line, archs)
                except ValueError as error:
                    dropped.warn(path, number, error)
                else:
                    yield record
        dropped.close()

    def lines(self, digests: Collection[str] | None = None) -> Iterator[str]:
        """Lines of what is known, file after file, one per Arch: of several that which counts.

        Args:
            digests: Of which Archs; None for all.
        """
        for _, _, line, _ in self._counting(digests):
            yield line.decode()

    # ------------------------------------------------------------------ reading

    def _check_header(self, path: Path) -> None:
        line = _first_line(path)
        if line == f'{self._header}\n'.encode():
            return
        is_begun = self.rank is None or self._header.encode().startswith(line)
        if is_begun and not line.endswith(b'\n') and len(line) < MOST_LINE_BYTES:
            return  # Cut off while it was made: there is no entry to lose.
        schema, fingerprint = _header_of(path, line)
        if schema == OLD_SCHEMA and self.rank is not None:
            raise UsageError(
                f'{path}: schema={schema}, of an earlier release: no search goes on from it, take '
                f'another work dir; tools/report.py still reads it'
            )
        if json.dumps(fingerprint, sort_keys=True) != json.dumps(self.fingerprint, sort_keys=True):
            raise UsageError(
                f'{path}: its scores belong to another setting '
                f'({differing(fingerprint, self.fingerprint, "in the archive")}); take another '
                f'directory, or restore the setting'
            )
        if schema == SCHEMA:
            raise UsageError(f'{path}, line 1: not written as the header of an archive is')

    def _read(self, path: Path) -> None:
        self._check_header(path)
        for number, _, digest, outcome in self._entries(path, report=True):
            if self._outcomes.setdefault(digest, outcome) is not outcome:
                self._add(digest, outcome, f'{path}, line {number}')
            self._entries_read += 1
            if isinstance(outcome, Failure):
                self._entries_read += len(outcome.reason) // _REASON_CHARACTERS
            if self._entries_read > MOST_ENTRIES:
                raise UsageError(
                    f'{path}, line {number}: the archive has more evaluations than the '
                    f'{MOST_ENTRIES:,} that are read; take another directory'
                )

    def _entries(
        self, path: Path, report: bool = False
    ) -> Iterator[tuple[int, bytes, str, Outcome]]:
        """Whole lines after the header: their numbers, themselves, digests and outcomes.

        Args:
            path: The file.
            report: Whether to warn of damaged lines, and to note a last one that was cut off.
        """
        dropped, key = _Dropped(), ''
        with open_regular(path) as file:
            for number, line in enumerate(_lines(file), start=1):
                is_whole, is_too_long = line.endswith(b'\n'), len(line) == MOST_LINE_BYTES
                if not is_whole and not is_too_long:
                    if report:
                        self.cut_off.append(path)
                elif number == 1:
                    key = key_of(line)
                else:
                    try:
                        if not is_whole:
                            raise UsageError(f'it has more than {MOST_LINE_BYTES:,} bytes')
                        line = line[:-1]
                        digest, outcome = read_outcome(line, key)
                    except ValueError as error:
                        if report:
                            dropped.warn(path, number, error)
                        continue
                    yield number, line, digest, outcome
            if report:
                dropped.close()
                self._sizes[path] = file.tell()

    def _counting(
        self, digests: Collection[str] | None
    ) -> Iterator[tuple[Path, int, bytes, Outcome]]:
        """Of the lines of all files, one per Arch, those whose outcomes count."""
        seen: set[str] = set()
        for path in self.files:
            for number, line, digest, outcome in self._entries(path):
                wanted = digests is None or digest in digests
                if wanted and digest not in seen and outcome == self._outcomes.get(digest):
                    seen.add(digest)
                    yield path, number, line, outcome

    def _add(self, digest: str, outcome: Outcome, origin: str) -> None:
        known = self._outcomes.setdefault(digest, outcome)
        if isinstance(known, Failure) and isinstance(outcome, Score):
            self._outcomes[digest] = outcome  # It failed first, and succeeded later.
        elif isinstance(outcome, Score) and known != outcome:
            raise UsageError(
                f'arch {digest[:10]} has two scores: {known} ({self._origin(digest)}) and '
                f'{outcome} ({origin})'
            )

    def _origin(self, digest: str) -> str:
        """Where an Arch is found in the files first."""
        for path in self.files:
            for number, _, found, _ in self._entries(path):
                if found == digest:
                    return f'{path}, line {number}'
        return 'in this run'

    def merge(self, lines: Iterable[str], rank: int) -> None:
        """Takes over entries that another rank has appended to its file.

        Args:
            lines: Lines as :meth:`Entry.to_line` makes them.
            rank: The other rank.

        Raises:
            ValueError: A line is damaged, or an Arch is known with another score.
        """
        for line in lines:
            self._add(*read_outcome(line.encode(), self._key), f'rank {rank}, in this run')

    # ------------------------------------------------------------------ writing

    def append(self, entry: Entry) -> str:
        """Writes an entry to this rank's file and returns when it is there, see `durable`.

        An entry that is known already is not written again.

        Returns:
            The entry's line, for other ranks to :meth:`merge`.

        Raises:
            RuntimeError: The archive was opened to be read.
            ValueError: The Arch is known with another score, or another process wrote the file, or
                it was removed.
            OSError: The disk is full or the directory cannot be written; the file is unchanged.
        """
        if self.rank is None:
            raise RuntimeError(f'{self.directory}: the archive was opened to be read')
        digest, line = entry.arch.digest, entry.to_line(self._key)
        known = self._outcomes.get(digest)
        succeeded = isinstance(known, Failure) and isinstance(entry.outcome, Score)
        if known is None or succeeded:
            if self._descriptor is None:
                self._descriptor = self._open()
            self._write(self._descriptor, line)
        self._add(digest, entry.outcome, f'{self.path}, in this run')
        return line

    def _open(self) -> int:
        missing = [p for p in (self.directory, *self.directory.parents) if not p.exists()]
        self.directory.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        descriptor = os.open(check_no_link(self.path), flags, 0o666)
        try:
            check_own_file(self.path, descriptor)
            self._check_own(descriptor)
        except ValueError:
            os.close(descriptor)
            raise
        content_end = self._end_of_last_line(descriptor)
        os.ftruncate(descriptor, content_end)
        self._sizes[self.path] = content_end
        if content_end == 0:
            self._write(descriptor, self._header)
        if self.durable:
            for path in (self.directory, *(p.parent for p in missing)):
                sync_folder(path)
        return descriptor

    def _check_own(self, descriptor: int) -> int:
        """Checks that nobody else has written or removed this rank's file; returns its size."""
        if not self.path.exists():
            raise UsageError(f'{self.path}: it was removed while the search ran')
        size = os.lseek(descriptor, 0, os.SEEK_END)
        if size != self._sizes.get(self.path, 0):
            raise UsageError(
                f'{self.path}: another process writes it too; end one of the two searches of this '
                f'work dir, and resume if none is left'
            )
        return size

    @staticmethod
    def _end_of_last_line(descriptor: int) -> int:
        end = os.lseek(descriptor, 0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 65536)
            line_break = os.pread(descriptor, end - start, start).rfind(b'\n')
            if line_break >= 0:
                return start + line_break + 1
            end = start
        return 0

    def _write(self, descriptor: int, line: str) -> None:
        data = line.encode() + b'\n'
        size = self._check_own(descriptor)
        try:
            if os.write(descriptor, data) != len(data):
                raise OSError(errno.ENOSPC, 'no space left for an archive entry')
            if self.durable:
                sync_file(descriptor)
        except OSError:
            os.ftruncate(descriptor, size)
            raise
        self._sizes[self.path] = size + len(data)

    def close(self) -> None:
        """Closes this rank's file; the next :meth:`append` opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
