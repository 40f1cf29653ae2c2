"""Lines of an archive: what is known of one evaluated Arch, as text with a checksum."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import zlib
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from mmscale.arch import Arch
from mmscale.arch.checks import integer
from mmscale.cost import Cost
from mmscale.errors import UsageError

_CHECKSUM_BYTES = 8
_HEADER = re.compile(rb'\{"checksum":"(?P<checksum>[0-9a-f]{16})","header":(?P<payload>\{)')
_ENTRY = re.compile(
    rb'\{"checksum":"(?P<checksum>[0-9a-f]{16})","entry":'
    rb'(?P<payload>\{)"digest":"(?P<digest>[0-9a-f]{64})",'
    rb'(?:"score":\{"correct":(?P<correct>\d{1,99}),"total":(?P<total>\d{1,99})\}'
    rb'|"failure":(?P<failure>"(?:[^"\\]|\\.)*")),'
)
# The packed Archs of networks with hundreds of blocks are a few thousand bytes.
_MOST_ARCH_BYTES = 1 << 22


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
        integer('score: total', self.total)
        integer('score: correct', self.correct, 0, self.total)

    @property
    def value(self) -> Fraction:
        """The score between 0 and 1, exact: compare and average this."""
        return Fraction(self.correct, self.total)

    def __str__(self) -> str:
        return f'{self.correct}/{self.total} = {self.correct / self.total:.4f}'


@dataclass(frozen=True)
class Failure:
    """What an Arch has instead of a score if it cannot be scored.

    Attributes:
        reason: A line; what stands before its first colon is the kind of it.
    """

    reason: str

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

    def to_line(self) -> str:
        """The line of this entry in an archive file, without its line break."""
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
        return make_line('entry', data)


def _packed(arch: Arch) -> str:
    text = json.dumps(arch.to_json(), separators=(',', ':'))
    return b64encode(zlib.compress(text.encode())).decode()


def unpacked(packed: str) -> dict[str, Any]:
    """The Arch of a line as plain JSON data.

    Raises:
        ValueError: It is longer than any Arch, or not packed so.
    """
    decompressor = zlib.decompressobj()
    try:
        text = decompressor.decompress(b64decode(packed), _MOST_ARCH_BYTES)
    except zlib.error as error:
        raise UsageError(f'an arch that cannot be unpacked: {error}') from None
    if not decompressor.eof:
        raise UsageError(f'an arch of more than {_MOST_ARCH_BYTES:,} bytes, or a part of one')
    return json.loads(text)


def _checksum(payload: bytes) -> bytes:
    return hashlib.blake2b(payload, digest_size=_CHECKSUM_BYTES).hexdigest().encode()


def make_line(kind: str, data: Mapping[str, Any]) -> str:
    """A line of plain JSON data, without its line break."""
    payload = json.dumps(data, separators=(',', ':'))
    checksum = _checksum(payload.encode()).decode()
    return f'{{"checksum":"{checksum}","{kind}":{payload}}}'


def _payload(line: bytes, match: re.Match[bytes] | None, kind: str) -> bytes:
    """The checked payload of a line.

    Raises:
        ValueError: The line has another form or its checksum does not match.
    """
    if match is None or not line.endswith(b'}'):
        raise UsageError(f'it is not an archive {kind}')
    payload = line[match.start('payload') : -1]
    if _checksum(payload) != match['checksum']:
        raise UsageError('its checksum does not match')
    return payload


@functools.lru_cache(maxsize=65536)
def _score(correct: bytes, total: bytes) -> Score:
    """Many Archs share few scores."""
    return Score(int(correct), int(total))


def read_outcome(line: bytes) -> tuple[str, Outcome]:
    """Digest and outcome of an entry's line, of which most is not parsed.

    Raises:
        ValueError: The line is none, or damaged.
    """
    match = _ENTRY.match(line)
    _payload(line, match, 'entry')
    digest = match['digest'].decode()
    if match['total'] is not None:
        return digest, _score(match['correct'], match['total'])
    return digest, Failure(json.loads(match['failure']))


def read_header(line: bytes) -> dict[str, Any]:
    """The content of a header's line.

    Raises:
        ValueError: The line is none, or damaged.
    """
    return json.loads(_payload(line, _HEADER.match(line), 'header'))
