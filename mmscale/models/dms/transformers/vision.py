"""Groupers of mmpretrain's transformers: a line each names the parts of their blocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from mmpretrain.models import SwinTransformerV2
from mmpretrain.models.backbones.mvit import MultiScaleAttention
from mmpretrain.models.utils import WindowMSAV2
from mmpretrain.models.utils.attention import LeAttention
from torch import nn

from mmscale.models.dms.groups import ChannelGroup, ChannelGroups, DepthGroup, Member, runs
from mmscale.models.dms.transformers.attention import layered
from mmscale.models.dms.transformers.parts import (
    Attention,
    Consumers,
    Stream,
    found,
    mlp_of,
    places,
)

# Parameters of attention that are of each head, and the dimension that heads lie in.
_BY_HEAD = {'relative_position_bias_table': -1, 'attention_biases': -2, 'logit_scale': -3}


@dataclass(frozen=True)
class Block:
    """Names of the parts of a block, in it.

    Attributes:
        norms: Norm layers of the residual stream.
        attention: Its attention.
        mlp: Its MLP.
        through: Layers and parameters that take the stream channel by channel.
        ends: Layers whose outputs are added to the stream; by default the last ones of attention
            and MLP.
    """

    norms: tuple[str, ...]
    attention: str = 'attn'
    mlp: str = 'mlp'
    through: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()


VIT = Block(('ln1', 'ln2'), mlp='ffn', through=('attn.gamma1', 'ffn.gamma2'))
EVA02 = Block(('norm1', 'norm2'))
BEIT = Block(('ln1', 'ln2'), mlp='ffn', through=('gamma_1', 'gamma_2'))
SWIN = Block(('norm1', 'norm2'), 'attn.w_msa', 'ffn')
SWIN_V2 = Block(('norm1', 'norm2', 'norm3'), 'attn.w_msa', 'ffn', ends=('norm1', 'norm2'))
TINY_VIT = Block(('attn.norm', 'mlp.norm'), through=('local_conv.conv2d', 'local_conv.bn2d'))
MVIT = Block(('norm1', 'norm2'))


def _tied_attention(model: nn.Module, name: str) -> tuple[list[ChannelGroup], Attention]:
    """MViT's attention, which adds queries to its result and thereby ties all sizes."""
    attention = Attention.fused(model, name, model.get_submodule(name).num_heads)
    size = attention.value[1].shape[-1]
    makers = (attention.query, attention.key, attention.value)
    members = [Member(layer, 'out', places(indices)) for layer, indices in makers]
    for part in 'qkv':
        members.append(Member(f'{name}.pool_{part}', 'through', runs(size)))
        members.append(Member(f'{name}.norm_{part}', 'norm', runs(size)))
    # Keys and positions multiply queries, which have no other layer after their norm.
    members.append(Member(f'{name}.norm_q', 'out', runs(size), masks_output=True))
    for table in ('rel_pos_h', 'rel_pos_w'):
        if found(model, f'{name}.{table}') is not None:
            members.append(Member(f'{name}.{table}', 'through', runs(size), dim=-1))
    output, inner = attention.output
    members.append(Member(output, 'in', places(inner)))
    counts = ((name, 'head_dims', 1),)
    tied = ChannelGroup(f'{name}.head_size', size, tuple(members), 'head_size', counts)
    return [attention.heads(count='num_heads'), tied], attention


def attention_groups(model: nn.Module, name: str) -> tuple[list[ChannelGroup], Attention]:
    """Groups of one of mmpretrain's attentions: heads, and sizes as far as they can change.

    Classes that hand the weight of their first layer to a function, where no mask reaches it, or
    that keep what they have computed of parameters, get one that does not.
    """
    module = model.get_submodule(name)
    if isinstance(module, MultiScaleAttention):
        return _tied_attention(model, name)
    layered(module)
    is_le = isinstance(module, LeAttention)
    heads = module.num_heads
    attention = Attention.fused(model, name, heads, by_head=is_le)
    by_head = [
        Member(f'{name}.{table}', 'through', runs(heads), dim)
        for table, dim in _BY_HEAD.items()
        if isinstance(found(model, f'{name}.{table}'), nn.Parameter)
    ]
    if isinstance(module, WindowMSAV2):
        by_head.append(Member(f'{name}.cpb_mlp.2', 'out', runs(heads)))
    sizes: dict[str, list[Member]] = {}
    for bias in ('q_bias', 'v_bias'):
        values = found(model, f'{name}.{bias}')
        sizes[bias] = []
        if values is not None:
            indices = np.arange(values.numel()).reshape(heads, -1)
            by_head.append(Member(f'{name}.{bias}', 'through', indices, dim=-1))
            sizes[bias] = [Member(f'{name}.{bias}', 'through', places(indices), dim=-1)]
    counts = ('key_dim', 'd') if is_le else ('head_dims', 'value_dims')
    groups = [
        attention.heads(*by_head, count='num_heads'),
        attention.value_size(*sizes['v_bias'], count=counts[1]),
    ]
    # EVA-02 makes its rotation anew for images of another size; the norm of a cosine is of
    # biases too, which no mask reaches.
    if not getattr(module, 'rope', None) and not isinstance(module, WindowMSAV2):
        groups.append(attention.query_size(*sizes['q_bias'], count=counts[0]))
    return groups, attention


def add_block(
    model: nn.Module,
    stream: Stream,
    name: str,
    block: Block,
    inside: Stream | None = None,
    after: Stream | None = None,
) -> tuple[list[ChannelGroup], tuple[str, ...]]:
    """Adds a block to its stream.

    Args:
        model: The model.
        stream: The residual stream.
        name: Of the block.
        block: Names of its parts.
        inside: The stream after its attention, if that is another one.
        after: The stream after its MLP, if that is another one.

    Returns:
        The groups inside it, and the names of the layers whose outputs are added to the stream.
    """
    inside = inside or stream
    after = after or inside
    mlp = mlp_of(model, f'{name}.{block.mlp}')
    groups, attention = attention_groups(model, f'{name}.{block.attention}')
    first, *others = (f'{name}.{norm}' for norm in block.norms)
    stream.add('norm', first)
    stream.add('in', attention.query[0])
    inside.add('norm', *others)
    inside.add('in', *mlp.firsts)
    inside.add('out', attention.output[0])
    after.add('out', mlp.last)
    after.add('through', *(f'{name}.{part}' for part in block.through))
    ends = tuple(f'{name}.{end}' for end in block.ends) or (attention.output[0], mlp.last)
    return [*groups, *mlp.groups], ends


def _embedding(model: nn.Module, prefix: str, name: str, size: int) -> Stream:
    """The stream that patches and positions make."""
    stream = Stream(model, f'{prefix}{name}', size)
    stream.add('out', f'{prefix}patch_embed.projection')
    for table in ('cls_token', 'dist_token', 'pos_embed', 'absolute_pos_embed'):
        stream.add('through', f'{prefix}{table}')
    stream.add('norm', f'{prefix}patch_embed.norm', f'{prefix}pre_norm')
    return stream


def vit_groups(block: Block, model: nn.Module, prefix: str, consumers: Consumers) -> ChannelGroups:
    """Groups of mmpretrain's VisionTransformer, DeiT, DeiT III, DINOv2, BEiT and EVA-02."""
    network = model.get_submodule(prefix.rstrip('.'))
    stream = _embedding(model, prefix, 'embedding', network.embed_dims)
    blocks = [f'{prefix}layers.{i}' for i in range(len(network.layers))]
    widths, ends = [], []
    for name in blocks:
        groups, end = add_block(model, stream, name, block)
        widths += groups
        ends.append(end)
    stream.add('norm', f'{prefix}ln1', f'{prefix}ln2')
    if getattr(network, 'rel_pos_bias', None) is not None:
        # One table of positions for the heads of all layers.
        widths = [group for group in widths if group.kind != 'heads']
    depth = DepthGroup(f'{prefix}layers', tuple(blocks), tuple(ends))
    return ChannelGroups((*stream.groups(consumers), *widths), (depth,))


def _merged(stream: Stream, name: str, merging: nn.Module) -> Stream:
    """The stream after four patches have become one."""
    after = Stream(stream.model, name, merging.reduction.out_features)
    stream.add('in', f'{name}.reduction', repeats=4)
    if getattr(merging, 'use_post_norm', False):
        after.add('norm', f'{name}.norm')
    else:
        stream.add('norm', f'{name}.norm', repeats=4)
    after.add('out', f'{name}.reduction')
    return after


def swin_groups(
    block: Block, model: nn.Module, prefix: str, consumers: Consumers
) -> ChannelGroups:
    """Groups of mmpretrain's SwinTransformer and SwinTransformerV2, whose stages merge first."""
    network = model.get_submodule(prefix.rstrip('.'))
    is_second = isinstance(network, SwinTransformerV2)
    stream = _embedding(model, prefix, 'patch_embed', network.embed_dims)
    widths, depths, streams = [], [], []
    for i, stage in enumerate(network.stages):
        name = f'{prefix}stages.{i}'
        if is_second and stage.downsample is not None:
            stream = _merged(stream, f'{name}.downsample', stage.downsample)
        removable = {}
        for j, module in enumerate(stage.blocks):
            groups, ends = add_block(model, stream, f'{name}.blocks.{j}', block)
            widths += groups
            if not getattr(module, 'extra_norm', False):
                removable[f'{name}.blocks.{j}'] = ends
        if removable:
            depths.append(DepthGroup(name, tuple(removable), tuple(removable.values())))
        stream.add('norm', f'{prefix}norm{i}')
        after = consumers if i == len(network.stages) - 1 else ()
        count = (prefix.rstrip('.'), f'num_features.{i}', 1)
        if is_second:
            count = (name, 'out_channels', 1)
        streams.append((stream, after if i in network.out_indices else None, count))
        if not is_second and stage.downsample is not None:
            stream = _merged(stream, f'{name}.downsample', stage.downsample)
    for stream, after, count in streams:
        widths += stream.groups(after, count)
    return ChannelGroups(tuple(widths), tuple(depths))


def _expanded(name: str, stream: Stream, after: Stream, hidden: int) -> ChannelGroup:
    """TinyViT's 1x1, depthwise and 1x1 convolution from a stream to one: its hidden width."""
    stream.add('in', f'{name}.conv1.conv2d')
    after.add('out', f'{name}.conv3.conv2d')
    after.add('through', f'{name}.conv3.bn2d')
    inside = Stream(stream.model, name, hidden)
    inside.add('out', f'{name}.conv1.conv2d')
    inside.add('through', f'{name}.conv1.bn2d', f'{name}.conv2.conv2d', f'{name}.conv2.bn2d')
    inside.add('in', f'{name}.conv3.conv2d')
    return ChannelGroup(name, hidden, tuple(inside.members))


def tiny_vit_groups(model: nn.Module, prefix: str, consumers: Consumers) -> ChannelGroups:
    """Groups of mmpretrain's TinyViT; its blocks cannot go: a convolution has no shortcut."""
    network = model.get_submodule(prefix.rstrip('.'))
    stem = f'{prefix}patch_embed.seq'
    inside = Stream(model, f'{stem}.0', network.patch_embed.seq[0].conv2d.out_channels)
    inside.add('out', f'{stem}.0.conv2d')
    inside.add('through', f'{stem}.0.bn2d')
    inside.add('in', f'{stem}.2.conv2d')
    widths = [ChannelGroup(inside.name, inside.size, tuple(inside.members))]
    stream = Stream(model, f'{stem}.2', network.channels[0])
    stream.add('out', f'{stem}.2.conv2d')
    stream.add('through', f'{stem}.2.bn2d')
    for i, stage in enumerate(network.stages):
        name = f'{prefix}stages.{i}'
        for j, module in enumerate(stage.blocks):
            if hasattr(module, 'attn'):
                widths += add_block(model, stream, f'{name}.blocks.{j}', TINY_VIT)[0]
            else:
                hidden = module.conv1.conv2d.out_channels
                widths.append(_expanded(f'{name}.blocks.{j}', stream, stream, hidden))
        if stage.downsample is not None:
            size = stage.downsample.conv3.conv2d.out_channels
            after = Stream(model, f'{name}.downsample.conv3', size)
            hidden = stage.downsample.conv1.conv2d.out_channels
            widths.append(_expanded(f'{name}.downsample', stream, after, hidden))
            # What leaves the network is what is handed on.
            widths += stream.groups(() if i - 1 in network.out_indices else None)
            stream = after
        stream.add('norm', f'{prefix}norm{i}')
    return ChannelGroups((*widths, *stream.groups(consumers)))


def mvit_groups(model: nn.Module, prefix: str, consumers: Consumers) -> ChannelGroups:
    """Groups of mmpretrain's MViT; blocks that pool or get wider cannot go."""
    network = model.get_submodule(prefix.rstrip('.'))
    stream = _embedding(model, prefix, 'embedding', network.embed_dims)
    widths, streams = [], [stream]
    outputs: dict[int, Consumers] = {}
    removable: dict[str, tuple[str, ...]] = {}
    for i, block in enumerate(network.blocks):
        name, inside, after = f'{prefix}blocks.{i}', stream, stream
        if block.proj is not None:
            after = Stream(model, name, block.out_dims)
            stream.add('in', f'{name}.proj')
            after.add('out', f'{name}.proj')
            streams.append(after)
            if block.dim_mul_in_attention:
                inside = after
        groups, ends = add_block(model, stream, name, MVIT, inside, after)
        widths += groups
        if after is stream and block.pool_skip is None:
            removable[name] = ends
        stream = after
        scale = network.stage_indices.get(i)
        stream.add('norm', f'{prefix}norm{scale}')
        if scale in network.out_scales:
            outputs[len(streams)] = consumers if i == len(network.blocks) - 1 else ()
    for position, stream in enumerate(streams, start=1):
        widths += stream.groups(outputs.get(position))
    depth = DepthGroup(f'{prefix}blocks', tuple(removable), tuple(removable.values()))
    return ChannelGroups(tuple(widths), (depth,) if removable else ())
