"""Channel groups of transformers, declared by hand: tracing does not see through attention.

A grouper takes a model, the prefix of the transformer's names in it (as ``backbone.``), and the
names of the layers that use its last output: empty where these are unknown, so that the width of
the output has to stay, and None where there is nothing after it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from mmpretrain.models.utils import MultiheadAttention, WindowMSA
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from mmscale.errors import UsageError
from mmscale.models.dms.groups import ChannelGroup, ChannelGroups, DepthGroup, Member, runs, slots
from mmscale.models.dms.layers import input_dimension

Consumers = tuple[str, ...] | None


class _Stream:
    """A residual stream, its width gathered member by member."""

    def __init__(self, model: nn.Module, name: str, size: int, prefix: str) -> None:
        self.model = model
        self.name = name
        self.size = size
        self.prefix = prefix
        self.members: list[Member] = []

    def add(self, role: str, *names: str, repeats: int = 1) -> None:
        """Adds layers; those that the model has not, or only as Identity, are left out."""
        for name in names:
            layer = self.model
            for part in f'{self.prefix}{name}'.split('.'):
                layer = getattr(layer, part, None)
            if isinstance(getattr(layer, 'weight', None), torch.Tensor):
                indices = runs(self.size, repeats)
                self.members.append(Member(f'{self.prefix}{name}', role, indices))

    def add_parameters(self, *names: str) -> None:
        """Adds parameters of the network itself that hold the stream in their last dimension."""
        network = self.model.get_submodule(self.prefix.rstrip('.'))
        for name in names:
            if isinstance(getattr(network, name, None), nn.Parameter):
                member = Member(f'{self.prefix}{name}', 'through', runs(self.size), dim=-1)
                self.members.append(member)

    def groups(self, consumers: Consumers, *counts: tuple[str, str, int]) -> list[ChannelGroup]:
        """The stream as a group, or none if unknown layers use it."""
        if consumers == ():
            return []
        after = [Member(name, 'in', runs(self.size)) for name in consumers or ()]
        members = (*self.members, *after)
        return [ChannelGroup(self.name, self.size, members, 'embedding', counts)]


def _fused_attention(name: str, attention: nn.Module, size: int) -> list[ChannelGroup]:
    """Heads and their size, of attention with one linear layer for queries, keys and values."""
    heads = attention.num_heads
    rows = np.arange(3 * heads * size).reshape(3, heads, size)
    head = [
        Member(f'{name}.qkv', 'out', rows.transpose(1, 0, 2).reshape(heads, -1)),
        Member(f'{name}.proj', 'in', rows[0]),
    ]
    if hasattr(attention, 'relative_position_bias_table'):
        table = f'{name}.relative_position_bias_table'
        head.append(Member(table, 'through', runs(heads), dim=-1))
    places = (
        # Queries are masked for their product with keys, and values where they are used.
        Member(f'{name}.qkv', 'out', rows[0].T, masks_output=True),
        Member(f'{name}.qkv', 'out', rows[1:].transpose(2, 0, 1).reshape(size, -1)),
        Member(f'{name}.proj', 'in', rows[0].T),
    )
    return [
        ChannelGroup(f'{name}.heads', heads, tuple(head), 'heads', ((name, 'num_heads', 1),)),
        ChannelGroup(f'{name}.head_size', size, places, 'head_size', ((name, 'head_dims', 1),)),
    ]


def _hidden(model: nn.Module, name: str, makers: Iterable[str], consumer: str) -> ChannelGroup:
    """Hidden width of an MLP, whose consumer is a linear layer."""
    size = input_dimension(model.get_submodule(f'{name}.{consumer}'))[1]
    members = [Member(f'{name}.{maker}', 'out', runs(size)) for maker in makers]
    return ChannelGroup(name, size, (*members, Member(f'{name}.{consumer}', 'in', runs(size))))


def _mlp(model: nn.Module, name: str) -> tuple[list[ChannelGroup], str, str]:
    """Hidden widths of an MLP of mmpretrain, and the names of its first and last linear layer."""
    mlp = model.get_submodule(name)
    if hasattr(mlp, 'w12'):  # SwiGLU
        size = mlp.w3.in_features
        members = [Member(f'{name}.w12', 'out', slots(size, 2))]
        if isinstance(mlp.norm, nn.LayerNorm):
            members.append(Member(f'{name}.norm', 'norm', runs(size)))
        members.append(Member(f'{name}.w3', 'in', runs(size)))
        return [ChannelGroup(name, size, tuple(members))], f'{name}.w12', f'{name}.w3'
    count = mlp.num_fcs - 1
    layers = [*(f'{i}.0' for i in range(count)), str(count)]
    name = f'{name}.layers'
    groups = []
    for i, (maker, consumer) in enumerate(pairwise(layers)):
        group = _hidden(model, name, (maker,), consumer)
        groups.append(replace(group, name=f'{name}.{i}') if i else group)
    return groups, f'{name}.{layers[0]}', f'{name}.{layers[-1]}'


def vit_groups(model: nn.Module, prefix: str, consumers: Consumers) -> ChannelGroups:
    """Groups of mmpretrain's VisionTransformer, DeiT, DeiT III, DINOv2 and EVA-02.

    Heads of EVA-02 keep their size, whose places a rotary embedding turns.
    """
    network = model.get_submodule(prefix.rstrip('.'))
    stream = _Stream(model, f'{prefix}embedding', network.embed_dims, prefix)
    stream.add('out', 'patch_embed.projection')
    stream.add_parameters('cls_token', 'dist_token', 'pos_embed')
    stream.add('norm', 'patch_embed.norm', 'pre_norm')
    widths, blocks, ends = [], [], []
    for i, layer in enumerate(network.layers):
        name = f'layers.{i}'
        norms = [norm for norm in ('ln1', 'ln2', 'norm1', 'norm2') if norm in layer._modules]
        mlp = f'{name}.{"ffn" if hasattr(layer, "ffn") else "mlp"}'
        hidden, first, last = _mlp(model, f'{prefix}{mlp}')
        stream.add('norm', *(f'{name}.{norm}' for norm in norms))
        stream.add('in', f'{name}.attn.qkv', first.removeprefix(prefix))
        stream.add('out', f'{name}.attn.proj', last.removeprefix(prefix))
        stream.add('through', f'{name}.attn.gamma1', f'{mlp}.gamma2')
        heads, size = _fused_attention(f'{prefix}{name}.attn', layer.attn, layer.attn.head_dims)
        widths += [heads, *hidden] if getattr(layer.attn, 'rope', None) else [heads, size, *hidden]
        blocks.append(f'{prefix}{name}')
        ends.append((f'{prefix}{name}.attn.proj', last))
    stream.add('norm', 'ln1', 'ln2')
    depth = DepthGroup(f'{prefix}layers', tuple(blocks), tuple(ends))
    return ChannelGroups((*stream.groups(consumers), *widths), (depth,))


def swin_groups(model: nn.Module, prefix: str, consumers: Consumers) -> ChannelGroups:
    """Groups of mmpretrain's SwinTransformer."""
    network = model.get_submodule(prefix.rstrip('.'))
    widths: list[ChannelGroup] = []
    depths = []
    size = network.embed_dims
    stream = _Stream(model, f'{prefix}patch_embed', size, prefix)
    stream.add('out', 'patch_embed.projection')
    stream.add('norm', 'patch_embed.norm')
    stream.add_parameters('absolute_pos_embed')
    last = len(network.stages) - 1
    for i, stage in enumerate(network.stages):
        blocks, ends = [], []
        for j, block in enumerate(stage.blocks):
            name = f'stages.{i}.blocks.{j}'
            attention = f'{name}.attn.w_msa'
            stream.add('norm', f'{name}.norm1', f'{name}.norm2')
            hidden, first, end = _mlp(model, f'{prefix}{name}.ffn')
            stream.add('in', f'{attention}.qkv', first.removeprefix(prefix))
            stream.add('out', f'{attention}.proj', end.removeprefix(prefix))
            heads = block.attn.w_msa
            widths += _fused_attention(f'{prefix}{attention}', heads, size // heads.num_heads)
            widths += hidden
            blocks.append(f'{prefix}{name}')
            ends.append((f'{prefix}{attention}.proj', end))
        depths.append(DepthGroup(f'{prefix}stages.{i}', tuple(blocks), tuple(ends)))
        stream.add('norm', f'norm{i}')
        after: Consumers = None
        if i in network.out_indices:
            after = consumers if i == last else ()
        merging = stage.downsample
        if merging is not None:
            stream.add('norm', f'stages.{i}.downsample.norm', repeats=4)
            stream.add('in', f'stages.{i}.downsample.reduction', repeats=4)
        count = (prefix.rstrip('.'), f'num_features.{i}', 1)
        widths += stream.groups(after, count)
        if merging is not None:
            size = merging.reduction.out_features
            stream = _Stream(model, f'{prefix}stages.{i}.downsample', size, prefix)
            stream.add('out', f'stages.{i}.downsample.reduction')
    return ChannelGroups(tuple(widths), tuple(depths))


def llama_groups(model: nn.Module, prefix: str, consumers: Consumers) -> ChannelGroups:
    """Groups of transformers' LlamaForCausalLM and its relatives, Mistral and Qwen2 and Qwen3.

    Heads are those of keys and values with the queries that share them. Elements of the head
    size are the pairs that the rotary embedding turns, which all layers share.
    """
    del consumers
    config = model.get_submodule(prefix.rstrip('.')).config
    stream = _Stream(model, f'{prefix}embedding', config.hidden_size, prefix)
    stream.add('out', 'model.embed_tokens')
    heads, shared = config.num_key_value_heads, config.num_attention_heads
    size = model.get_submodule(f'{prefix}model.layers.0.self_attn').head_dim
    queries = np.arange(shared * size).reshape(heads, -1)
    keys = np.arange(heads * size).reshape(heads, size)
    pairs = {rows: np.arange(rows * size).reshape(rows, 2, -1) for rows in (1, heads, shared)}
    pairs = {
        rows: index.transpose(2, 0, 1).reshape(size // 2, -1) for rows, index in pairs.items()
    }
    frequencies = f'{prefix}model.rotary_emb.inv_freq'
    places = [Member(frequencies, 'through', runs(size // 2), dim=-1)]
    widths, blocks, ends, counts = [], [], [], []
    for i in range(len(model.get_submodule(f'{prefix}model.layers'))):
        name = f'model.layers.{i}'
        attention, mlp = f'{name}.self_attn', f'{name}.mlp'
        stream.add('norm', f'{name}.input_layernorm', f'{name}.post_attention_layernorm')
        stream.add('in', *(f'{attention}.{part}_proj' for part in 'qkv'))
        stream.add('in', f'{mlp}.gate_proj', f'{mlp}.up_proj')
        stream.add('out', f'{attention}.o_proj', f'{mlp}.down_proj')
        attention = f'{prefix}{attention}'
        head = [
            Member(f'{attention}.q_proj', 'out', queries),
            Member(f'{attention}.k_proj', 'out', keys),
            Member(f'{attention}.v_proj', 'out', keys),
            Member(f'{attention}.o_proj', 'in', queries),
        ]
        widths.append(ChannelGroup(f'{attention}.heads', heads, tuple(head), 'heads'))
        places += [
            Member(f'{attention}.q_proj', 'out', pairs[shared], masks_output=True),
            Member(f'{attention}.k_proj', 'out', pairs[heads]),
            Member(f'{attention}.v_proj', 'out', pairs[heads]),
            Member(f'{attention}.o_proj', 'in', pairs[shared]),
            *(
                Member(f'{attention}.{norm}', 'norm', pairs[1])
                for norm in ('q_norm', 'k_norm')
                if hasattr(model.get_submodule(attention), norm)
            ),
        ]
        counts.append((attention, 'head_dim', 2))
        widths.append(_hidden(model, f'{prefix}{mlp}', ('gate_proj', 'up_proj'), 'down_proj'))
        blocks.append(f'{prefix}{name}')
        ends.append((f'{attention}.o_proj', f'{prefix}{mlp}.down_proj'))
    stream.add('norm', 'model.norm')
    stream.add('in', 'lm_head')
    head_size = ChannelGroup(
        f'{prefix}head_size', size // 2, tuple(places), 'head_size', tuple(counts)
    )
    depth = DepthGroup(f'{prefix}model.layers', tuple(blocks), tuple(ends))
    return ChannelGroups((*stream.groups(None), head_size, *widths), (depth,))


def gpt2_groups(model: nn.Module, prefix: str, consumers: Consumers) -> ChannelGroups:
    """Groups of transformers' GPT2LMHeadModel; heads keep their size, which sets their scale."""
    del consumers
    config = model.get_submodule(prefix.rstrip('.')).config
    stream = _Stream(model, f'{prefix}embedding', config.n_embd, prefix)
    stream.add('out', 'transformer.wte', 'transformer.wpe')
    heads = config.n_head
    rows = np.arange(3 * config.n_embd).reshape(3, heads, -1)
    widths, blocks, ends = [], [], []
    for i in range(config.n_layer):
        name = f'transformer.h.{i}'
        stream.add('norm', f'{name}.ln_1', f'{name}.ln_2')
        stream.add('in', f'{name}.attn.c_attn', f'{name}.mlp.c_fc')
        stream.add('out', f'{name}.attn.c_proj', f'{name}.mlp.c_proj')
        attention = f'{prefix}{name}.attn'
        head = (
            Member(f'{attention}.c_attn', 'out', rows.transpose(1, 0, 2).reshape(heads, -1)),
            Member(f'{attention}.c_proj', 'in', rows[0]),
        )
        count = (attention, 'num_heads', 1)
        widths.append(ChannelGroup(f'{attention}.heads', heads, head, 'heads', (count,)))
        widths.append(_hidden(model, f'{prefix}{name}.mlp', ('c_fc',), 'c_proj'))
        blocks.append(f'{prefix}{name}')
        ends.append((f'{attention}.c_proj', f'{prefix}{name}.mlp.c_proj'))
    stream.add('norm', 'transformer.ln_f')
    stream.add('in', 'lm_head')
    depth = DepthGroup(f'{prefix}transformer.h', tuple(blocks), tuple(ends))
    return ChannelGroups((*stream.groups(None), *widths), (depth,))


class PrunedWindowMSA(WindowMSA):
    """Window attention with heads that do not share out the embedding among them."""

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Maps (windows, N, C) to the same shape, with a mask of (windows per image, N, N)."""
        windows, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(windows, tokens, 3, self.num_heads, self.head_dims)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        table = self.relative_position_bias_table[self.relative_position_index.view(-1)]
        bias = table.view(tokens, tokens, -1).permute(2, 0, 1)
        scores = (query * self.scale) @ key.transpose(-2, -1) + bias
        if mask is not None:
            scores = scores.unflatten(0, (-1, len(mask))) + mask.unsqueeze(1)
            scores = scores.flatten(0, 1)
        result = self.attn_drop(self.softmax(scores)) @ value
        result = result.transpose(1, 2).reshape(windows, tokens, -1)
        return self.proj_drop(self.proj(result))


def set_counts(module: nn.Module, counts: dict[str, int]) -> None:
    """Sets attributes that hold numbers of heads or channels, and what follows from them.

    The scale of attention stays what it was, so that outputs do.

    Raises:
        ValueError: An attribute is no such number of the module.
    """
    if isinstance(module, WindowMSA):
        module.__class__ = PrunedWindowMSA
    elif (
        isinstance(module, MultiheadAttention)
        and module.scaled_dot_product_attention is scaled_dot_product_attention
    ):
        module.scaled_dot_product_attention = partial(
            scaled_dot_product_attention, scale=module.head_dims**-0.5
        )
    for attribute, value in counts.items():
        name, _, index = attribute.partition('.')
        # A class that takes over may have numbers that the original had not.
        if not isinstance(getattr(module, name, 0), int if not index else list | tuple):
            raise UsageError(f'{attribute} is not a number of {type(module).__name__}')
        if index:
            getattr(module, name)[int(index)] = value
        else:
            setattr(module, name, value)
    if isinstance(module, (WindowMSA, MultiheadAttention)):
        module.head_dims = module.qkv.out_features // 3 // module.num_heads
        if isinstance(module, MultiheadAttention):
            module.embed_dims = module.num_heads * module.head_dims
    elif hasattr(module, 'split_size'):  # GPT2Attention
        module.embed_dim = module.split_size = module.num_heads * module.head_dim


# By module and name of the class: transformers is an optional requirement.
GROUPERS = {
    'mmpretrain.models.backbones.vision_transformer.VisionTransformer': vit_groups,
    'mmpretrain.models.backbones.swin_transformer.SwinTransformer': swin_groups,
    'transformers.models.llama.modeling_llama.LlamaForCausalLM': llama_groups,
    'transformers.models.mistral.modeling_mistral.MistralForCausalLM': llama_groups,
    'transformers.models.qwen2.modeling_qwen2.Qwen2ForCausalLM': llama_groups,
    'transformers.models.qwen3.modeling_qwen3.Qwen3ForCausalLM': llama_groups,
    'transformers.models.gpt2.modeling_gpt2.GPT2LMHeadModel': gpt2_groups,
}

# Blocks whose caller takes the first of what they return.
TUPLE_BLOCKS = ('transformers.models.gpt2.modeling_gpt2.GPT2Block',)


def full_name(cls: type) -> str:
    """Name of a class with its module."""
    return f'{cls.__module__}.{cls.__qualname__}'
