"""What a search space offers before and after its network stages: resolution, stem and head."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmscale.arch.arch import ACTS, Head, Stem
from mmscale.arch.checks import check_keys, choice, integer
from mmscale.arch.choices import BlockDefaults, channel_choices
from mmscale.arch.rounding import Rounding
from mmscale.arch.scaling import scaled_width
from mmscale.arch.slots import allocate
from mmscale.errors import UsageError

# More choices of the resolution, the stem or the head are a mistake.
_MOST_CHOICES = 256
_KEYS = {
    'resolution': 'resolution',
    'stem': 'stem.channels',
    'head_channels': 'head.channels',
    'head_hidden_channels': 'head.hidden_channels',
}


@dataclass
class Ends:
    """Choices of the resolution, the stem and the head, and the columns of their genes.

    Attributes:
        stem: The stem, with the first of its widths.
        head: The head, with the first of its widths.
        choices: By the name of the gene (``resolution``, ``stem``, ``head_channels`` and
            ``head_hidden_channels``) the values.
        columns: By the name of the gene its column; None where there is one value.
    """

    stem: Stem
    head: Head
    choices: dict[str, tuple[int, ...]]
    columns: dict[str, int | None]

    @classmethod
    def from_config(
        cls,
        resolutions: tuple[int, ...],
        stem: Mapping[str, Any],
        head: Mapping[str, Any],
        num_classes: int,
        in_channels: int,
        defaults: BlockDefaults,
    ) -> Ends:
        """Checks the choices that a config spells out.

        Raises:
            ValueError: A key is unknown or missing, or a value is not allowed; it is named.
        """
        keys = ('kernel', 'stride', 'act', 'max_pool')
        stem = check_keys('space.stem', stem, keys, ('channels',))
        head = check_keys('space.head', head, ('hidden_channels', 'act'), ('channels',))
        choices = {
            'resolution': resolutions,
            'stem': channel_choices('space.stem.channels', stem.pop('channels')),
            'head_channels': channel_choices('space.head.channels', head['channels'], least=0),
            'head_hidden_channels': channel_choices(
                'space.head.hidden_channels', head.get('hidden_channels', 0), least=0
            ),
        }
        for name, values in choices.items():
            if len(values) > _MOST_CHOICES:
                key = _KEYS[name]
                raise UsageError(
                    f'space.{key}: {len(values):,} choices are more than {_MOST_CHOICES}'
                )
            if len(values) > 1 and not values[0]:
                raise UsageError(f'space.{_KEYS[name]}={list(values)}: 0 (none) is no choice')
        common = dict(act=defaults.act, padding=defaults.padding, eps=defaults.eps)
        in_channels = integer('space.in_channels', in_channels)
        try:
            made = Stem(choices['stem'][0], in_channels, **{**common, **stem})
        except UsageError as error:
            raise UsageError(f'space.{error}') from None
        return cls(
            stem=made,
            head=Head(
                channels=choices['head_channels'][0],
                hidden_channels=choices['head_hidden_channels'][0],
                num_classes=integer('space.num_classes', num_classes),
                act=choice('space.head.act', head.get('act', defaults.act), ACTS),
                eps=defaults.eps,
            ),
            choices=choices,
            columns=dict.fromkeys(choices),
        )

    def value(self, name: str, row: Sequence[int]) -> int:
        """What one genotype chooses."""
        column = self.columns[name]
        return self.choices[name][0 if column is None else row[column]]

    def stem_of(self, row: Sequence[int]) -> Stem:
        """The stem of one genotype."""
        return replace(self.stem, out_channels=self.value('stem', row))

    def head_of(self, row: Sequence[int]) -> Head:
        """The head of one genotype."""
        return replace(
            self.head,
            channels=self.value('head_channels', row),
            hidden_channels=self.value('head_hidden_channels', row),
        )

    def stems(self, width: float, rounding: Rounding) -> Iterator[Stem]:
        """All stems, in the order of their gene, under a width multiplier."""
        for channels in self.choices['stem']:
            yield replace(self.stem, out_channels=scaled_width(channels, width, rounding))

    def allocated(self, width: float, rounding: Rounding, both_sides: bool) -> tuple[Stem, Head]:
        """Stem and head in which all of them have room, see :func:`allocate`.

        Args:
            width: Largest width multiplier.
            rounding: Of widths.
            both_sides: Whether there is room for both sides of the channel coupling.
        """
        stems = [
            stem.out_channels
            for multiplier in (1.0, width)
            for stem in self.stems(multiplier, rounding)
        ]
        channels, hidden = (
            allocate(self.choices[name], both_sides)
            for name in ('head_channels', 'head_hidden_channels')
        )
        return (
            replace(self.stem, out_channels=allocate(stems, both_sides)),
            replace(self.head, channels=channels, hidden_channels=hidden),
        )

    def heads(self) -> Iterator[Head]:
        """All heads, in the order of their genes; the hidden width changes fastest."""
        widths = itertools.product(
            self.choices['head_channels'], self.choices['head_hidden_channels']
        )
        for channels, hidden in widths:
            yield replace(self.head, channels=channels, hidden_channels=hidden)
