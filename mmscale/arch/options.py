"""The blocks that the places of a network stage may hold, and which choices mean the same one."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mmscale.arch.arch import Block
from mmscale.arch.choices import Axis, StageChoices
from mmscale.arch.rounding import Rounding
from mmscale.arch.scaling import WidthRule, scale_block
from mmscale.errors import UsageError

Integers = NDArray[np.int64]

# All blocks of a network stage are made before a search, to check and to cost them.
MOST_OPTIONS = 2**16
# Where some mean the same, every one is looked for under every shared choice.
MOST_SYNONYMS = 2**22


class BlockOptions:
    """The blocks that the first place of a network stage, or any further one, may hold.

    An option is a choice of every axis, as one number: shared axes count slowest, the last axis
    fastest, so that option = shared * (number of private options) + private.

    Args:
        owner: The network stage, for errors.
        choices: Of the network stage.
        first: Whether the place is the first.
        in_channels: Widths that the input may have.
        rule: Width rule of the space.
        rounding: Of its widths.

    Raises:
        UsageError: There is no such block, or there are too many.
    """

    def __init__(
        self,
        owner: str,
        choices: StageChoices,
        first: bool,
        in_channels: Sequence[int],
        rule: WidthRule,
        rounding: Rounding,
    ) -> None:
        axes = choices.axes_of(first)
        self.axes: tuple[Axis, ...] = tuple(sorted(axes, key=lambda axis: not axis.shared))
        self.sizes = tuple(len(axis.values) for axis in self.axes)
        self.shared = math.prod(len(axis.values) for axis in self.axes if axis.shared)
        self.count = math.prod(self.sizes)
        self.private = self.count // self.shared
        # Further blocks have as many channels before as after.
        self.widths = tuple(
            (before, after)
            for before in (in_channels if first else (None,))
            for after in choices.channels
        )
        self.shape = (len(in_channels) if first else 1, len(choices.channels), self.count)
        if math.prod(self.shape) > MOST_OPTIONS:
            numbers = [f'{len(a.values):,} of {a.name}' for a in self.axes if len(a.values) > 1]
            raise UsageError(
                f'{owner}: {math.prod(self.shape):,} choices of a block are more than '
                f'{MOST_OPTIONS:,}: {math.prod(self.shape[:2]):,} of channels'
                + ''.join(f', {number}' for number in numbers)
            )
        stride = choices.stride if first else 1
        self.blocks: list[Block] = []
        for before, after in self.widths:
            for values in itertools.product(*(axis.values for axis in self.axes)):
                pairs = zip(self.axes, values, strict=True)
                chosen = {axis.name: value for axis, value in pairs if axis.used}
                width = after if before is None else before
                try:
                    block = choices.block(chosen, stride, (width, after))
                    self.blocks.append(scale_block(block, 1.0, width, rule, rounding))
                except ValueError as error:
                    text = str(error)
                    if not text.startswith('group_widths'):
                        expand = {**chosen, **dict(chosen.get('block', ()))}['expand']
                        text = (
                            f'channels {width} -> {after}, expand {expand:g}: '
                            + text.removeprefix('block: ')
                        )
                    joint = '.' if text.startswith('group_widths') else ': '
                    raise UsageError(f'{owner}{joint}{text}') from None

    def block(self, before: int, after: int, option: int) -> Block:
        """The block of an option, between the widths of these indexes."""
        return self.blocks[(before * self.shape[1] + after) * self.count + option]

    @cached_property
    def ids(self) -> Integers:
        """First option that means the same block, shape (input widths, widths, options)."""
        ids = np.empty(self.shape, dtype=np.int64)
        for row, place in enumerate(np.ndindex(self.shape[:2])):
            first: dict[Block, int] = {}
            blocks = self.blocks[row * self.count : (row + 1) * self.count]
            ids[place] = [first.setdefault(block, i) for i, block in enumerate(blocks)]
        return ids

    @cached_property
    def _options(self) -> list[dict[Block, int]]:
        found = []
        for row in range(len(self.widths)):
            blocks = self.blocks[row * self.count : (row + 1) * self.count]
            # The first of equal ones.
            found.append({block: i for i, block in reversed(list(enumerate(blocks)))})
        return found

    def option_of(self, block: Block, before: int, after: int) -> int:
        """First option that means a block between the widths of these indexes.

        Raises:
            KeyError: There is none.
        """
        return self._options[before * self.shape[1] + after][block]

    @cached_property
    def is_ambiguous(self) -> bool:
        """Whether two options mean the same block somewhere."""
        return bool((self.ids != np.arange(self.count)).any())

    def check_synonyms(self, owner: str) -> None:
        """Raises UsageError if the table of :attr:`privates` would be too large."""
        if math.prod(self.shape) * self.shared > MOST_SYNONYMS:
            raise UsageError(
                f'{owner}.share: {self.shared:,} choices for the network stage, of which some '
                f'mean the same blocks, times {math.prod(self.shape):,} choices of a block are '
                f'more than {MOST_SYNONYMS:,}'
            )

    @cached_property
    def privates(self) -> Integers:
        """Private option that means the same block under another shared choice, or -1.

        Shape (input widths, widths, options, shared choices).
        """
        found = np.empty((*self.shape, self.shared), dtype=np.int64)
        for place in np.ndindex(self.shape):
            found[place] = self.privates_of(*place)
        return found

    def privates_of(self, before: int, after: int, option: int) -> Integers:
        """A row of :attr:`privates`, shape (shared choices,)."""
        ids = self.ids[before, after]
        same = ids.reshape(self.shared, self.private) == ids[option]
        return np.where(same.any(axis=1), same.argmax(axis=1), -1)

    @cached_property
    def matters(self) -> NDArray[np.bool_]:
        """Whether another choice of an axis means another block.

        Shape (input widths, widths, options, axes).
        """
        ids = self.ids.reshape(*self.shape[:2], *self.sizes)
        found = []
        for axis in range(len(self.axes)):
            first = np.take(ids, [0], axis=2 + axis)
            differs = (ids != first).any(axis=2 + axis, keepdims=True)
            found.append(np.broadcast_to(differs, ids.shape).reshape(self.shape))
        return np.stack(found, axis=-1)

    def masks(self, before: int, after: int) -> Counter[int]:
        """Of the different blocks, how many are to be had under which shared choices.

        Args:
            before: Index of the input width.
            after: Index of the width.

        Returns:
            Number of blocks by the set of shared choices, as bits.
        """
        masks: dict[int, int] = {}
        for option, same in enumerate(self.ids[before, after].tolist()):
            masks[same] = masks.get(same, 0) | 1 << option // self.private
        return Counter(masks.values())


def count_sequences(first: Counter[int], further: Counter[int], longest: int) -> list[int]:
    """Numbers of different sequences of blocks of which some shared choice allows all.

    Args:
        first: Of the first blocks, see :meth:`BlockOptions.masks`.
        further: Of the further ones.
        longest: Length of the longest sequences.

    Returns:
        By their length, from 1 on.
    """
    # What one shared choice allows alone: most masks are of one choice.
    of_choice: Counter[int] = Counter()
    for mask, number in further.items():
        for bit in range(mask.bit_length()):
            if mask >> bit & 1:
                of_choice[1 << bit] += number
    counts, totals = Counter(first), [first.total()]
    for _ in range(longest - 1):
        longer: Counter[int] = Counter()
        for one, number in counts.items():
            if one & (one - 1) == 0:
                longer[one] += number * of_choice[one]
                continue
            for other, more in further.items():
                if one & other:
                    longer[one & other] += number * more
        counts = longer
        totals.append(counts.total())
    return totals
