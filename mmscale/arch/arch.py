"""Arch: one concrete convolutional network as immutable, hashable data."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from mmscale.arch.checks import check_keys, check_schema, choice, integer, number
from mmscale.arch.json_files import read_json
from mmscale.arch.origin import KEY, Origin
from mmscale.errors import UsageError
from mmscale.files import write_json
from mmscale.tables import AsText

SCHEMA = 1

KINDS = ('mbconv', 'dsconv', 'fused_mbconv', 'bottleneck', 'basic', 'conv')
ACTS = ('relu', 'relu6', 'hswish', 'silu')
GATES = ('sigmoid', 'hsigmoid')
PADDINGS = ('half', 'same')
RESIDUALS = ('none', 'identity', 'projection')

LARGEST_INTEGER = 2**20
MOST_BLOCKS = 4096


def _check_kernel(owner: str, kernel: object) -> None:
    if integer(f'{owner}: kernel', kernel, 1, LARGEST_INTEGER) % 2 == 0:
        raise UsageError(f'{owner}: kernel={kernel} must be odd')


def _check_object(owner: str, value: object, cls: type) -> None:
    if not isinstance(value, cls):
        raise UsageError(f'{owner}: expected a {cls.__name__}, got {value!r:.60}')


def _from_mapping(cls: type, owner: str, data: object) -> Any:
    """Builds a flat dataclass from a mapping, refusing unknown and missing keys."""
    allowed = [field.name for field in fields(cls)]
    required = [field.name for field in fields(cls) if field.default is MISSING]
    check_keys(owner, data, allowed, required)
    try:
        return cls(**data)
    except ValueError as error:
        raise UsageError(f'{owner}: {error}') from None


def _without_defaults(part: Any) -> dict[str, Any]:
    return {
        field.name: getattr(part, field.name)
        for field in fields(part)
        if getattr(part, field.name) != field.default
    }


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines with aligned columns, for printed objects."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        '  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return '\n'.join(f'  {line}'.rstrip() for line in lines)


@lru_cache(maxsize=2**14)
def _hidden_text(block: Block) -> str:
    """Hidden width of a block, with that of its groups where there are some."""
    if block.kind == 'conv':
        return ''
    if block.groups == 1 or block.depthwise:
        return f'{block.hidden_channels}'
    return f'{block.hidden_channels} in groups of {block.grouped_widths[0] // block.groups}'


@lru_cache(maxsize=2**16)
def _canonical_json(part: Any) -> str:
    """Canonical JSON of a block, stem or head; the networks of a space share most of theirs."""
    return json.dumps(part, sort_keys=True, separators=(',', ':'), default=_without_defaults)


def _values(part: Any) -> dict[str, Any]:
    """As `asdict`, for flat dataclasses, without its deep copies."""
    return {name: getattr(part, name) for name in part.__dataclass_fields__}


@dataclass(frozen=True)
class SqueezeExcite:
    """Squeeze-and-excitation inside a block, on its hidden channels.

    Attributes:
        channels: Squeeze width, an explicit number: papers derive it from the hidden
            channels (ScaleNet's search) or from the block's input (its retraining).
        act: Activation between the two 1x1 convolutions.
        gate: Activation that makes the gate.
    """

    channels: int
    act: str = 'relu'
    gate: str = 'hsigmoid'

    def __post_init__(self) -> None:
        integer('se: channels', self.channels, 1, LARGEST_INTEGER)
        choice('se: act', self.act, ACTS)
        choice('se: gate', self.gate, GATES)


@dataclass(frozen=True)
class Block:
    """One block of a network stage.

    The kinds, in order of their layers (every convolution is followed by a BN):

    * ``mbconv``: 1x1 to hidden, k x k grouped, SE, linear 1x1 (MobileNetV2/V3, EfficientNet,
      ScaleNet; with wider groups the RegNetZ block).
    * ``dsconv``: an mbconv without the first 1x1, hidden equals in.
    * ``fused_mbconv``: k x k to hidden, SE, linear 1x1 (EfficientNet-EdgeTPU).
    * ``bottleneck``: 1x1 to hidden, k x k grouped, SE, 1x1, activation after the addition
      (ResNet-50, ResNeXt, RegNetX/Y).
    * ``basic``: k x k to hidden, k x k, activation after the addition (ResNet-18).
    * ``conv``: one linear k x k, hidden equals out (a strided skip of NAS-Bench-Macro).

    Attributes:
        kind: One of the kinds above.
        kernel: Size of the k x k convolutions, odd.
        stride: Stride of the (first) k x k convolution.
        in_channels: Input width.
        hidden_channels: Width between the convolutions, explicit.
        out_channels: Output width.
        groups: Groups of the (first) k x k convolution; equal to hidden for depthwise.
        se: Squeeze-and-excitation, or None.
        act: Activation; a conv has none, whatever is given.
        residual: ``none``, ``identity`` (needs stride 1 and equal widths) or ``projection``
            (1x1 convolution and BN on the shortcut).
        padding: ``half`` pads kernel // 2 on both sides; ``same`` is TensorFlow's.
        eps: Epsilon of the BNs.
        grouped_channels: Output width of the k x k convolution of an mbconv or bottleneck where
            it is another than `hidden_channels` (pruned networks); None where it is not.
    """

    kind: str
    kernel: int
    stride: int
    in_channels: int
    hidden_channels: int
    out_channels: int
    groups: int
    se: SqueezeExcite | None = None
    act: str = 'hswish'
    residual: str = 'none'
    padding: str = 'half'
    eps: float = 1e-5
    grouped_channels: int | None = None

    def __post_init__(self) -> None:
        choice('block: kind', self.kind, KINDS)
        _check_kernel('block', self.kernel)
        for key in ('stride', 'in_channels', 'hidden_channels', 'out_channels', 'groups'):
            integer(f'block: {key}', getattr(self, key), 1, LARGEST_INTEGER)
        choice('block: act', self.act, ACTS)
        choice('block: residual', self.residual, RESIDUALS)
        choice('block: padding', self.padding, PADDINGS)
        number('block: eps', self.eps, above=0, below=1)
        if isinstance(self.se, dict):
            object.__setattr__(self, 'se', _from_mapping(SqueezeExcite, 'se', self.se))
        elif self.se is not None and not isinstance(self.se, SqueezeExcite):
            raise UsageError(f'block: se={self.se!r:.60} must be an object or null')
        if self.se is not None and self.kind in ('basic', 'conv'):
            raise UsageError(f'block: se is not available for kind={self.kind}')
        if self.grouped_channels is not None:
            integer('block: grouped_channels', self.grouped_channels, 1, LARGEST_INTEGER)
            if self.kind not in ('mbconv', 'bottleneck'):
                raise UsageError(
                    f'block: grouped_channels={self.grouped_channels} is not available for '
                    f'kind={self.kind}'
                )
            # Equal networks are equal data: one way only to say that both widths are the same.
            if self.grouped_channels == self.hidden_channels:
                object.__setattr__(self, 'grouped_channels', None)
        if self.kind == 'dsconv' and self.hidden_channels != self.in_channels:
            raise UsageError(
                f'block: hidden_channels={self.hidden_channels} must equal '
                f'in_channels={self.in_channels} for kind=dsconv'
            )
        if self.kind == 'conv':
            if self.hidden_channels != self.out_channels:
                raise UsageError(
                    f'block: hidden_channels={self.hidden_channels} must equal '
                    f'out_channels={self.out_channels} for kind=conv'
                )
            object.__setattr__(self, 'act', Block.act)  # it has none
        for width in self.grouped_widths:
            if width % self.groups:
                raise UsageError(f'block: groups={self.groups} does not divide width {width}')
        if self.residual == 'identity' and (
            self.stride != 1 or self.in_channels != self.out_channels
        ):
            raise UsageError(
                f'block: residual=identity needs stride 1 and equal widths, got stride '
                f'{self.stride}, {self.in_channels} -> {self.out_channels}'
            )

    @property
    def grouped_widths(self) -> tuple[int, int]:
        """Input and output width of the (first) k x k convolution, which has the groups."""
        if self.kind in ('fused_mbconv', 'basic', 'conv'):
            return self.in_channels, self.hidden_channels
        return self.hidden_channels, self.grouped_channels or self.hidden_channels

    @property
    def depthwise(self) -> bool:
        """Whether the k x k convolution has one channel per group."""
        return self.grouped_widths == (self.groups, self.groups)


@dataclass(frozen=True)
class Stem:
    """First convolution of a network, with an optional 3x3 stride-2 max-pool after it.

    Attributes:
        out_channels: Width.
        in_channels: Image channels, 3 for RGB and 1 for gray.
        kernel: Kernel size, odd.
        stride: Stride of the convolution.
        act: Activation.
        max_pool: Whether a 3x3 stride-2 max-pool follows (ResNet).
        padding: As in :class:`Block`.
        eps: Epsilon of the BN.
    """

    out_channels: int
    in_channels: int = 3
    kernel: int = 3
    stride: int = 2
    act: str = 'hswish'
    max_pool: bool = False
    padding: str = 'half'
    eps: float = 1e-5

    def __post_init__(self) -> None:
        for key in ('out_channels', 'in_channels', 'stride'):
            integer(f'stem: {key}', getattr(self, key), 1, LARGEST_INTEGER)
        _check_kernel('stem', self.kernel)
        choice('stem: act', self.act, ACTS)
        choice('stem: padding', self.padding, PADDINGS)
        number('stem: eps', self.eps, above=0, below=1)
        if not isinstance(self.max_pool, bool):
            raise UsageError(f'stem: max_pool={self.max_pool!r:.60} must be true or false')


@dataclass(frozen=True)
class Head:
    """What follows the last network stage: 1x1 convolution, global pooling, classifier.

    Attributes:
        channels: Width of the 1x1 convolution, 0 for none.
        hidden_channels: Width of a linear layer between pooling and classifier, 0 for none.
        num_classes: Outputs of the classifier, 0 for none.
        act: Activation of the convolution and of the hidden linear layer.
        eps: Epsilon of the BN.
    """

    channels: int = 0
    hidden_channels: int = 0
    num_classes: int = 0
    act: str = 'hswish'
    eps: float = 1e-5

    def __post_init__(self) -> None:
        for key in ('channels', 'hidden_channels', 'num_classes'):
            integer(f'head: {key}', getattr(self, key), 0, LARGEST_INTEGER)
        choice('head: act', self.act, ACTS)
        number('head: eps', self.eps, above=0, below=1)


@dataclass(frozen=True)
class Arch(AsText):
    """One concrete network as data: immutable, hashable, JSON in and out.

    Attributes:
        resolution: Side of the square input, in pixels.
        stem: First convolution.
        stages: Network stages, each a non-empty tuple of blocks.
        head: What follows the last network stage.
        schema: Version of this format.

    Raises:
        UsageError: A value is not allowed or two neighbouring widths differ; the message
            names the place, the key and the value.

    Example:
        >>> stem = Stem(out_channels=16)
        >>> block = Block('mbconv', 3, 2, in_channels=16, hidden_channels=64, out_channels=24,
        ...               groups=64)
        >>> arch = Arch(32, stem, ((block,),), Head(channels=128, num_classes=10))
        >>> Arch.from_json(arch.to_json()) == arch
        True
    """

    resolution: int
    stem: Stem
    stages: tuple[tuple[Block, ...], ...]
    head: Head
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        check_schema('arch', self.schema, SCHEMA)
        integer('arch: resolution', self.resolution, 1, LARGEST_INTEGER)
        _check_object('arch: stem', self.stem, Stem)
        _check_object('arch: head', self.head, Head)
        if not isinstance(self.stages, (list, tuple)) or not all(
            stage and isinstance(stage, (list, tuple)) for stage in self.stages or [None]
        ):
            raise UsageError('arch: stages must be a non-empty list of non-empty lists of blocks')
        object.__setattr__(self, 'stages', tuple(tuple(stage) for stage in self.stages))
        if sum(map(len, self.stages)) > MOST_BLOCKS:
            raise UsageError(f'arch: stages hold more than {MOST_BLOCKS} blocks')
        channels = self.stem.out_channels
        for i, stage in enumerate(self.stages):
            for j, block in enumerate(stage):
                _check_object(f'arch: stages[{i}][{j}]', block, Block)
                if block.in_channels != channels:
                    raise UsageError(
                        f'arch: stages[{i}][{j}]: in_channels={block.in_channels} but the '
                        f'layer before has {channels} outputs'
                    )
                channels = block.out_channels

    @classmethod
    def from_json(cls, source: str | Path | dict) -> Arch:
        """Reads an Arch from a JSON file or from the object in one.

        Args:
            source: A file's path, or the mapping that :meth:`to_json` returns.

        Raises:
            ValueError: The file is not JSON, or a key is unknown, missing or out of range.
            FileNotFoundError: There is no such file.
        """
        owner = 'arch'
        if isinstance(source, (str, os.PathLike)):
            owner, source = str(source), read_json(source)
        names = [field.name for field in fields(cls)]
        # The schema comes first: a file of another one may well have other keys.
        if isinstance(source, dict) and 'schema' in source:
            check_schema(owner, source['schema'], SCHEMA)
        source = check_keys(owner, source, (*names, KEY), names)
        if KEY in source:
            Origin.from_json(owner, source.pop(KEY))
        stages = source['stages']
        lists = (list, tuple)
        if not isinstance(stages, lists) or not all(isinstance(stage, lists) for stage in stages):
            raise UsageError(f'{owner}: stages must be a list of lists of blocks')
        blocks = tuple(
            tuple(
                _from_mapping(Block, f'{owner}: stages[{i}][{j}]', block)
                for j, block in enumerate(stage)
            )
            for i, stage in enumerate(stages)
        )
        stem = _from_mapping(Stem, f'{owner}: stem', source['stem'])
        head = _from_mapping(Head, f'{owner}: head', source['head'])
        data = {**source, 'stem': stem, 'stages': blocks, 'head': head}
        return _from_mapping(cls, owner, data)

    def to_json(self) -> dict[str, Any]:
        """Returns the Arch as a mapping of plain lists, numbers, strings, booleans and None."""
        return {
            'schema': self.schema,
            'resolution': self.resolution,
            'stem': _values(self.stem),
            'stages': [
                [{**_values(block), 'se': block.se and _values(block.se)} for block in stage]
                for stage in self.stages
            ],
            'head': _values(self.head),
        }

    def save(self, path: str | Path, origin: Origin | None = None) -> None:
        """Writes the Arch as a JSON file that :meth:`from_json` reads.

        Args:
            path: The file.
            origin: Where it is from, for :func:`mmscale.arch.origin.read_origin`.
        """
        known = {} if origin is None else {KEY: origin.to_json()}
        write_json(path, {**self.to_json(), **known})

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON: equal for equal networks, on every machine.

        Keys at their default are left out of it, so that a key that a later version adds, with
        a default, does not change the digest of any network written before.
        """
        stages = ','.join(
            f'[{",".join(_canonical_json(block) for block in stage)}]' for stage in self.stages
        )
        text = (
            f'{{"head":{_canonical_json(self.head)},"resolution":{self.resolution},'
            f'"schema":{self.schema},"stages":[{stages}],"stem":{_canonical_json(self.stem)}}}'
        )
        return hashlib.sha256(text.encode()).hexdigest()

    def __hash__(self) -> int:
        # Of the digest alone: what is cached may be pickled into a process with other seeds
        # for the hashes of strings.
        return hash(self.digest)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """All blocks, in order."""
        return tuple(block for stage in self.stages for block in stage)

    @property
    def depths(self) -> tuple[int, ...]:
        """Number of blocks of each network stage."""
        return tuple(len(stage) for stage in self.stages)

    @property
    def widths(self) -> tuple[int, ...]:
        """Output channels of each network stage."""
        return tuple(stage[-1].out_channels for stage in self.stages)

    @property
    def strides(self) -> tuple[int, ...]:
        """Total stride of each network stage's output relative to the input."""
        total = self.stem.stride * (2 if self.stem.max_pool else 1)
        strides = []
        for stage in self.stages:
            for block in stage:
                total *= block.stride
            strides.append(total)
        return tuple(strides)

    @property
    def feature_channels(self) -> int:
        """Channels of the feature map that the global pooling sees."""
        return self.head.channels or self.widths[-1]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Side of each network stage's output, in pixels."""
        return tuple(-(-self.resolution // stride) for stride in self.strides)

    def __str__(self) -> str:
        stem, head = self.stem, self.head
        pool = ', max-pool' if stem.max_pool else ''
        size = -(-self.resolution // (stem.stride * (2 if stem.max_pool else 1)))
        widths = f'{stem.in_channels} -> {stem.out_channels}'
        rows = [('', 'blocks', 'kernels', 'channels', 'hidden', 'output')]
        rows.append(('stem', f'conv{pool}', str(stem.kernel), widths, '', f'{size} px'))
        for i, (stage, size) in enumerate(zip(self.stages, self.sizes, strict=True), start=1):
            kinds = ', '.join(dict.fromkeys(block.kind for block in stage))
            hidden = dict.fromkeys(filter(None, map(_hidden_text, stage)))
            rows.append(
                (
                    f'stage {i}',
                    f'{len(stage)} {kinds}{" + SE" if any(block.se for block in stage) else ""}',
                    ' '.join(str(block.kernel) for block in stage),
                    f'{stage[0].in_channels} -> {stage[-1].out_channels}',
                    ' '.join(hidden),
                    f'{size} px',
                )
            )
        channels = self.widths[-1]
        if head.channels:
            widths = f'{channels} -> {head.channels}'
            rows.append(('head', 'conv', '1', widths, '', f'{self.sizes[-1]} px'))
            channels = head.channels
        for width in (head.hidden_channels, head.num_classes):
            if width:
                rows.append(('head', 'linear', '', f'{channels} -> {width}', '', ''))
                channels = width
        title = (
            f'Arch {self.digest[:10]}: {self.resolution} px, {len(self.blocks)} blocks in '
            f'{len(self.stages)} network stages'
        )
        return f'{title}\n{aligned(rows)}'
