"""Networks of every kind that groups are declared or traced for, built small or at full width."""

import random
from functools import partial

import pytest
import torch
import torchvision
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import mmscale.models  # noqa: F401
from mmscale.arch import Arch, Block, Head, Stem
from mmscale.models import DMSModel

IMAGES = (2, 3, 64, 64)
# With an older torch, transformers changes the mask of a batch that shares it.
WINDOW = 3 if torch.__version__ >= (2, 6) else None
LANGUAGE_MODELS = (
    *('LLaMA', 'Mistral', 'Qwen2', 'Qwen3', 'GPT-2'),
    *('GPT-NeoX', 'GPT-NeoX turned', 'OPT', 'OPT with norms after', 'BERT', 'RoBERTa'),
)


def built_classifier(head='LinearClsHead', pooling=True, **backbone):
    widths = backbone.pop('width')
    config = dict(
        type='ImageClassifier',
        backbone=backbone,
        neck=dict(type='GlobalAveragePooling') if pooling else None,
        head=dict(type=head, num_classes=10, in_channels=widths),
    )
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(config)


def arch_net(name, width):
    return built_classifier(type='mmscale.ArchNet', arch=name, width=width)


# Dense, depthwise and grouped convs, with every residual.
CONVS = Arch(
    64,
    Stem(8, act='relu6'),
    (
        (
            Block('conv', 1, 2, 8, 12, 12, 1),
            Block('mbconv', 3, 1, 12, 36, 12, 36, act='relu6', residual='identity'),
            Block('conv', 3, 1, 12, 12, 12, 12, residual='identity'),
        ),
        (
            Block('conv', 3, 2, 12, 16, 16, 2),
            Block('conv', 3, 1, 16, 16, 16, 4, residual='identity'),
            Block('conv', 1, 1, 16, 16, 16, 1, residual='projection'),
        ),
    ),
    Head(24, act='relu6'),
)


def vision_transformer(kind, head='VisionTransformerClsHead', **options):
    arch = dict(embed_dims=48, num_layers=3, num_heads=4, feedforward_channels=64)
    return built_classifier(
        head, pooling=False, width=48, type=kind, arch=arch, img_size=64, **options
    )


def swin(**options):
    arch = dict(embed_dims=24, depths=[2, 2, 2], num_heads=[2, 3, 4])
    return built_classifier(
        type='SwinTransformer',
        arch=arch,
        img_size=64,
        window_size=4,
        out_indices=(2,),
        width=96,
        **options,
    )


def conv_next():
    arch = dict(depths=[2, 1, 3, 2], channels=[16, 24, 32, 40])
    return built_classifier(type='ConvNeXt', arch=arch, width=40, pooling=False)


def llama(family='Llama', **options):
    transformers = pytest.importorskip('transformers')
    config = getattr(transformers, f'{family}Config')(
        vocab_size=50,
        hidden_size=48,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        tie_word_embeddings=True,
        **options,
    )
    return getattr(transformers, f'{family}ForCausalLM')(config)


def gpt2():
    transformers = pytest.importorskip('transformers')
    config = transformers.GPT2Config(
        vocab_size=50, n_embd=48, n_layer=2, n_head=4, n_positions=32, use_cache=False
    )
    return transformers.GPT2LMHeadModel(config)


def gpt_neox(**options):
    transformers = pytest.importorskip('transformers')
    config = transformers.GPTNeoXConfig(
        vocab_size=50,
        hidden_size=48,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        use_cache=False,
        **options,
    )
    return transformers.GPTNeoXForCausalLM(config)


def opt(**options):
    transformers = pytest.importorskip('transformers')
    config = transformers.OPTConfig(
        vocab_size=50,
        hidden_size=48,
        ffn_dim=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        use_cache=False,
        **options,
    )
    return transformers.OPTForCausalLM(config)


def bert(family):
    transformers = pytest.importorskip('transformers')
    config = getattr(transformers, f'{family}Config')(
        vocab_size=50,
        hidden_size=48,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        initializer_range=0.3,
    )
    return getattr(transformers, f'{family}ForSequenceClassification')(config)


def beit(**options):
    return vision_transformer('BEiTViT', 'LinearClsHead', **options)


def swin_v2(**options):
    arch = dict(embed_dims=24, depths=[2, 2, 2], num_heads=[2, 3, 4], extra_norm_every_n_blocks=0)
    return built_classifier(
        type='SwinTransformerV2',
        arch={**arch, **options},
        img_size=64,
        window_size=4,
        out_indices=(2,),
        pretrained_window_sizes=[0, 0, 0],
        width=96,
    )


def tiny_vit():
    arch = dict(channels=[16, 24, 32, 40], num_heads=[1, 2, 2, 4], depths=[1, 2, 1, 1])
    return built_classifier(
        type='TinyViT',
        arch=arch,
        img_size=(64, 64),
        window_size=[4, 4, 4, 2],
        width=40,
        pooling=False,
    )


def mvit(**options):
    arch = dict(embed_dims=16, num_layers=5, num_heads=2, downscale_indices=[1, 3])
    return built_classifier(type='MViT', arch=arch, img_size=64, width=64, **options)


# Number of width groups, elements, network stages with blocks that can go, and such blocks.
NETWORKS = {
    'ResNet-50': (lambda: torchvision.models.resnet50(num_classes=10), (37, 11456, 4, 12)),
    'MobileNetV2': (lambda: torchvision.models.mobilenet_v2(num_classes=10), (25, 9128, 5, 10)),
    'EfficientNet-B0': (
        lambda: torchvision.models.efficientnet_b0(num_classes=10),
        (40, 11404, 5, 9),
    ),
    'ArchNet EfficientNet-B0': (lambda: arch_net('EfficientNet-B0', 1280), (40, 11404, 5, 9)),
    'ArchNet MobileNetV2': (lambda: arch_net('MobileNetV2', 1280), (25, 9128, 5, 10)),
    'ArchNet ResNet-50': (lambda: arch_net('ResNet-50', 2048), (37, 11456, 4, 12)),
    'ArchNet ResNet-18': (lambda: arch_net('ResNet-18', 512), (12, 2880, 4, 4)),
    # Elements: the stem, three streams (one of 6 x 2, one of 4 x 4 channels), hidden and head.
    'ArchNet of convs': (
        partial(arch_net, CONVS, 24),
        (6, 8 + 6 + 4 + 16 + 36 + 24, 2, 3),
    ),
    'ArchNet RegNetY-400MF': (lambda: arch_net('RegNetY-400MF', 440), (53, 2048, 3, 12)),
    'RegNetX-400MF': (
        lambda: built_classifier(type='RegNet', arch='regnetx_400mf', width=384),
        (49, 1376, 3, 18),
    ),
    # One stream for each network stage, one hidden width for each block.
    'ConvNeXt': (conv_next, (12, 1040, 4, 8)),
    # The embedding, and of each layer heads, their size and the hidden width.
    'ViT': (
        partial(vision_transformer, 'VisionTransformer', layer_scale_init_value=1.0),
        (13, 48 + 3 * (4 + 12 + 12 + 64), 1, 3),
    ),
    'DeiT': (
        partial(
            vision_transformer,
            'DistilledVisionTransformer',
            'DeiTClsHead',
            layer_scale_init_value=1.0,
        ),
        (13, 48 + 3 * (4 + 12 + 12 + 64), 1, 3),
    ),
    'DeiT III': (partial(vision_transformer, 'DeiT3'), (13, 48 + 3 * (4 + 12 + 12 + 64), 1, 3)),
    # SwiGLU's hidden width is two thirds, rounded up to eights.
    'DINOv2': (
        partial(vision_transformer, 'VisionTransformer', layer_cfgs=dict(ffn_type='swiglu_fused')),
        (13, 48 + 3 * (4 + 12 + 12 + 48), 1, 3),
    ),
    # The rotary embedding keeps the size of queries and keys.
    'EVA-02': (
        partial(
            vision_transformer, 'ViTEVA02', 'LinearClsHead', sub_ln=True, out_type='avg_featmap'
        ),
        (10, 48 + 3 * (4 + 12 + 64), 1, 3),
    ),
    'ViT of three layers': (
        partial(vision_transformer, 'VisionTransformer', layer_cfgs=dict(num_fcs=3)),
        (16, 48 + 3 * (4 + 12 + 12 + 2 * 64), 1, 3),
    ),
    'Swin': (swin, (27, 168 + 2 * (2 + 24 + 96 + 3 + 32 + 192 + 4 + 48 + 384), 3, 6)),
    'Swin of three layers': (
        partial(swin, stage_cfgs=dict(block_cfgs=dict(ffn_cfgs=dict(num_fcs=3)))),
        (33, 168 + 2 * (2 + 24 + 192 + 3 + 32 + 384 + 4 + 48 + 768), 3, 6),
    ),
    'BEiT': (beit, (13, 48 + 3 * (4 + 12 + 12 + 64), 1, 3)),
    # Positions that all layers share keep the heads.
    'BEiT with one table': (
        partial(beit, use_rel_pos_bias=False, use_shared_rel_pos_bias=True, use_abs_pos_emb=True),
        (10, 48 + 3 * (12 + 12 + 64), 1, 3),
    ),
    # The cosine of queries and keys keeps their size; blocks with a norm after them stay.
    'Swin V2': (swin_v2, (21, 168 + 2 * (2 + 12 + 96 + 3 + 16 + 192 + 4 + 24 + 384), 3, 6)),
    'Swin V2 with norms after': (
        partial(swin_v2, extra_norm_every_n_blocks=2),
        (21, 168 + 2 * (2 + 12 + 96 + 3 + 16 + 192 + 4 + 24 + 384), 3, 3),
    ),
    # The stem, four streams, the hidden widths of a convolution and of three merges, and of each
    # layer heads, their sizes and the hidden width.
    'TinyViT': (
        tiny_vit,
        (25, 8 + 112 + 64 + 96 + 2 * (2 + 24 + 96) + (2 + 32 + 128) + (4 + 20 + 160), 0, 0),
    ),
    # Three streams, and of each layer heads, their size, which is one, and the hidden width.
    'MViT': (mvit, (18, 112 + 26 + 5 * 8 + 832, 1, 3)),
    'MViT widened by MLPs': (
        partial(mvit, dim_mul_in_attention=False),
        (18, 112 + 26 + 5 * 8 + 832, 1, 1),
    ),
    # The embedding and pairs of queries and keys, and of each layer heads, values and the
    # hidden width.
    'LLaMA': (partial(llama, use_cache=False, head_dim=12), (8, 48 + 6 + 2 * (4 + 12 + 40), 1, 2)),
    'Mistral': (
        partial(llama, 'Mistral', sliding_window=WINDOW),
        (8, 48 + 3 + 2 * (4 + 6 + 40), 1, 2),
    ),
    'Qwen2': (partial(llama, 'Qwen2'), (8, 48 + 3 + 2 * (4 + 6 + 40), 1, 2)),
    'Qwen3': (partial(llama, 'Qwen3', head_dim=12), (8, 48 + 6 + 2 * (4 + 12 + 40), 1, 2)),
    'GPT-2': (gpt2, (9, 48 + 2 * (4 + 12 + 12 + 192), 1, 2)),
    # Pairs that are turned are shared, the other places each layer's own.
    'GPT-NeoX': (
        partial(gpt_neox, rotary_pct=0.34),
        (10, 48 + 2 + 2 * (4 + 8 + 12 + 40), 1, 2),
    ),
    'GPT-NeoX turned': (
        partial(gpt_neox, rotary_pct=1.0, use_parallel_residual=False),
        (8, 48 + 6 + 2 * (4 + 12 + 40), 1, 2),
    ),
    'OPT': (opt, (9, 48 + 2 * (4 + 12 + 12 + 40), 1, 2)),
    'OPT with norms after': (
        partial(opt, do_layer_norm_before=False, word_embed_proj_dim=24),
        (9, 48 + 2 * (4 + 12 + 12 + 40), 0, 0),
    ),
    # What a pooling layer or a classifier makes of the stream is not known.
    'BERT': (partial(bert, 'Bert'), (8, 2 * (4 + 12 + 12 + 40), 0, 0)),
    'RoBERTa': (partial(bert, 'Roberta'), (8, 2 * (4 + 12 + 12 + 40), 0, 0)),
}


def plain_network(name):
    """A network as it is built, and inputs."""
    torch.manual_seed(0)
    model = NETWORKS[name][0]()
    inputs = [torch.randint(50, (2, 7)) if name in LANGUAGE_MODELS else torch.randn(IMAGES)]
    return model, inputs


@pytest.fixture
def build_network():
    """A function that builds a network by its name."""
    return plain_network


@pytest.fixture(params=NETWORKS)
def network(request):
    """Name, model in eval mode with random statistics, inputs, and what is expected of groups."""
    model, inputs = plain_network(request.param)
    expected = NETWORKS[request.param][1]
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            for tensor in (module.weight, module.running_var):
                tensor.data.uniform_(0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                tensor.data.normal_(0, 0.3)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return request.param, model.eval(), inputs, expected


@pytest.fixture
def conv_arch():
    return CONVS


@pytest.fixture
def random_half():
    """A function that chooses half of each group's elements at random, and half of the blocks."""

    def choose(groups, seed=0):
        generator = random.Random(seed)
        return {
            group.name: sorted(generator.sample(range(group.size), max(1, group.size // 2)))
            for group in groups.all
        }

    return choose


# Pixels of the images of DMSModels.
SIDE = 12


@pytest.fixture
def classifier(tiny_space):
    """A classifier of four classes around a network with blocks that can go."""

    def make(arch=None):
        torch.manual_seed(0)
        arch = tiny_space.largest(-1) if arch is None else arch
        return dict(
            type='mmpretrain.ImageClassifier',
            # Statistics of a batch would differ from those of its halves.
            backbone=dict(type='mmscale.ArchNet', arch=arch, norm_eval=True),
            neck=dict(type='mmpretrain.GlobalAveragePooling'),
            head=dict(
                type='mmpretrain.LinearClsHead', num_classes=4, in_channels=arch.feature_channels
            ),
        )

    return make


@pytest.fixture
def make_model(classifier):
    """A function that makes a DMSModel of the small classifier from further settings."""

    def make(**settings):
        settings = {
            'model': classifier(),
            'target': 0.5,
            'input_shape': (1, SIDE, SIDE),
            'structure_optimizer': dict(type='SGD', lr=0.05),
            **settings,
        }
        model = DMSModel(**settings).train()
        model.set_budget(model.value(model.cost.full))
        return model

    return make
