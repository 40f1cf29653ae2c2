"""Channel groups of transformers, declared by hand: tracing does not see through attention.

A grouper takes a model, the prefix of the transformer's names in it (as ``backbone.``), and the
names of the layers that use its last output: empty where these are unknown, so that the width of
the output has to stay, and None where there is nothing after it.
"""

from functools import partial

from mmscale.models.dms.transformers.attention import full_name, set_counts
from mmscale.models.dms.transformers.language import (
    GPT2,
    GPT_NEOX,
    LLAMA,
    decoder_groups,
    encoder_groups,
    opt_groups,
)
from mmscale.models.dms.transformers.parts import Consumers
from mmscale.models.dms.transformers.vision import (
    BEIT,
    EVA02,
    SWIN,
    SWIN_V2,
    VIT,
    mvit_groups,
    swin_groups,
    tiny_vit_groups,
    vit_groups,
)

# By module and name of the class: transformers is an optional requirement.
GROUPERS = {
    'mmpretrain.models.backbones.beit.BEiTViT': partial(vit_groups, BEIT),
    'mmpretrain.models.backbones.mvit.MViT': mvit_groups,
    'mmpretrain.models.backbones.swin_transformer.SwinTransformer': partial(swin_groups, SWIN),
    'mmpretrain.models.backbones.swin_transformer_v2.SwinTransformerV2': partial(
        swin_groups, SWIN_V2
    ),
    'mmpretrain.models.backbones.tinyvit.TinyViT': tiny_vit_groups,
    'mmpretrain.models.backbones.vision_transformer.VisionTransformer': partial(vit_groups, VIT),
    'mmpretrain.models.backbones.vit_eva02.ViTEVA02': partial(vit_groups, EVA02),
    'transformers.models.bert.modeling_bert.BertModel': encoder_groups,
    'transformers.models.gpt2.modeling_gpt2.GPT2LMHeadModel': partial(decoder_groups, GPT2),
    'transformers.models.gpt_neox.modeling_gpt_neox.GPTNeoXForCausalLM': partial(
        decoder_groups, GPT_NEOX
    ),
    'transformers.models.llama.modeling_llama.LlamaForCausalLM': partial(decoder_groups, LLAMA),
    'transformers.models.mistral.modeling_mistral.MistralForCausalLM': partial(
        decoder_groups, LLAMA
    ),
    'transformers.models.opt.modeling_opt.OPTForCausalLM': opt_groups,
    'transformers.models.qwen2.modeling_qwen2.Qwen2ForCausalLM': partial(decoder_groups, LLAMA),
    'transformers.models.qwen3.modeling_qwen3.Qwen3ForCausalLM': partial(decoder_groups, LLAMA),
    'transformers.models.roberta.modeling_roberta.RobertaModel': encoder_groups,
}

# Blocks that return a tuple: how many of their arguments stand for it where a block has gone.
TUPLE_BLOCKS = {
    'mmpretrain.models.backbones.mvit.MultiScaleBlock': 2,
    'transformers.models.gpt2.modeling_gpt2.GPT2Block': 1,
    'transformers.models.gpt_neox.modeling_gpt_neox.GPTNeoXLayer': 1,
    'transformers.models.opt.modeling_opt.OPTDecoderLayer': 1,
}

__all__ = ['GROUPERS', 'TUPLE_BLOCKS', 'Consumers', 'full_name', 'set_counts']
