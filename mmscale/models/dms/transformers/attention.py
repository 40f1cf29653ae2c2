"""Attention whose queries and keys may have another size than its values."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from mmpretrain.models.backbones.mvit import MultiScaleAttention
from mmpretrain.models.backbones.vit_eva02 import AttentionWithRoPE
from mmpretrain.models.utils import BEiTAttention, MultiheadAttention, WindowMSA, WindowMSAV2
from mmpretrain.models.utils.attention import LeAttention
from torch import nn
from torch.nn.functional import normalize, scaled_dot_product_attention

from mmscale.errors import UsageError

# Where exp of the scale of Swin V2's cosine attention ends.
_LARGEST_SCALE = 100.0


def full_name(cls: type) -> str:
    """Name of a class with its module."""
    return f'{cls.__module__}.{cls.__qualname__}'


def _split(
    module: nn.Module, qkv: torch.Tensor, inner: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values of shape (N, heads, length, size), one after the other in `qkv`.

    Args:
        module: Has ``num_heads``.
        qkv: Of shape (N, length, channels).
        inner: Channels of all values.
    """
    keys = (qkv.shape[-1] - inner) // 2
    parts = qkv.split([keys, keys, inner], dim=-1)
    return tuple(part.unflatten(-1, (module.num_heads, -1)).transpose(1, 2) for part in parts)


def _relative_bias(module: nn.Module, table: torch.Tensor) -> torch.Tensor:
    """Biases of scores by relative position, shape (heads, length, length)."""
    index = module.relative_position_index
    return table[index.view(-1)].view(*index.shape, -1).permute(2, 0, 1)


def _output(module: nn.Module, scores: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """What attention gives for scores, through its last layer."""
    result = module.attn_drop(scores.softmax(dim=-1).type_as(value)) @ value
    return module.proj_drop(module.proj(result.transpose(1, 2).flatten(2)))


class PrunedMultiheadAttention(MultiheadAttention):
    """mmpretrain's attention with sizes of its own for queries and keys, and for values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (N, length, C) to the same shape."""
        query, key, value = _split(self, self.qkv(x), self.proj.in_features)
        drop = self.attn_drop if self.training else 0.0
        result = self.scaled_dot_product_attention(query, key, value, dropout_p=drop)
        result = self.proj(result.transpose(1, 2).flatten(2))
        result = self.out_drop(self.gamma1(self.proj_drop(result)))
        return value.squeeze(1) + result if self.v_shortcut else result


class PrunedWindowMSA(WindowMSA):
    """Swin's attention with sizes of its own for queries and keys, and for values."""

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Maps (windows, N, C) to the same shape, with a mask of (windows per image, N, N)."""
        query, key, value = _split(self, self.qkv(x), self.proj.in_features)
        scores = (query * self.scale) @ key.transpose(-2, -1)
        scores = scores + _relative_bias(self, self.relative_position_bias_table)
        return _output(self, _masked(scores, mask), value)


def _masked(scores: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Scores of windows plus a mask of those of an image."""
    if mask is None:
        return scores
    return (scores.unflatten(0, (-1, len(mask))) + mask.unsqueeze(1)).flatten(0, 1)


def _layered_qkv(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What the layer for queries, keys and values gives, with biases that lie beside it."""
    qkv = module.qkv(x)
    if module.q_bias is None:
        return qkv
    return qkv + torch.cat((module.q_bias, torch.zeros_like(module.q_bias), module.v_bias))


class LayeredWindowMSAV2(WindowMSAV2):
    """Swin V2's attention, which calls its layer; values may have a size of their own."""

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Maps (windows, N, C) to the same shape, with a mask of (windows per image, N, N)."""
        query, key, value = _split(self, _layered_qkv(self, x), self.proj.in_features)
        scores = normalize(query, dim=-1) @ normalize(key, dim=-1).transpose(-2, -1)
        scores = scores * self.logit_scale.exp().clamp(max=_LARGEST_SCALE)
        table = self.cpb_mlp(self.relative_coords_table).flatten(0, -2)
        scores = scores + 16 * _relative_bias(self, table).sigmoid()
        return _output(self, _masked(scores, mask), value)


class LayeredBEiTAttention(BEiTAttention):
    """BEiT's attention, which calls its layer, with a size of its own for values."""

    def forward(self, x: torch.Tensor, rel_pos_bias: torch.Tensor | None = None) -> torch.Tensor:
        """Maps (N, length, C) to the same shape, with biases of (heads, length, length)."""
        qkv = _layered_qkv(self, x) if self.bias == 'qv_bias' else self.qkv(x)
        query, key, value = _split(self, qkv, self.proj.in_features)
        scores = (query * self.scale) @ key.transpose(-2, -1)
        if self.relative_position_bias_table is not None:
            scores = scores + _relative_bias(self, self.relative_position_bias_table)
        if rel_pos_bias is not None:
            scores = scores + rel_pos_bias
        return _output(self, scores, value)


class LayeredLeAttention(LeAttention):
    """TinyViT's attention, which looks its biases up when it runs: none at hand that get old."""

    def train(self, mode: bool = True) -> LayeredLeAttention:
        """Sets the mode, and no biases."""
        return nn.Module.train(self, mode)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (N, length, C) to the same shape."""
        parts = self.qkv(self.norm(x)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        query, key, value = parts.split([self.key_dim, self.key_dim, self.d], dim=-1)
        scores = query @ key.transpose(-2, -1) * self.scale
        scores = scores + self.attention_biases[:, self.attention_bias_idxs]
        return self.proj((scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2))


class PrunedAttentionWithRoPE(AttentionWithRoPE):
    """EVA-02's attention with a size of its own for values."""

    def forward(self, x: torch.Tensor, patch_resolution: tuple[int, int]) -> torch.Tensor:
        """Maps (N, length, C) to the same shape, for images of so many patches."""
        query, key, value = _split(self, self.qkv(x), self.proj.in_features)
        query, key = (self._turned(part, patch_resolution) for part in (query, key))
        return _output(self, (query * self.scale) @ key.transpose(-2, -1), value)

    def _turned(self, x: torch.Tensor, patch_resolution: tuple[int, int]) -> torch.Tensor:
        if not self.rope:
            return x
        first = int(self.with_cls_token)
        turned = self.rope(x[:, :, first:], patch_resolution)
        return torch.cat((x[:, :, :first], turned), dim=-2).type_as(x)


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    drop: float,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention as transformers runs it, of shape (N, length, channels), and its weights."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    kind = module.config._attn_implementation
    run = ALL_ATTENTION_FUNCTIONS['sdpa' if kind == 'eager' else kind]
    drop = drop if module.training else 0.0
    result, weights = run(module, query, key, value, mask, dropout=drop, **options)
    return result.flatten(2), weights


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turns the first places of heads, as many as there are angles: pairs of both halves."""
    turned, rest = x.split([cos.shape[-1], x.shape[-1] - cos.shape[-1]], dim=-1)
    one, other = turned.chunk(2, dim=-1)
    turned = turned * cos.unsqueeze(1) + torch.cat((-other, one), dim=-1) * sin.unsqueeze(1)
    return torch.cat((turned, rest), dim=-1)


class PrunedDecoderAttention(nn.Module):
    """Attention of LLaMA and its relatives, and of OPT, with a size of its own for values.

    It takes the place of transformers' class and has its attributes. What generates text one
    token at a time goes on to work.
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        cache_position: torch.Tensor | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Maps (N, length, C) to the same shape; the rest is as of transformers."""
        heads = self.k_proj.out_features // self.head_dim
        query, key = (
            layer(hidden_states).unflatten(-1, (-1, self.head_dim))
            for layer in (self.q_proj, self.k_proj)
        )
        value = self.v_proj(hidden_states).unflatten(-1, (heads, -1)).transpose(1, 2)
        if hasattr(self, 'q_norm'):
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = query.transpose(1, 2), key.transpose(1, 2)
        place = {'cache_position': cache_position}
        if position_embeddings is not None:
            cos, sin = position_embeddings
            query, key = _turned(query, cos, sin), _turned(key, cos, sin)
            place |= {'cos': cos, 'sin': sin}
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx, place)
        drop = getattr(self, 'attention_dropout', None)
        drop = self.dropout if drop is None else drop
        window = getattr(self, 'sliding_window', getattr(self.config, 'sliding_window', None))
        options |= {'scaling': self.scaling, 'sliding_window': window}
        result, weights = _attend(self, query, key, value, attention_mask, drop, **options)
        layer = self.o_proj if hasattr(self, 'o_proj') else self.out_proj
        return layer(result), weights


class PrunedGPT2Attention(nn.Module):
    """GPT-2's attention with a size of its own for values; in the place of transformers' class."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        past_key_values: Any = None,
        cache_position: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Maps (N, length, C) to the same shape; the rest is as of transformers."""
        inner = self.c_proj.weight.shape[0]
        query, key, value = _split(self, self.c_attn(hidden_states), inner)
        if past_key_values is not None:
            past = getattr(past_key_values, 'self_attention_cache', past_key_values)
            place = {'cache_position': cache_position}
            key, value = past.update(key, value, self.layer_idx, place)
        options = {'head_mask': options.get('head_mask'), 'scaling': self.scaling}
        drop = self.attn_dropout.p
        result, weights = _attend(self, query, key, value, attention_mask, drop, **options)
        return self.resid_dropout(self.c_proj(result)), weights


class PrunedGPTNeoXAttention(nn.Module):
    """GPT-NeoX's attention with a size of its own for values; in place of transformers' class."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        layer_past: Any = None,
        cache_position: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Maps (N, length, C) to the same shape; the rest is as of transformers."""
        rows = self.query_key_value(hidden_states).unflatten(-1, (self.num_heads, -1))
        values = self.dense.in_features // self.num_heads
        keys = (rows.shape[-1] - values) // 2
        query, key, value = rows.transpose(1, 2).split([keys, keys, values], dim=-1)
        cos, sin = position_embeddings
        query, key = _turned(query, cos, sin), _turned(key, cos, sin)
        if layer_past is not None:
            place = {'cos': cos, 'sin': sin, 'cache_position': cache_position}
            key, value = layer_past.update(key, value, self.layer_idx, place)
        options = {'head_mask': options.get('head_mask'), 'scaling': self.scaling}
        drop = self.attention_dropout
        result, weights = _attend(self, query, key, value, attention_mask, drop, **options)
        return self.dense(result), weights


class PrunedBertAttention(nn.Module):
    """BERT's attention with a size of its own for values; in the place of transformers' class."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *_: Any,
        **__: Any,
    ) -> tuple[torch.Tensor, None]:
        """Maps (N, length, C) to the channels of all values; the rest is as of transformers."""
        query, key, value = (
            layer(hidden_states).unflatten(-1, (self.num_attention_heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        drop = self.dropout.p if self.training else 0.0
        result = scaled_dot_product_attention(
            query, key, value, attention_mask, drop, scale=self.scaling
        )
        return result.transpose(1, 2).flatten(2), None


# Classes of mmpretrain, and of transformers by name, and those that take over when pruned.
_PRUNED = {
    BEiTAttention: LayeredBEiTAttention,
    LeAttention: LayeredLeAttention,
    MultiheadAttention: PrunedMultiheadAttention,
    WindowMSA: PrunedWindowMSA,
    WindowMSAV2: LayeredWindowMSAV2,
    AttentionWithRoPE: PrunedAttentionWithRoPE,
}
_PRUNED_BY_NAME = {
    'transformers.models.gpt2.modeling_gpt2.GPT2Attention': PrunedGPT2Attention,
    'transformers.models.gpt_neox.modeling_gpt_neox.GPTNeoXAttention': PrunedGPTNeoXAttention,
    **{
        f'transformers.models.{family.lower()}.modeling_{family.lower()}.{family}SelfAttention': (
            PrunedBertAttention
        )
        for family in ('Bert', 'Roberta')
    },
    **{
        f'transformers.models.{family.lower()}.modeling_{family.lower()}.{family}Attention': (
            PrunedDecoderAttention
        )
        for family in ('Llama', 'Mistral', 'OPT', 'Qwen2', 'Qwen3')
    },
}


# Those that masks need, too.
_LAYERED = (LayeredBEiTAttention, LayeredLeAttention, LayeredWindowMSAV2)


def layered(module: nn.Module) -> None:
    """Gives attention whose code hides layers or parameters from masks a class that does not."""
    if _PRUNED.get(type(module)) in _LAYERED:
        _take_over(module)


def _take_over(module: nn.Module) -> None:
    """Gives attention the class that runs with other sizes; it keeps the scale of its scores."""
    for base in type(module).__mro__:
        pruned = _PRUNED.get(base) or _PRUNED_BY_NAME.get(full_name(base))
        if pruned is None or isinstance(module, pruned):
            continue
        if (
            pruned is PrunedMultiheadAttention
            and module.scaled_dot_product_attention is scaled_dot_product_attention
        ):
            module.scaled_dot_product_attention = partial(
                scaled_dot_product_attention, scale=module.head_dims**-0.5
            )
        elif pruned is PrunedGPT2Attention:
            module.scaling = _gpt2_scale(module)
        elif pruned is PrunedBertAttention:
            module.scaling = module.attention_head_size**-0.5
        elif pruned is PrunedGPTNeoXAttention:
            module.num_heads = module.config.num_attention_heads
        elif pruned is LayeredLeAttention:
            module.__dict__.pop('ab', None)
        module.__class__ = pruned
        return


def _gpt2_scale(module: nn.Module) -> float:
    """The scale of GPT-2's scores, whose options transformers heeds in its eager code alone."""
    is_eager = module.config._attn_implementation == 'eager'
    scale = 1.0 if is_eager and not module.scale_attn_weights else module.head_dim**-0.5
    return (
        scale / (module.layer_idx + 1)
        if is_eager and module.scale_attn_by_inverse_layer_idx
        else scale
    )


def set_counts(module: nn.Module, counts: dict[str, int]) -> None:
    """Sets attributes that hold numbers of heads or channels, and what follows from them.

    The scale of attention stays what it was, so that outputs do.

    Raises:
        ValueError: An attribute is no such number of the module.
    """
    _take_over(module)
    for attribute, value in counts.items():
        name, _, index = attribute.partition('.')
        # A class that takes over may have numbers that the original had not.
        if not isinstance(getattr(module, name, 0), int if not index else list | tuple):
            raise UsageError(f'{attribute} is not a number of {type(module).__name__}')
        if index:
            getattr(module, name)[int(index)] = value
        else:
            setattr(module, name, value)
    if isinstance(module, MultiScaleAttention):
        module.out_dims = module.proj.in_features
    elif isinstance(module, LeAttention):
        module.dh = module.proj.in_features
