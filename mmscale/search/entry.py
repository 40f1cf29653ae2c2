"""Lines of an archive: its header, and what is known of one evaluated Arch, with checksums."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
import zlib
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from mmscale.arch import Arch
from mmscale.arch.checks import check_keys, integer
from mmscale.cost import Cost
from mmscale.errors import UsageError

SCHEMA = 3
# Its entries are not bound to their header: it is read, and not continued.
OLD_SCHEMA = 2

MOST_REASON_CHARACTERS = 1000
_CHECKSUM_BYTES = 8
_HEADER = re.compile(
    rb'\{"checksum":"(?P<checksum>[0-9a-f]{16})","header":'
    rb'(?P<payload>\{)"schema":(?P<schema>\d{1,9}),'
)
# As JSON writes them, a character takes up to 12 bytes. A cost has to fit 64 bits.
_ENTRY = re.compile(
    rb'\{"checksum":"(?P<checksum>[0-9a-f]{16})","entry":'
    rb'(?P<payload>\{)"digest":"(?P<digest>[0-9a-f]{64})",'
    rb'(?:"score":\{"correct":(?P<correct>\d{1,99}),"total":(?P<total>\d{1,99})\}'
    rb'|"failure":(?P<failure>"(?:[^"\\]|\\.){0,%d}")),'
    rb'"cost":\{"flops":(?P<flops>[1-9]\d{0,17}),"params":(?P<params>[1-9]\d{0,17}),'
    rb'"acts":(?P<acts>[1-9]\d{0,17})\},"arch":"' % (12 * MOST_REASON_CHARACTERS)
)
_END = b'"}}'
# Of fingerprints, which may name thousands of classes.
_MOST_HEADER_BYTES = 1 << 20
_MOST_DEPTH = 100
_MOST_TOTAL = 10**99 - 1
# The packed Archs of networks with hundreds of blocks are a few thousand bytes.
_MOST_ARCH_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
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
        integer('score: total', self.total, 1, _MOST_TOTAL)
        integer('score: correct', self.correct, 0, self.total)

    @property
    def value(self) -> Fraction:
        """The score between 0 and 1, exact: compare and average this."""
        return Fraction(self.correct, self.total)

    @property
    def error(self) -> float:
        """Its binomial standard error, of a score that counts right answers."""
        return math.sqrt(self.value * (1 - self.value) / self.total)

    def __str__(self) -> str:
        return f'{self.correct}/{self.total} = {self.correct / self.total:.4f}'


@dataclass(frozen=True, slots=True)
class Failure:
    """What an Arch has instead of a score if it cannot be scored.

    Attributes:
        reason: A line; what stands before its first colon is the kind of it.

    Raises:
        ValueError: The reason is longer than ``MOST_REASON_CHARACTERS``.
    """

    reason: str

    def __post_init__(self) -> None:
        if not isinstance(self.reason, str) or not self.reason:
            raise UsageError(f'failure: reason={self.reason!r:.60} must be a text')
        if len(self.reason) > MOST_REASON_CHARACTERS:
            raise UsageError(
                f'failure: a reason of {len(self.reason):,} characters, more than '
                f'{MOST_REASON_CHARACTERS:,}'
            )

    @property
    def kind(self) -> str:
        """The reason without what differs from case to case."""
        return self.reason.partition(':')[0]


Outcome = Score | Failure


@dataclass(frozen=True)
class Entry:
    """One evaluated Arch, with its score, or with the reason why it has none."""

    arch: Arch
    cost: Cost
    outcome: Outcome

    def to_line(self, key: str = '') -> str:
        """The line of this entry in an archive file, without its line break.

        Args:
            key: Checksum of the archive's header; empty for a line of no archive.
        """
        outcome: dict[str, Any]
        if isinstance(self.outcome, Score):
            outcome = {'score': asdict(self.outcome)}
        else:
            outcome = {'failure': self.outcome.reason}
        data = {
            'digest': self.arch.digest,
            **outcome,
            'cost': asdict(self.cost),
            'arch': _packed(self.arch),
        }
        return make_line('entry', data, key)


def _packed(arch: Arch) -> str:
    text = json.dumps(arch.to_json(), separators=(',', ':'))
    return b64encode(zlib.compress(text.encode())).decode()


def unpacked(packed: str | bytes) -> dict[str, Any]:
    """The Arch of a line as plain JSON data, which are those of an object, but not checked.

    Raises:
        ValueError: It is longer than any Arch, or not packed so.
    """
    decompressor = zlib.decompressobj()
    try:
        text = decompressor.decompress(b64decode(packed, validate=True), _MOST_ARCH_BYTES)
    except (ValueError, zlib.error) as error:
        raise UsageError(f'an arch that cannot be unpacked: {error}') from None
    if not decompressor.eof:
        raise UsageError(f'an arch of more than {_MOST_ARCH_BYTES:,} bytes, or a part of one')
    return _parsed(text, 'arch')


def _parsed(text: bytes, owner: str) -> dict[str, Any]:
    try:
        return check_keys(owner, json.loads(text.decode()), None)
    except RecursionError:
        raise UsageError(f'{owner}: brackets in brackets without end') from None


def _checksum(payload: bytes, key: str = '') -> str:
    return hashlib.blake2b(payload, digest_size=_CHECKSUM_BYTES, key=key.encode()).hexdigest()


def make_line(kind: str, data: Mapping[str, Any], key: str = '') -> str:
    """A line of plain JSON data, without its line break.

    Args:
        kind: ``header`` or ``entry``.
        data: Of the line.
        key: What its checksum covers besides: of an entry the checksum of its archive's header.
    """
    payload = json.dumps(data, separators=(',', ':'))
    return f'{{"checksum":"{_checksum(payload.encode(), key)}","{kind}":{payload}}}'


def _payload(line: bytes, match: re.Match[bytes] | None, kind: str, key: str = '') -> bytes:
    """The checked payload of a line.

    Raises:
        ValueError: The line has another form or its checksum does not match.
    """
    if match is None or not line.endswith(b'}'):
        raise UsageError(f'it is not an archive {kind}')
    payload = line[match.start('payload') : -1]
    if _checksum(payload, key).encode() != match['checksum']:
        other = ', or of another archive' if key else ''
        raise UsageError(f'its checksum does not match, so it is damaged{other}')
    return payload


@functools.lru_cache(maxsize=65536)
def _score(correct: bytes, total: bytes) -> Score:
    """Many Archs share few scores."""
    return Score(int(correct), int(total))


def read_outcome(line: bytes, key: str) -> tuple[str, Outcome]:
    """Digest and outcome of an entry's line; its Arch is not unpacked.

    Args:
        line: The line.
        key: Checksum of the archive's header, see :func:`key_of`.

    Raises:
        ValueError: The line is none, of another archive, or damaged.
    """
    match = _ENTRY.match(line)
    _payload(line, match, 'entry', key)
    # The Arch is the last text there is.
    if not line.endswith(_END) or line.find(b'"', match.end()) != len(line) - len(_END):
        raise UsageError('it is not an archive entry')
    digest = match['digest'].decode()
    if match['total'] is not None:
        return digest, _score(match['correct'], match['total'])
    return digest, Failure(json.loads(match['failure'].decode()))


def read_record(line: bytes, arch: bool = True) -> dict[str, Any]:
    """Digest, score, cost and Arch of an entry with a score as plain JSON data, checked.

    Args:
        line: A line that :func:`read_outcome` has let pass.
        arch: Whether to unpack the Arch; else it is left out.

    Raises:
        ValueError: It has no Arch, or another than its digest says.
    """
    match = _ENTRY.match(line)
    record: dict[str, Any] = {
        'digest': match['digest'].decode(),
        'score': {name: int(match[name]) for name in ('correct', 'total')},
        'cost': {name: int(match[name]) for name in ('flops', 'params', 'acts')},
    }
    if arch:
        found = Arch.from_json(unpacked(line[match.end() : -len(_END)]))
        if found.digest != record['digest']:
            raise UsageError('its arch is another than its digest says')
        record['arch'] = found.to_json()
    return record


# ------------------------------------------------------------------ the header


def make_header(fingerprint: Mapping[str, Any]) -> str:
    """The header's line, without its line break: one text for equal fingerprints."""
    ordered = json.loads(json.dumps(fingerprint, sort_keys=True))
    return make_line('header', {'schema': SCHEMA, 'fingerprint': ordered})


def key_of(header: bytes) -> str:
    """What the checksums of the entries below a header cover: its own, if it is of our schema."""
    match = _HEADER.match(header)
    return match['checksum'].decode() if match and int(match['schema']) == SCHEMA else ''


def _is_deep(data: object) -> bool:
    level = [data]
    for _ in range(_MOST_DEPTH):
        parts = (whole.values() if isinstance(whole, dict) else whole for whole in level)
        level = [part for whole in parts for part in whole if isinstance(part, (dict, list))]
    return bool(level)


def read_header(line: bytes) -> tuple[int, dict[str, Any]]:
    """Schema and fingerprint of a header's line.

    Raises:
        ValueError: The line is none, damaged, or of a schema that is not read.
    """
    if len(line) > _MOST_HEADER_BYTES:
        raise UsageError(f'it has more than {_MOST_HEADER_BYTES:,} bytes')
    header = _parsed(_payload(line, _HEADER.match(line), 'header'), 'header')
    schema = header.get('schema')
    if schema not in (OLD_SCHEMA, SCHEMA):
        raise UsageError(f'schema={schema!r:.60} is not supported, expected {SCHEMA}')
    check_keys('header', header, ('schema',), ('fingerprint',))
    fingerprint = check_keys('fingerprint', header['fingerprint'], None)
    if _is_deep(fingerprint):
        raise UsageError(f'fingerprint: more than {_MOST_DEPTH} brackets in brackets')
    return schema, fingerprint
