"""Pruned transformers: relatives, earlier files, export, text that is generated."""

import copy

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmscale.models.dms import Pruning, apply_pruning, channel_groups, plan_pruning
from mmscale.models.dms.transformers import set_counts


def logits(model, inputs):
    output = model(*inputs)
    return getattr(output, 'logits', output)


def pruned(model, inputs, share=0.5, kinds=None):
    """A copy of a model without a share of all groups, or of those of some kinds."""
    groups = channel_groups(model, inputs)
    keep = {
        group.name: range(group.size - int(share * group.size))
        for group in groups.widths
        if kinds is None or group.kind in kinds
    }
    return apply_pruning(copy.deepcopy(model), plan_pruning(model, groups, keep))


@pytest.mark.parametrize('kind', ['qk_size', 'v_size'])
@pytest.mark.parametrize('network', ['ViT', 'Swin', 'LLaMA', 'GPT-2', 'OPT'], indirect=True)
def test_queries_and_keys_go_without_values(network, kind):
    _, model, inputs, _ = network
    small = pruned(model, inputs, kinds=[kind])
    before = {
        name: module for name, module in model.named_modules() if not list(module.children())
    }
    changed = {
        name.rpartition('.')[2]
        for name, layer in small.named_modules()
        if name in before
        and [p.shape for p in layer.parameters()] != [p.shape for p in before[name].parameters()]
    }
    fused = {'qkv', 'c_attn'}
    expected = {
        'qk_size': {'q_proj', 'k_proj'},
        'v_size': {'v_proj', 'o_proj', 'out_proj', 'proj', 'c_proj'},
    }
    assert changed and changed <= expected[kind] | fused
    with torch.no_grad():
        assert logits(small, inputs).shape == logits(model, inputs).shape


@pytest.mark.parametrize('network', ['ViT', 'Swin', 'LLaMA', 'GPT-2'], indirect=True)
def test_the_scale_of_scores_stays(network):
    """Places that hold nothing can go without a trace, which another scale would leave."""
    name, model, inputs, _ = network
    groups = channel_groups(model, inputs)
    layers = dict(model.named_modules())
    keep = {}
    with torch.no_grad():
        for group in groups.widths:
            if group.kind != 'qk_size':
                continue
            keep[group.name] = range(group.size // 2)
            for member in group.members:
                layer = layers.get(member.module)
                if member.masks_output:
                    rows = member.indices[group.size // 2 :].ravel()
                    weight = layer.weight.T if name == 'GPT-2' else layer.weight
                    weight[rows] = 0
                    if layer.bias is not None:
                        layer.bias[rows] = 0
        small = apply_pruning(copy.deepcopy(model), plan_pruning(model, groups, keep))
        torch.testing.assert_close(
            logits(small, inputs), logits(model, inputs), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize('network', ['ViT', 'Swin', 'LLaMA'], indirect=True)
def test_files_that_tie_all_sizes_of_heads_load(network):
    """As earlier releases wrote them, with the one size of heads that they knew."""
    _, model, inputs, _ = network
    groups = channel_groups(model, inputs)
    places = {group.size for group in groups.widths if group.kind == 'v_size'}
    half = {'qk_size': 2, 'v_size': 2}
    keep = {
        group.name: sorted(
            [*range(group.size // 4), *range(group.size // 2, group.size // 2 + group.size // 4)]
        )
        for group in groups.widths
        if group.kind in half
    }
    assert places
    pruning = plan_pruning(model, groups, keep)
    new = apply_pruning(copy.deepcopy(model), pruning)
    counts = {
        module: {
            key: value for key, value in numbers.items() if key not in ('value_dims', 'value_dim')
        }
        for module, numbers in pruning.counts.items()
    }
    file = {**pruning.to_json(), 'counts': counts}
    old = apply_pruning(copy.deepcopy(model), Pruning.from_json(file))
    with torch.no_grad():
        assert torch.equal(logits(old, inputs), logits(new, inputs))


def test_a_count_that_is_no_number():
    with pytest.raises(ValueError, match='weight is not a number of Linear'):
        set_counts(nn.Linear(3, 4), {'weight': 3})


EXPORTED = ['ViT', 'Swin V2', 'BEiT', 'MViT', 'TinyViT']
if torch.__version__ >= (2, 6):
    # An older torch cannot export how transformers writes to the mask of a batch.
    EXPORTED += ['LLaMA', 'GPT-NeoX']


@pytest.mark.parametrize('network', EXPORTED, indirect=True)
def test_pruned_ones_are_exported(network):
    """As torch.export sees them: without Python's own branches on tensors."""
    _, model, inputs, _ = network
    small = pruned(model, inputs).eval()
    # What the network and its inputs are, as tools/export.py wraps it.
    program = torch.export.export(small, tuple(inputs), strict=False)
    with torch.no_grad():
        found = program.module()(*inputs)
        found = getattr(found, 'logits', found)
        torch.testing.assert_close(found, logits(small, inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('network', ['LLaMA', 'Qwen3', 'GPT-2', 'GPT-NeoX', 'OPT'], indirect=True)
def test_pruned_ones_generate_text_with_a_cache(network):
    _, model, inputs, _ = network
    small = pruned(model, inputs).eval()
    texts = [
        small.generate(
            inputs[0], max_new_tokens=4, do_sample=False, use_cache=cached, pad_token_id=0
        )
        for cached in (False, True)
    ]
    assert torch.equal(*texts)


class ThreeLayers(nn.Module):
    """An MLP that no declaration knows by name."""

    def __init__(self, width):
        super().__init__()
        self.widen, self.mix = nn.Linear(width, 32), nn.Linear(32, 24)
        self.narrow = nn.Linear(24, width)

    def forward(self, x):
        return self.narrow(self.mix(self.widen(x).relu()).relu())


def test_relatives_with_another_mlp():
    transformers = pytest.importorskip('transformers')

    class Relative(transformers.LlamaForCausalLM):
        def __init__(self, config):
            super().__init__(config)
            for layer in self.model.layers:
                layer.mlp = ThreeLayers(config.hidden_size)

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, use_cache=False
    )
    model, inputs = Relative(config).eval(), [torch.randint(50, (2, 7))]
    groups = channel_groups(model, inputs)
    assert [g.size for g in groups.widths if g.kind == 'width'] == [32, 24, 32, 24]
    small = pruned(model, inputs)
    assert small.model.layers[1].mlp.mix.weight.shape == (12, 16)


def test_an_mlp_of_unknown_form_is_traced_with_a_warning():
    class Unknown(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.one, self.other = nn.LayerNorm(48), nn.Linear(48, 8), nn.Linear(8, 48)

        def forward(self, x, identity=None):
            return identity + self.other(self.one(self.norm(x)).relu())

    arch = dict(embed_dims=48, num_layers=1, num_heads=4, feedforward_channels=64)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(dict(type='VisionTransformer', arch=arch, img_size=32))
    model.layers[0].ffn = Unknown()
    with pytest.warns(UserWarning, match='the layers of a Unknown are not known.*so it is traced'):
        groups = channel_groups(model, [torch.zeros(1, 3, 32, 32)])
    assert 8 in [group.size for group in groups.widths]


def test_biases_of_positions_that_are_still_zero():
    """They are kept in eval mode, which a trial that fills them in must not be misled by."""
    arch = dict(channels=[8, 16, 16, 16], num_heads=[1, 2, 2, 2], depths=[1, 1, 1, 1])
    config = dict(type='TinyViT', arch=arch, img_size=(64, 64), window_size=[4, 4, 4, 2])
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(config)
    model.eval()
    groups = channel_groups(model, [torch.zeros(1, 3, 64, 64)])
    assert sum(group.kind == 'heads' for group in groups.widths) == 3
    with torch.no_grad():
        x = torch.randn(2, 3, 64, 64)
        before = model(x)[0]
        for module in model.modules():
            if hasattr(module, 'attention_biases'):
                module.attention_biases.add_(torch.randn_like(module.attention_biases))
        assert not torch.allclose(model(x)[0], before)
