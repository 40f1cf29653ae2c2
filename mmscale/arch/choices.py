"""What a search space offers per network stage and per scaling stage, as its config spells it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from mmscale.arch.arch import (
    ACTS,
    GATES,
    KINDS,
    LARGEST_INTEGER,
    MOST_BLOCKS,
    Block,
    SqueezeExcite,
)
from mmscale.arch.checks import check_keys, choice, integer, number
from mmscale.arch.rounding import Rounding, make_divisible
from mmscale.arch.scaling import WIDTH_RULES, width_rule
from mmscale.errors import UsageError

# What a block is chosen by, in the order of its genes; and the keys of a config for lists of them.
AXES = ('block', 'kind', 'kernel', 'expand', 'group_width', 'se', 'act')
_KEYS = {
    'block': 'blocks',
    'kind': 'kind',
    'kernel': 'kernels',
    'expand': 'expands',
    'group_width': 'group_widths',
    'se': 'se',
    'act': 'act',
}
_SHARES = ('block', 'stage')
_SKIPS = ('end', 'anywhere')
_NO_SE = ('basic', 'conv')
GROUPED = ('mbconv', 'bottleneck')


def channel_choices(owner: str, values: object, least: int = 1) -> tuple[int, ...]:
    """Widths of which a super-supernet can hold the smallest beside the largest.

    Raises:
        UsageError: It cannot, or they are no ascending numbers; the message names them.
    """
    found = ascending(owner, values, least=least)
    if len(found) > 1 and found[0] + found[-1] > LARGEST_INTEGER:
        raise UsageError(
            f'{owner}: {found[0]} and {found[-1]} side by side are more than {LARGEST_INTEGER}'
        )
    return found


def ascending(owner: str, values: object, kind: type = int, least: int = 1) -> tuple:
    """A number or a non-empty, ascending list of numbers, as a tuple.

    Raises:
        UsageError: It is something else, or a number is out of range; the message names it.
    """
    if not isinstance(values, (list, tuple)):
        values = [values]
    if not values:
        raise UsageError(f'{owner}={values!r:.60} must be a non-empty list')
    for index, value in enumerate(values):
        where = f'{owner}[{index}]' if len(values) > 1 else owner
        if kind is int:
            integer(where, value, least, LARGEST_INTEGER)
        else:
            number(where, value, above=0, most=LARGEST_INTEGER)
    if list(values) != sorted(set(values)):
        raise UsageError(f'{owner}={list(values)!r:.60} must be ascending and without repeats')
    return tuple(kind(value) for value in values)


@dataclass(frozen=True)
class SEChoice:
    """Squeeze-and-excitation of a block, before its widths are known.

    Attributes:
        act: Activation between the two linear layers.
        gate: Activation that makes the gate.
        ratio: Squeeze width over the width `of`; None leaves it to the width rule.
        of: ``hidden`` or ``input`` width of the block.
        divisor: The squeeze width is rounded down, and then to a multiple of it as in MobileNetV3;
            None rounds it as the space rounds hidden widths.
    """

    act: str = 'relu'
    gate: str = 'hsigmoid'
    ratio: float | None = None
    of: str = 'hidden'
    divisor: int | None = None

    @classmethod
    def from_config(cls, owner: str, value: object, default: SEChoice | None) -> SEChoice | None:
        """What a config says by a dict, True (the default) or False and None (none).

        Raises:
            UsageError: A key is unknown or a value is not allowed; the message names it.
        """
        if value is None or value is False:
            return None
        if value is True:
            return default or cls()
        given = check_keys(owner, value, cls.__dataclass_fields__)
        choice(f'{owner}.act', given.get('act', cls.act), ACTS)
        choice(f'{owner}.gate', given.get('gate', cls.gate), GATES)
        choice(f'{owner}.of', given.get('of', cls.of), ('hidden', 'input'))
        if given.get('divisor') is not None:
            integer(f'{owner}.divisor', given['divisor'], 1, LARGEST_INTEGER)
        if given.get('ratio') is not None:
            number(f'{owner}.ratio', given['ratio'], above=0, most=1)
        elif {'of', 'divisor'} & given.keys():
            raise UsageError(f'{owner}: of and divisor need a ratio')
        return cls(**given)

    def layers(self, block: Block, rounding: Rounding) -> SqueezeExcite:
        """Squeeze-and-excitation of a block of known widths."""
        source = block.in_channels if self.of == 'input' else block.grouped_widths[1]
        ratio = 0.25 if self.ratio is None else self.ratio
        if self.divisor is None:
            return SqueezeExcite(rounding.width(source, ratio), self.act, self.gate)
        # Ratios are decimals: 0.1 of 30 is 3.
        squeezed = math.floor(round(source * ratio, 6))
        return SqueezeExcite(make_divisible(squeezed, self.divisor), self.act, self.gate)

    def __str__(self) -> str:
        text = 'yes' if self.ratio is None else f'{self.ratio:g} of {self.of}'
        text += f', /{self.divisor}' if self.divisor else ''
        usual = SEChoice()
        acts = [own for own in (self.act, self.gate) if own not in (usual.act, usual.gate)]
        return f'{text} {"+".join(acts)}'.rstrip()


@dataclass(frozen=True)
class Axis:
    """One of the things that a block is chosen by.

    Attributes:
        name: One of :data:`AXES`; that of tied choices is ``block``.
        values: Choices; of ``block`` tuples of pairs (other axis, value), which come first.
        shared: Whether all blocks of a network stage share one choice.
        used: False where the first block leaves the choice that the others share.
    """

    name: str
    values: tuple
    shared: bool = False
    used: bool = True


def _one_kernel(owner: str, values: tuple) -> tuple:
    for kernel in values:
        if kernel % 2 == 0:
            raise UsageError(f'{owner}: {kernel} must be odd')
    return values


def _listed(owner: str, value: object, check: Callable[[str, object], Any]) -> tuple:
    """A value or a list of different values, each checked."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    if not values:
        raise UsageError(f'{owner}={value!r:.60} must be a non-empty list')
    found = tuple(
        check(f'{owner}[{i}]' if len(values) > 1 else owner, part) for i, part in enumerate(values)
    )
    if len(set(found)) != len(found):
        raise UsageError(f'{owner}={values!r:.60} must be without repeats')
    return found


def _axis_values(owner: str, name: str, value: object, se: SEChoice | None) -> tuple:
    """Values of an axis as a config spells them."""
    if name == 'kernel':
        return _one_kernel(owner, ascending(owner, value))
    if name == 'expand':
        listed = value if isinstance(value, (list, tuple)) else [value]
        ascending(owner, value, float)
        return tuple(listed)
    if name == 'group_width':
        return ascending(owner, value, least=0)
    if name == 'kind':
        return _listed(owner, value, lambda where, part: choice(where, part, KINDS))
    if name == 'act':
        return _listed(owner, value, lambda where, part: choice(where, part, ACTS))
    return _listed(owner, value, partial(SEChoice.from_config, default=se))


def _tied(owner: str, value: object, se: SEChoice | None) -> tuple:
    """Tied choices: per block of a list the axes that it decides."""
    if not isinstance(value, (list, tuple)) or not value:
        raise UsageError(f'{owner}={value!r:.60} must be a non-empty list of dicts')
    found = []
    for index, part in enumerate(value):
        part = check_keys(f'{owner}[{index}]', part, AXES[1:])
        pairs = []
        for name in AXES[1:]:
            if name in part:
                where = f'{owner}[{index}].{name}'
                if isinstance(part[name], (list, tuple)):
                    raise UsageError(f'{where}={part[name]!r:.60} must be one value')
                pairs.append((name, _axis_values(where, name, part[name], se)[0]))
        found.append(tuple(pairs))
    if len(set(found)) != len(found):
        raise UsageError(f'{owner}: {value!r:.60} must be without repeats')
    return tuple(found)


@dataclass(frozen=True)
class BlockDefaults:
    """What a space says of all its blocks.

    Attributes:
        act: Activation.
        se: Squeeze-and-excitation, or None.
        rounding: Of hidden and squeeze widths.
        padding: As in :class:`Block`.
        eps: Of the BNs.
    """

    act: str
    se: SEChoice | None
    rounding: Rounding
    padding: str
    eps: float


@dataclass(frozen=True)
class StageChoices:
    """Choices for one network stage of the base model.

    Attributes:
        channels: Output widths, ascending.
        stride: Stride of the first block.
        depths: Allowed numbers of blocks, ascending.
        axes: What its blocks are chosen by.
        first: What its first block is chosen by.
        skips: ``end``: a network stage loses its last blocks first; ``anywhere``: any block but
            the first.
        defaults: What the space says of its blocks.
    """

    channels: tuple[int, ...]
    stride: int
    depths: tuple[int, ...]
    axes: tuple[Axis, ...]
    first: tuple[Axis, ...]
    skips: str
    defaults: BlockDefaults

    @classmethod
    def from_config(cls, owner: str, stage: object, defaults: BlockDefaults) -> StageChoices:
        """Checks the choices that a config spells out as a dict.

        Args:
            owner: What they are, for errors.
            stage: The dict.
            defaults: What the space says of its blocks.

        Raises:
            ValueError: A key is unknown or missing, or a value is not allowed; it is named.
        """
        optional = ('stride', 'expand', 'share', 'skips', 'first', *_KEYS.values())
        stage = check_keys(owner, stage, optional, ('channels', 'depths'))
        depths = ascending(f'{owner}.depths', stage['depths'])
        if depths[-1] > MOST_BLOCKS:
            raise UsageError(f'{owner}.depths: {depths[-1]:.6g} must be {MOST_BLOCKS} or less')
        axes = _axes(owner, stage, defaults, {})
        first = axes
        if 'first' in stage:
            where = f'{owner}.first'
            given = check_keys(where, stage['first'], ('expand', *_KEYS.values()))
            known = {axis.name: axis for axis in axes}
            first = _axes(where, given, defaults, known)
        _check_axes(owner, stage, axes)
        _check_axes(f'{owner}.first', stage.get('first', {}), first)
        return cls(
            channels=channel_choices(f'{owner}.channels', stage['channels']),
            stride=integer(f'{owner}.stride', stage.get('stride', 1), 1, LARGEST_INTEGER),
            depths=depths,
            axes=axes,
            first=first,
            skips=choice(f'{owner}.skips', stage.get('skips', 'end'), _SKIPS),
            defaults=defaults,
        )

    def axes_of(self, first: bool) -> tuple[Axis, ...]:
        """What the first or a further block is chosen by."""
        return self.first if first else self.axes

    def values(self, name: str) -> tuple:
        """All different values of an axis in any block of the network stage, also tied ones."""
        found: dict[Any, None] = {}
        for axis in (*self.first, *self.axes):
            if not axis.used:
                continue
            if axis.name == name:
                found |= dict.fromkeys(axis.values)
            elif axis.name == 'block':
                pairs = (pair for value in axis.values for pair in value)
                found |= dict.fromkeys(value for key, value in pairs if key == name)
        return tuple(found)

    def block(self, chosen: Mapping[str, Any], stride: int, widths: tuple[int, int]) -> Block:
        """The block of a choice of every axis.

        Args:
            chosen: Value by the name of the axis.
            stride: Stride.
            widths: Input and output width.

        Raises:
            ValueError: There is no such block.
        """
        chosen = {**chosen, **dict(chosen.get('block', ()))}
        kind, expand, act = (chosen[key] for key in ('kind', 'expand', 'act'))
        in_channels, out_channels = widths
        group_width = chosen['group_width']
        if group_width is None or kind not in GROUPED:
            group_width = 1 if kind in ('mbconv', 'dsconv') else 0
        if kind == 'mbconv' and expand == 1 and group_width == 1:
            kind = 'dsconv'
        rounding = self.defaults.rounding
        if kind == 'dsconv':
            hidden = in_channels
        elif kind == 'conv':
            hidden = out_channels
        elif kind in ('bottleneck', 'basic') or group_width > 1:  # see `follows_output`
            hidden = rounding.width(out_channels, expand)
        else:
            hidden = rounding.width(in_channels, expand)
        if group_width and hidden % group_width:
            raise UsageError(
                f'group_widths: {group_width} does not divide a hidden width of {hidden} '
                f'({in_channels} -> {out_channels} channels, expand {expand:g})'
            )
        is_same = stride == 1 and in_channels == out_channels
        if kind == 'conv':
            residual = 'none'
        elif kind in ('bottleneck', 'basic'):
            residual = 'identity' if is_same else 'projection'
        else:
            residual = 'identity' if is_same else 'none'
        block = Block(
            kind=kind,
            kernel=chosen['kernel'],
            stride=stride,
            in_channels=in_channels,
            hidden_channels=hidden,
            out_channels=out_channels,
            groups=hidden // group_width if group_width else 1,
            act=act,
            residual=residual,
            padding=self.defaults.padding,
            eps=self.defaults.eps,
        )
        se = chosen['se']
        if se is None or kind in _NO_SE:
            return block
        return replace(block, se=se.layers(block, rounding))


def _axes(
    owner: str, stage: Mapping[str, Any], defaults: BlockDefaults, known: Mapping[str, Axis]
) -> tuple[Axis, ...]:
    """The axes of a network stage's blocks, or of its first one beside those it shares."""
    stage = dict(stage)
    if 'expand' in stage:
        if 'expands' in stage:
            raise UsageError(f'{owner}: expand and expands are two names of one key')
        stage['expands'] = stage.pop('expand')
    share = stage.get('share', 'block')
    if isinstance(share, Mapping):
        share = check_keys(f'{owner}.share', share, _KEYS.values())
        for key, value in share.items():
            choice(f'{owner}.share.{key}', value, _SHARES)
    else:
        share = dict.fromkeys(_KEYS.values(), choice(f'{owner}.share', share, _SHARES))
    usual = {'kind': ('mbconv',), 'expand': (1,), 'group_width': (None,), 'kernel': (None,)}
    usual |= {'se': (defaults.se,), 'act': (defaults.act,)}
    axes = []
    for name, key in _KEYS.items():
        if key in stage:
            where = f'{owner}.{key}'
            if name == 'block':
                values = _tied(where, stage[key], defaults.se)
            else:
                values = _axis_values(where, name, stage[key], defaults.se)
            # What the first block has apart from the others it shares with none.
            axes.append(Axis(name, values, share.get(key) == 'stage' and not known))
            if name in known and known[name].shared:
                axes.append(replace(known[name], used=False))
        elif name in known:
            axes.append(known[name])
        elif name != 'block':
            axes.append(Axis(name, usual[name]))
    return tuple(axes)


def _check_axes(owner: str, given: Mapping[str, Any], axes: Sequence[Axis]) -> None:
    """Every block has a kernel, and no choice is given that no kind of block has."""
    known = {axis.name: axis.values for axis in axes if axis.used}
    tied = [dict(value) for value in known.get('block', ((),))]
    if known['kernel'] == (None,) and any('kernel' not in value for value in tied):
        raise UsageError(f'{owner}: missing key kernels')
    kinds = {kind for value in tied for kind in (value.get('kind'), *known['kind']) if kind}
    lacking = {
        'expands': ('dsconv', 'conv'),
        'group_widths': tuple(kind for kind in KINDS if kind not in GROUPED),
        'se': _NO_SE,
    }
    for name, key in _KEYS.items():
        if key in given and name != 'block' and all(name in value for value in tied):
            raise UsageError(f'{owner}.{key}: all of blocks name their own')
    for key, without in lacking.items():
        is_given = key in given and (key != 'se' or known['se'] != (None,))
        if is_given and kinds <= set(without):
            raise UsageError(f'{owner}.{key}: blocks of kind {", ".join(sorted(kinds))} have none')


def rule_of(stages: Sequence[StageChoices], rule: str | None) -> str:
    """The width rule of a space: as given, or the one that fits its squeeze widths.

    Raises:
        UsageError: There is no such rule, or it derives squeeze widths that the space names.
    """
    excites = [se for stage in stages for se in stage.values('se') if se is not None]
    is_named = any(se.ratio is not None for se in excites)
    if rule is None:
        rule = 'proportional' if is_named else 'search'
    choice('space.rule', rule, WIDTH_RULES)
    if width_rule(rule).squeeze != 'base' and is_named:
        raise UsageError(
            f'space.se: ratio does not fit rule={rule!r}, which derives squeeze widths itself; '
            "rule='proportional' keeps them"
        )
    return rule


@dataclass(frozen=True)
class ScalingChoices:
    """Choices for one scaling stage.

    Attributes:
        depth: Depth multipliers.
        width: Width multipliers.
        resolution: Resolutions, in pixels.
    """

    depth: tuple[float, ...]
    width: tuple[float, ...]
    resolution: tuple[int, ...]

    @classmethod
    def from_config(cls, owner: str, stage: object) -> ScalingChoices:
        """Checks the choices that a config spells out as a dict.

        Args:
            owner: What they are, for errors.
            stage: The dict.

        Raises:
            ValueError: A key is unknown or missing, or a value is not allowed; it is named.
        """
        stage = check_keys(owner, stage, (), ('depth', 'width', 'resolution'))
        choices = cls(
            depth=ascending(f'{owner}.depth', stage['depth'], float),
            width=ascending(f'{owner}.width', stage['width'], float),
            resolution=ascending(f'{owner}.resolution', stage['resolution'], int),
        )
        for key in ('depth', 'width'):
            if getattr(choices, key)[0] < 1:
                raise UsageError(
                    f'{owner}.{key}: {getattr(choices, key)[0]} must be 1 or more: '
                    f'the base model is the smallest of the family'
                )
        return choices
