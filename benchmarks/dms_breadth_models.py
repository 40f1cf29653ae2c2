"""Networks of the breadth table: how each is made, and what it is run on.

Names are those of their libraries. Those of mmpretrain are the names of its model zoo, or of a
backbone class with its options where the zoo has none or none that is small enough.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from mmengine.registry import MODELS, DefaultScope
from torch import nn

Made = tuple[nn.Module, list[torch.Tensor]]

# Pixels of a side: fewer than usual where groups do not depend on them, 0 for 224.
ZOO = {
    'resnet18_8xb32_in1k': 128,
    'resnet50_8xb32_in1k': 128,
    'resnetv1d50_8xb32_in1k': 128,
    'seresnet50_8xb32_in1k': 128,
    'resnext50-32x4d_8xb32_in1k': 128,
    'wide-resnet50_3rdparty_8xb32_in1k': 128,
    'res2net50-w14-s8_3rdparty_8xb32_in1k': 128,
    'regnetx-1.6gf_8xb128_in1k': 128,
    'densenet121_3rdparty_in1k': 128,
    'vgg11bn_8xb32_in1k': 0,
    'mobilenet-v2_8xb32_in1k': 128,
    'mobilenet-v3-large_8xb128_in1k': 128,
    'mobileone-s0_8xb32_in1k': 128,
    'mobilevit-xxsmall_3rdparty_in1k': 256,
    'efficientnet-b0_3rdparty_8xb32_in1k': 128,
    'efficientnetv2-b0_3rdparty_in1k': 128,
    'efficientformer-l1_3rdparty_8xb128_in1k': 0,
    'shufflenet-v1-1x_16xb64_in1k': 128,
    'shufflenet-v2-1x_16xb64_in1k': 128,
    'convnext-tiny_32xb128_in1k': 128,
    'convnext-v2-atto_3rdparty-fcmae_in1k': 128,
    'convmixer-768-32_3rdparty_in1k': 128,
    'repvgg-a0_8xb32_in1k': 128,
    'hrnet-w18_3rdparty_8xb32_in1k': 128,
    'cspdarknet50_3rdparty_8xb32_in1k': 128,
    'cspresnet50_3rdparty_8xb32_in1k': 128,
    'cspresnext50_3rdparty_8xb32_in1k': 128,
    'inception-v3_3rdparty_8xb32_in1k': 299,
    'van-tiny_3rdparty_in1k': 128,
    'poolformer-s12_3rdparty_32xb128_in1k': 128,
    'riformer-s12_in1k': 128,
    'repmlp-base_3rdparty_8xb64_in1k': 0,
    'levit-128s_3rdparty_in1k': 0,
    'davit-tiny_3rdparty_in1k': 0,
    'edgenext-small_3rdparty_in1k': 128,
    'hornet-tiny_3rdparty_in1k': 128,
    'conformer-tiny-p16_3rdparty_in1k': 0,
    'tnt-small-p16_3rdparty_in1k': 0,
    't2t-vit-t-14_8xb64_in1k': 0,
    'twins-pcpvt-small_3rdparty_8xb128_in1k': 128,
    'twins-svt-small_3rdparty_8xb128_in1k': 128,
    'swin-tiny_16xb64_in1k': 0,
    'swinv2-tiny-w8_3rdparty_in1k-256px': 256,
    'deit-tiny_4xb256_in1k': 0,
    'deit-tiny-distilled_3rdparty_in1k': 0,
    'deit3-small-p16_3rdparty_in1k': 0,
    'beit-base-p16_beit-in21k-pre_3rdparty_in1k': 0,
    'vit-tiny-p14_eva02-in21k-pre_3rdparty_in1k-336px': 336,
    'mvitv2-tiny_3rdparty_in1k': 0,
    'tinyvit-5m_3rdparty_in1k': 0,
    'mlp-mixer-base-p16_3rdparty_64xb64_in1k': 0,
    'xcit-nano-12-p16_3rdparty_in1k': 128,
    'vig-tiny_3rdparty_in1k': 0,
    'pvig-tiny_3rdparty_in1k': 0,
    'revvit-small_3rdparty_in1k': 0,
    'hivit-tiny-p16_16xb64_in1k': 0,
}

# Backbones of mmpretrain with their options, channels and input sizes.
BACKBONES: dict[str, tuple[dict[str, Any], int, int]] = {
    'resnest50': (dict(type='ResNeSt', depth=50), 2048, 224),
    'replknet-small': (
        dict(
            type='RepLKNet',
            arch=dict(
                large_kernel_sizes=[31, 29, 27, 13],
                layers=[1, 1, 2, 1],
                channels=[32, 64, 128, 256],
                small_kernel=5,
                dw_ratio=1,
            ),
        ),
        256,
        224,
    ),
    'lenet5': (dict(type='LeNet5', num_classes=10), 0, 32),
    'alexnet': (dict(type='AlexNet', num_classes=1000), 0, 224),
    'mixmim-base': (dict(type='MixMIMTransformer', arch='B'), 1024, 224),
}

TIMM = (
    'resnet26d',
    'mobilenetv3_small_100',
    'ghostnet_100',
    'convnext_atto',
    'regnety_004',
    'rexnet_100',
    'mobilenetv4_conv_small',
    'vit_tiny_patch16_224',
    'efficientvit_b0',
    'repghostnet_050',
)

TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    'llama': ('LlamaForCausalLM', dict(num_key_value_heads=4)),
    'mistral': ('MistralForCausalLM', dict(num_key_value_heads=4)),
    'qwen2': ('Qwen2ForCausalLM', dict(num_key_value_heads=4)),
    'gpt2': ('GPT2LMHeadModel', dict(n_inner=256)),
    'opt': ('OPTForCausalLM', dict(ffn_dim=256, word_embed_proj_dim=64)),
    'gpt_neox': ('GPTNeoXForCausalLM', {}),
    'bert': ('BertForSequenceClassification', {}),
}

# Configs of mmdet, without weights, and the pixels of a side.
DETECTORS = {
    'retinanet_r18_fpn': ('retinanet/retinanet_r18_fpn_1x_coco.py', 256),
    'fcos_r50-caffe_fpn_gn-head': ('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', 256),
    'atss_r50_fpn': ('atss/atss_r50_fpn_1x_coco.py', 256),
    'yolox_tiny': ('yolox/yolox_tiny_8xb8-300e_coco.py', 256),
    'ssdlite_mobilenetv2': ('ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py', 320),
    'rtmdet_tiny': ('rtmdet/rtmdet_tiny_8xb32-300e_coco.py', 256),
}


def _images(side: int, channels: int = 3) -> list[torch.Tensor]:
    return [torch.randn(1, channels, side, side)]


def _from_zoo(name: str, side: int) -> Made:
    from mmpretrain import get_model

    return get_model(name, pretrained=False), _images(side or 224)


def _backbone(backbone: dict[str, Any], width: int, side: int) -> Made:
    head = dict(type='LinearClsHead', num_classes=1000, in_channels=width)
    model = dict(
        type='ImageClassifier',
        backbone=backbone,
        neck=dict(type='GlobalAveragePooling'),
        head=head,
    )
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        network = MODELS.build(model if width else backbone)
    return network, _images(side, 1 if backbone['type'] == 'LeNet5' else 3)


def _of_timm(name: str) -> Made:
    import timm

    return timm.create_model(name, pretrained=False), _images(224)


def _of_transformers(kind: str, architecture: str, options: dict[str, Any]) -> Made:
    import transformers

    config = transformers.AutoConfig.for_model(
        kind,
        vocab_size=1000,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=8,
        intermediate_size=128,
        max_position_embeddings=64,
        use_cache=False,
        **options,
    )
    return getattr(transformers, architecture)(config), [torch.randint(1000, (1, 16))]


def _of_mmdet(config: str, side: int) -> Made:
    from mmdet.registry import MODELS as DETECTORS_OF
    from mmdet.utils import register_all_modules
    from mmengine.hub import get_config

    register_all_modules(init_default_scope=True)
    model = get_config(f'mmdet::{config}').model
    model.backbone.pop('init_cfg', None)
    if 'frozen_stages' in model.backbone:
        model.backbone.frozen_stages = -1
    return DETECTORS_OF.build(model), _images(side)


def _all() -> dict[str, tuple[str, Callable[[], Made]]]:
    found: dict[str, tuple[str, Callable[[], Made]]] = {}
    for name, side in ZOO.items():
        found[name] = 'mmpretrain', partial(_from_zoo, name, side)
    for name, options in BACKBONES.items():
        found[name] = 'mmpretrain', partial(_backbone, *options)
    for name in TIMM:
        found[name] = 'timm', partial(_of_timm, name)
    for name, (architecture, options) in TRANSFORMERS.items():
        found[name] = 'transformers', partial(_of_transformers, name, architecture, options)
    for name, (config, side) in DETECTORS.items():
        found[name] = 'mmdet', partial(_of_mmdet, config, side)
    return found


# Library of each network, and a function that makes it and its inputs.
NETWORKS = _all()
