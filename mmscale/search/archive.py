"""The archive of evaluated Archs, durable on disk: it is the state of a search."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

from mmscale.arch import Arch
from mmscale.cost import Cost

SCHEMA = 1

_CHECKSUM_BYTES = 8


@dataclass(frozen=True)
class Score:
    """A score as the exact fraction `correct` / `total`.

    A metric that is a rounded decimal fits too: a mAP of 0.3712 is ``Score(3712, 10000)``.

    Attributes:
        correct: Numerator, for a classifier the number of images it got right.
        total: Denominator, for a classifier the number of images it saw.
    """

    correct: int
    total: int

    def __post_init__(self) -> None:
        for key in ('correct', 'total'):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f'score: {key}={value!r} must be an integer')
        if not 0 <= self.correct <= self.total or self.total < 1:
            raise ValueError(
                f'score: {self.correct} of {self.total} is not a fraction between 0 and 1'
            )

    @property
    def value(self) -> Fraction:
        """The score between 0 and 1, exact: compare and average this."""
        return Fraction(self.correct, self.total)

    def __str__(self) -> str:
        return f'{self.correct}/{self.total} = {self.correct / self.total:.4f}'


@dataclass(frozen=True)
class Entry:
    """One evaluated Arch."""

    arch: Arch
    cost: Cost
    score: Score

    def to_line(self) -> str:
        """The line of this entry in an archive file, without its line break."""
        data = {
            'digest': self.arch.digest,
            'score': asdict(self.score),
            'cost': asdict(self.cost),
            'arch': self.arch.to_json(),
        }
        return _line('entry', data)


def _checksum(payload: bytes) -> bytes:
    return hashlib.blake2b(payload, digest_size=_CHECKSUM_BYTES).hexdigest().encode()


def _line(kind: str, data: Mapping[str, Any]) -> str:
    payload = json.dumps(data, separators=(',', ':'))
    checksum = _checksum(payload.encode()).decode()
    return f'{{"checksum":"{checksum}","{kind}":{payload}}}'


def _payload(line: bytes, kind: str) -> bytes:
    """The checked payload of a line of the given kind.

    Raises:
        ValueError: The line has another form or its checksum does not match.
    """
    start = b'{"checksum":"'
    middle = f'","{kind}":'.encode()
    checksum_end = len(start) + 2 * _CHECKSUM_BYTES
    payload_start = checksum_end + len(middle)
    if not (
        line.startswith(start)
        and line[checksum_end:payload_start] == middle
        and line.endswith(b'}')
    ):
        raise ValueError(f'it is not an archive {kind}')
    payload = line[payload_start:-1]
    if _checksum(payload) != line[len(start) : checksum_end]:
        raise ValueError('its checksum does not match')
    return payload


def _digest_and_score(line: bytes) -> tuple[str, Score]:
    payload = _payload(line, 'entry')
    # The Arch comes last and is most of the line: opening an archive does not parse it.
    head = json.loads(payload[: payload.index(b',"arch":')] + b'}')
    return head['digest'], Score(**head['score'])


def _header_of(path: Path, line: bytes) -> dict[str, Any]:
    try:
        return json.loads(_payload(line, 'header'))
    except ValueError as error:
        raise ValueError(
            f'{path}, line 1: {error}: this is no archive, or a damaged one; move the file '
            f'away to evaluate its entries again'
        ) from None


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flat(data: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """A nested mapping with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f'{prefix}{key}.')
        else:
            flat[f'{prefix}{key}'] = value
    return flat


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    flat_old, flat_new = _flat(old), _flat(new)

    def shown(data: Mapping[str, Any], key: str) -> str:
        return repr(data[key]) if key in data else 'absent'

    return '; '.join(
        f'{key}: {shown(flat_old, key)} in the archive, {shown(flat_new, key)} now'
        for key in sorted(flat_old.keys() | flat_new.keys())
        if shown(flat_old, key) != shown(flat_new, key)
    )


class Archive:
    """Scores by Arch, kept in a directory of JSON-lines files, one file per rank.

    The first line of a file is its header: schema version and fingerprint, that is, what the
    scores depend on. Every further line is one :class:`Entry`; every line carries a checksum of
    its payload. A process writes its own rank's file only and reads all of them, so the number
    of ranks may change from run to run.

    Opening only reads. A last line without a line break was cut off while it was written: it is
    dropped, and cut off the file before the next entry is appended. A damaged line in the middle
    is dropped with a warning. What was dropped counts as not evaluated.

    Args:
        directory: Where the files lie; made when the first entry is appended.
        fingerprint: What the scores depend on, as plain JSON data: a checkpoint's hash, the
            evaluator's settings, and so on.
        rank: Rank of this process.
        durable: Whether an entry is on the disk when it is appended. Without, it is the operating
            system's to write: a kill of the process loses nothing, a power cut may. For scores
            that cost less than the writing.

    Raises:
        ValueError: A file has another fingerprint (the message shows the keys that differ),
            another schema or no archive header, or two lines give one Arch different scores.
    """

    def __init__(
        self,
        directory: str | Path,
        fingerprint: Mapping[str, Any],
        rank: int = 0,
        durable: bool = True,
    ) -> None:
        self.directory = Path(directory)
        self.durable = durable
        self.fingerprint: dict[str, Any] = json.loads(json.dumps(fingerprint))
        self.rank = rank
        self._header = _line('header', {'schema': SCHEMA, 'fingerprint': self.fingerprint})
        self._scores: dict[str, Score] = {}
        self._origins: dict[str, tuple[Path, int]] = {}
        self._descriptor: int | None = None
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
            with path.open('rb') as file:
                line = file.readline()
            if line.endswith(b'\n'):
                return cls(directory, _header_of(path, line[:-1]).get('fingerprint', {}))
        raise ValueError(f'{directory}: there is no archive with a complete header')

    @property
    def path(self) -> Path:
        """File of this process."""
        return self.directory / f'rank{self.rank:04d}.jsonl'

    @property
    def files(self) -> list[Path]:
        """Files of all ranks that exist, in the order of their names."""
        return sorted(self.directory.glob('rank*.jsonl'))

    def __len__(self) -> int:
        return len(self._scores)

    def __contains__(self, arch: Arch) -> bool:
        return arch.digest in self._scores

    def score(self, arch: Arch) -> Score | None:
        """The score of an Arch, or None if it was not evaluated."""
        return self._scores.get(arch.digest)

    def digests(self) -> list[str]:
        """Digests of all known Archs, sorted."""
        return sorted(self._scores)

    def entries(self) -> Iterator[Entry]:
        """Reads the entries back from disk, file after file, one per Arch."""
        for data in self.records():
            cost, score = Cost(**data['cost']), Score(**data['score'])
            yield Entry(Arch.from_json(data['arch']), cost, score)

    def records(self) -> Iterator[dict[str, Any]]:
        """As :meth:`entries`, but as the plain JSON data of each: many times faster."""
        seen = set()
        for path in self.files:
            for _, line in self._lines(path):
                try:
                    digest, _ = _digest_and_score(line)
                    data = json.loads(_payload(line, 'entry'))
                except (ValueError, KeyError, TypeError):
                    continue  # Reported when the archive was opened.
                if digest not in seen:
                    seen.add(digest)
                    yield data

    # ------------------------------------------------------------------ reading

    def _lines(self, path: Path) -> Iterator[tuple[int, bytes]]:
        """Complete lines behind the header, with their numbers."""
        with path.open('rb') as file:
            for number, line in enumerate(file, start=1):
                if number > 1 and line.endswith(b'\n'):
                    yield number, line[:-1]

    def _check_header(self, path: Path) -> None:
        with path.open('rb') as file:
            line = file.readline()
        if not line.endswith(b'\n') and self._header.encode().startswith(line):
            return  # Cut off while it was made: there is no entry to lose.
        header = _header_of(path, line.rstrip(b'\n'))
        if header.get('schema') != SCHEMA:
            raise ValueError(
                f'{path}: schema={header.get("schema")!r} is not supported, expected {SCHEMA}'
            )
        if header.get('fingerprint') != self.fingerprint:
            difference = _difference(header.get('fingerprint', {}), self.fingerprint)
            raise ValueError(
                f'{path}: its scores belong to another setting ({difference}); take another '
                f'directory, or restore the setting'
            )

    def _read(self, path: Path) -> None:
        self._check_header(path)
        for number, line in self._lines(path):
            try:
                digest, score = _digest_and_score(line)
            except (ValueError, KeyError, TypeError) as error:
                warnings.warn(f'{path}, line {number}: dropped, {error}', stacklevel=3)
                continue
            self._add(digest, score, (path, number))

    def _add(self, digest: str, score: Score, origin: tuple[Path, int]) -> None:
        known = self._scores.setdefault(digest, score)
        if known != score:
            first, second = (
                f'{path}, line {number}' if number else f'{path}, in this run'
                for path, number in (self._origins[digest], origin)
            )
            raise ValueError(
                f'arch {digest[:10]} has two scores: {known} ({first}) and {score} ({second})'
            )
        self._origins.setdefault(digest, origin)

    def merge(self, lines: Iterable[str], rank: int) -> None:
        """Takes over entries that another rank has appended to its file.

        Args:
            lines: Lines as :meth:`Entry.to_line` makes them.
            rank: The other rank.

        Raises:
            ValueError: A line is damaged, or an Arch is known with another score.
        """
        path = self.directory / f'rank{rank:04d}.jsonl'
        for line in lines:
            self._add(*_digest_and_score(line.encode()), (path, 0))

    # ------------------------------------------------------------------ writing

    def append(self, entry: Entry) -> str:
        """Writes an entry to this rank's file and returns when it is there, see `durable`.

        An entry that is known already is not written again.

        Returns:
            The entry's line, for other ranks to :meth:`merge`.

        Raises:
            ValueError: The Arch is known with another score.
            OSError: The disk is full or the directory cannot be written; the file is unchanged.
        """
        digest, line = entry.arch.digest, entry.to_line()
        if digest not in self._scores:
            if self._descriptor is None:
                self._descriptor = self._open()
            self._write(self._descriptor, line)
        self._add(digest, entry.score, (self.path, 0))
        return line

    def _open(self) -> int:
        missing = [p for p in (self.directory, *self.directory.parents) if not p.exists()]
        self.directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        content_end = self._end_of_last_line(descriptor)
        os.ftruncate(descriptor, content_end)
        if content_end == 0:
            self._write(descriptor, self._header)
        if self.durable:
            for path in (self.directory, *(p.parent for p in missing)):
                _sync_directory(path)
        return descriptor

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
        size = os.lseek(descriptor, 0, os.SEEK_END)
        try:
            if os.write(descriptor, data) != len(data):
                raise OSError(errno.ENOSPC, 'no space left for an archive entry')
            if self.durable:
                os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, size)
            raise

    def close(self) -> None:
        """Closes this rank's file; the next :meth:`append` opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
