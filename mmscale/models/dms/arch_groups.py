"""Channel groups of an ArchNet, read off its Arch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from mmscale.arch import Arch, Block
from mmscale.models.dms.groups import ChannelGroup, ChannelGroups, DepthGroup, Member, slots

# After these an activation after the addition changes nothing where the branch is gone.
_IDEMPOTENT = ('relu', 'relu6')


@dataclass
class _Width:
    """A width on the way through the network: who makes it, who uses it there and after it."""

    channels: int
    uses: list[tuple[str, str]] = field(default_factory=list)
    after: list[Member] = field(default_factory=list)
    parts: int = 1
    fixed: bool = False

    def made_by(self, name: str) -> None:
        """A convolution and its norm layer (ConvModules: ``conv`` and ``bn``)."""
        self.uses += [(f'{name}.conv', 'out'), (f'{name}.bn', 'through')]

    def passes(self, name: str) -> None:
        """A depthwise convolution and its norm layer."""
        self.uses += [(f'{name}.conv', 'through'), (f'{name}.bn', 'through')]

    def group(self) -> ChannelGroup:
        """The width as a group."""
        # Parts are groups of convolutions; each loses the same slots, so that they stay equal.
        size = self.channels // self.parts
        indices = slots(size, self.parts)
        members = [Member(name, role, indices) for name, role in self.uses]
        members += [
            replace(member, indices=member.indices[indices].reshape(size, -1))
            for member in self.after
        ]
        return ChannelGroup(self.uses[0][0].rpartition('.')[0], size, tuple(members))


def arch_groups(
    arch: Arch, consumers: Mapping[int, Sequence[Member]] | None = None, prefix: str = ''
) -> ChannelGroups:
    """What the ArchNet of an Arch can lose.

    Blocks can go where their shortcut is the identity, but for the first of a network stage: an
    Arch has no empty stages. Channels that a convolution's groups
    share are one element, so that the groups stay equal.

    Args:
        arch: The network.
        consumers: The layers that use a feature map after the network, with the indices that
            each of its channels has there, by the map's index as in ``out_indices``. A map with
            none keeps its width, because something unknown uses it; by default there is nothing
            after the network, and all widths are its own.
        prefix: What comes before the names of the network's layers, as ``backbone.``.
    """
    consumers = {} if consumers is None else consumers
    stream = _Width(arch.stem.out_channels)
    stream.made_by(f'{prefix}stem')
    widths = [stream]
    depths = []
    for i, stage in enumerate(arch.stages):
        removable = []
        for j, block in enumerate(stage):
            name = f'{prefix}stages.{i}.{j}'
            stream = _add_block(widths, stream, name, block)
            plain_end = block.kind not in ('bottleneck', 'basic') or block.act in _IDEMPOTENT
            if j and block.residual == 'identity' and plain_end:
                last = 'spatial' if block.kind == 'conv' else 'project'
                removable.append((name, (f'{name}.{last}.bn',)))
        if removable:
            depths.append(DepthGroup(f'{prefix}stages.{i}', *zip(*removable, strict=True)))
        _leave(stream, consumers, i)
    if arch.head.channels:
        stream.uses.append((f'{prefix}conv_head.conv', 'in'))
        stream = _Width(arch.head.channels)
        stream.made_by(f'{prefix}conv_head')
        widths.append(stream)
    _leave(stream, consumers, len(arch.stages))
    return ChannelGroups(
        tuple(width.group() for width in widths if not width.fixed), tuple(depths)
    )


def _leave(stream: _Width, consumers: Mapping[int, Sequence[Member]], index: int) -> None:
    """Notes what uses a feature map after the network."""
    members = consumers.get(index)
    if members is not None:
        stream.after += members
        stream.fixed |= not members


def _add_block(widths: list[_Width], stream: _Width, name: str, block: Block) -> _Width:
    """Adds the widths inside a block; returns that of its output."""
    if block.kind == 'conv':
        out = _add_conv(widths, stream, name, block)
    else:
        out = _add_layers(widths, stream, name, block)
    if block.residual == 'projection':
        stream.uses.append((f'{name}.shortcut.conv', 'in'))
        out.made_by(f'{name}.shortcut')
    return out


def _add_conv(widths: list[_Width], stream: _Width, name: str, block: Block) -> _Width:
    """Adds the one layer of a conv; returns the width of its output."""
    if block.depthwise:
        stream.passes(f'{name}.spatial')
        return stream
    stream.uses.append((f'{name}.spatial.conv', 'in'))
    stream.parts = math.lcm(stream.parts, block.groups)
    out = stream
    if block.residual != 'identity':
        out = _Width(block.out_channels, parts=block.groups)
        widths.append(out)
    out.made_by(f'{name}.spatial')
    return out


def _add_layers(widths: list[_Width], stream: _Width, name: str, block: Block) -> _Width:
    """Adds the widths of the branch of any other block; returns that of its output."""
    if block.kind in ('mbconv', 'bottleneck'):
        stream.uses.append((f'{name}.expand.conv', 'in'))
        before = _Width(block.hidden_channels)
        before.made_by(f'{name}.expand')
        widths.append(before)
    else:
        before = stream
    if block.depthwise:
        hidden = before
        hidden.passes(f'{name}.spatial')
    else:
        before.uses.append((f'{name}.spatial.conv', 'in'))
        before.parts = math.lcm(before.parts, block.groups)
        hidden = _Width(block.grouped_widths[1], parts=block.groups)
        hidden.made_by(f'{name}.spatial')
        widths.append(hidden)
        # An Arch has one number for both widths of a dsconv.
        if block.kind == 'dsconv':
            before.fixed = hidden.fixed = True
    if block.se is not None:
        squeeze = _Width(block.se.channels)
        squeeze.uses += [(f'{name}.se.conv1.conv', 'out'), (f'{name}.se.conv2.conv', 'in')]
        hidden.uses += [(f'{name}.se.conv1.conv', 'in'), (f'{name}.se.conv2.conv', 'out')]
        widths.append(squeeze)
    hidden.uses.append((f'{name}.project.conv', 'in'))
    if block.residual == 'identity':
        out = stream
    else:
        out = _Width(block.out_channels)
        widths.append(out)
    out.made_by(f'{name}.project')
    return out
