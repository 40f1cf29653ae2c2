"""Groupers of transformers' language models: a few lines each name their parts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from mmscale.errors import UsageError
from mmscale.models.dms.groups import ChannelGroup, ChannelGroups, DepthGroup, Member, runs
from mmscale.models.dms.layers import output_dimension
from mmscale.models.dms.transformers.parts import (
    MLP,
    Attention,
    Consumers,
    Stream,
    hidden_width,
    mlp_of,
    places,
)


@dataclass(frozen=True)
class Decoder:
    """Names of the parts of a causal language model.

    Attributes:
        blocks: List of its blocks.
        embeddings: Layers that make the residual stream.
        norms: Norm layers of a block, in it.
        attention: Attention of a block, in it.
        projections: Layers of queries, keys and values in the attention, or the one for all.
        output: Layer after attention, in it.
        mlp: MLP of a block, in it; empty where its layers lie in the block.
        last_norm: Norm layer after the blocks.
        head: Layer that predicts.
        rotary: Rotary embedding that all blocks share, if there is one.
        by_head: Whether the one layer for all makes queries, keys and values head by head.
        counts: Attributes of attention: numbers of heads, size of queries and keys.
    """

    blocks: str
    embeddings: tuple[str, ...]
    norms: tuple[str, ...]
    attention: str
    projections: tuple[str, ...]
    output: str
    mlp: str
    last_norm: str
    head: str = 'lm_head'
    rotary: str | None = None
    by_head: bool = False
    counts: tuple[str | None, str] = ('num_heads', 'head_dim')


LLAMA = Decoder(
    blocks='model.layers',
    embeddings=('model.embed_tokens',),
    norms=('input_layernorm', 'post_attention_layernorm'),
    attention='self_attn',
    projections=('q_proj', 'k_proj', 'v_proj'),
    output='o_proj',
    mlp='mlp',
    last_norm='model.norm',
    rotary='model.rotary_emb',
    counts=(None, 'head_dim'),
)
GPT2 = Decoder(
    blocks='transformer.h',
    embeddings=('transformer.wte', 'transformer.wpe'),
    norms=('ln_1', 'ln_2'),
    attention='attn',
    projections=('c_attn',),
    output='c_proj',
    mlp='mlp',
    last_norm='transformer.ln_f',
)
GPT_NEOX = Decoder(
    blocks='gpt_neox.layers',
    embeddings=('gpt_neox.embed_in',),
    norms=('input_layernorm', 'post_attention_layernorm'),
    attention='attention',
    projections=('query_key_value',),
    output='dense',
    mlp='mlp',
    last_norm='gpt_neox.final_layer_norm',
    head='embed_out',
    rotary='gpt_neox.rotary_emb',
    by_head=True,
    counts=('num_heads', 'rotary_ndims'),
)
OPT = Decoder(
    blocks='model.decoder.layers',
    embeddings=('model.decoder.embed_tokens', 'model.decoder.embed_positions'),
    norms=('self_attn_layer_norm', 'final_layer_norm'),
    attention='self_attn',
    projections=('q_proj', 'k_proj', 'v_proj'),
    output='out_proj',
    mlp='',
    last_norm='model.decoder.final_layer_norm',
)


def decoder_groups(
    decoder: Decoder, model: nn.Module, prefix: str, consumers: Consumers
) -> ChannelGroups:
    """Groups of a causal language model.

    Pairs of places that a rotary embedding turns together are elements which all blocks share,
    as their attention takes the same angles; those that it leaves are each block's own.
    """
    del consumers
    network = model.get_submodule(prefix.rstrip('.'))
    blocks = f'{prefix}{decoder.blocks}'
    names = [f'{blocks}.{i}' for i in range(len(model.get_submodule(blocks)))]
    output = f'{names[0]}.{decoder.attention}.{decoder.output}'
    size = output_dimension(model.get_submodule(output))[1]
    stream = Stream(model, f'{prefix}embedding', size)
    stream.add('out', *(f'{prefix}{name}' for name in decoder.embeddings))
    widths: list[ChannelGroup] = []
    ends, turned, counts = [], [], []
    for name in names:
        attention = _attention(decoder, model, f'{name}.{decoder.attention}', network.config)
        mlp = _mlp(decoder, model, name)
        stream.add('norm', *(f'{name}.{norm}' for norm in decoder.norms))
        inputs = (attention.query[0], attention.key[0], attention.value[0])
        stream.add('in', *dict.fromkeys(inputs), *mlp.firsts)
        stream.add('out', attention.output[0], mlp.last)
        heads, place = decoder.counts
        widths.append(attention.heads(count=heads))
        if decoder.rotary is None:
            widths.append(attention.query_size(count=place))
        else:
            share = 2 * model.get_submodule(f'{prefix}{decoder.rotary}').inv_freq.numel()
            turned += attention.turned_members(slice(share))
            turned += _norms(model, attention)
            counts.append((attention.name, place, 2))
            if attention.query[1].shape[-1] > share:
                widths.append(attention.query_size(count='pass_dims', some=slice(share, None)))
        widths += [attention.value_size(count='value_dim'), *mlp.groups]
        ends.append((attention.output[0], mlp.last))
    stream.add('norm', f'{prefix}{decoder.last_norm}')
    stream.add('in', f'{prefix}{decoder.head}')
    if decoder.rotary is not None:
        pairs = len(turned[0].indices)
        angles = f'{prefix}{decoder.rotary}.inv_freq'
        members = (Member(angles, 'through', runs(pairs), dim=-1), *turned)
        widths.append(ChannelGroup(f'{prefix}qk_size', pairs, members, 'qk_size', tuple(counts)))
    depth = DepthGroup(blocks, tuple(names), tuple(ends))
    return ChannelGroups((*stream.groups(None), *widths), (depth,))


def _attention(decoder: Decoder, model: nn.Module, name: str, config: object) -> Attention:
    module = model.get_submodule(name)
    if len(decoder.projections) == 1:
        heads = getattr(module, 'num_heads', config.num_attention_heads)
        (layer,) = decoder.projections
        return Attention.fused(model, name, heads, layer, decoder.output, decoder.by_head)
    keys = model.get_submodule(f'{name}.{decoder.projections[1]}')
    heads = keys.out_features // module.head_dim
    output = f'{name}.{decoder.output}'
    return Attention.separate(model, name, heads, decoder.projections, output)


def _mlp(decoder: Decoder, model: nn.Module, name: str) -> MLP:
    if decoder.mlp:
        return mlp_of(model, f'{name}.{decoder.mlp}')
    return mlp_of(model, name, f'{name}.mlp')


def _norms(model: nn.Module, attention: Attention) -> list[Member]:
    """Norms of queries and keys, which Qwen3 has."""
    indices = places(np.arange(attention.key[1].shape[-1]), turned=True)
    return [
        Member(f'{attention.name}.{norm}', 'norm', indices)
        for norm in ('q_norm', 'k_norm')
        if norm in model.get_submodule(attention.name)._modules
    ]


def opt_groups(model: nn.Module, prefix: str, consumers: Consumers) -> ChannelGroups:
    """Groups of transformers' OPTForCausalLM.

    Embeddings of another width have projections to that of the stream; blocks with norms after
    their branches cannot go.
    """
    network = model.get_submodule(prefix.rstrip('.'))
    decoder = OPT
    if network.model.decoder.project_in is not None:
        decoder = replace(
            OPT,
            embeddings=('model.decoder.project_in', OPT.embeddings[1]),
            head='model.decoder.project_out',
        )
    groups = decoder_groups(decoder, model, prefix, consumers)
    return groups if network.config.do_layer_norm_before else ChannelGroups(groups.widths)


def encoder_groups(model: nn.Module, prefix: str, consumers: Consumers) -> ChannelGroups:
    """Groups of transformers' BertModel and RobertaModel; norms after branches keep the blocks.

    Raises:
        UsageError: Its attention looks at relative positions, or at another sequence.
    """
    network = model.get_submodule(prefix.rstrip('.'))
    config = network.config
    if config.is_decoder or getattr(config, 'position_embedding_type', 'absolute') != 'absolute':
        raise UsageError(f'{type(network).__name__}: attention of this kind is not declared')
    stream = Stream(model, f'{prefix}embedding', config.hidden_size)
    tables = ('word_embeddings', 'position_embeddings', 'token_type_embeddings')
    stream.add('out', *(f'{prefix}embeddings.{table}' for table in tables))
    stream.add('norm', f'{prefix}embeddings.LayerNorm')
    widths: list[ChannelGroup] = []
    for i, layer in enumerate(network.encoder.layer):
        name = f'{prefix}encoder.layer.{i}'
        attention = Attention.separate(
            model,
            f'{name}.attention.self',
            layer.attention.self.num_attention_heads,
            ('query', 'key', 'value'),
            f'{name}.attention.output.dense',
        )
        first, last = f'{name}.intermediate.dense', f'{name}.output.dense'
        stream.add('in', attention.query[0], attention.key[0], attention.value[0], first)
        stream.add('out', attention.output[0], last)
        stream.add('norm', f'{name}.attention.output.LayerNorm', f'{name}.output.LayerNorm')
        widths += [
            attention.heads(count='num_attention_heads'),
            attention.query_size(count='attention_head_size'),
            attention.value_size(count='value_dim'),
            hidden_width(model, f'{name}.mlp', (first,), last),
        ]
    stream.add('in', f'{prefix}pooler.dense')
    return ChannelGroups((*stream.groups(consumers), *widths))
