"""CausalLM by itself, and its widths and depth searched and pruned."""

import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper

from mmscale.cost import count_module
from mmscale.models import CausalLM, DMSModel
from mmscale.models.dms import apply_pruning, plan_pruning, pruned_model

pytest.importorskip('transformers')

CONFIGS = Path(__file__).parents[2] / 'configs'
SETTINGS = {
    'llama': dict(
        hidden_size=24,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    ),
    'gpt2': dict(
        n_embd=24,
        n_layer=2,
        n_head=4,
        n_positions=16,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    ),
    'opt': dict(
        hidden_size=24,
        ffn_dim=20,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
        dropout=0.0,
    ),
    'gpt_neox': dict(
        hidden_size=24,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=4,
        rotary_pct=0.34,
    ),
}


def language_model(family, **changes):
    settings = dict(
        model_type=family,
        vocab_size=30,
        bos_token_id=None,
        eos_token_id=None,
        **SETTINGS[family],
    )
    return dict(type='mmscale.CausalLM', config={**settings, **changes})


def build(family, **changes):
    torch.manual_seed(0)
    return CausalLM(language_model(family, **changes)['config'])


def tokens(seed=0):
    return torch.randint(30, (3, 9), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize('family', SETTINGS)
def test_modes(family):
    model = build(family).eval()
    x = tokens()
    assert model(x).shape == (3, 9, 30)
    # transformers' own loss, of which ours knows nothing.
    expected = model.language_model(x, labels=x).loss
    torch.testing.assert_close(model(x, mode='loss')['language_loss'], expected)
    sums = model(x, mode='predict')
    assert [row['tokens'] for row in sums] == [8, 8, 8]
    mean = sum(row['cross_entropy'] for row in sums) / 24
    assert mean == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize('family', SETTINGS)
def test_it_does_not_see_the_future(family):
    model = build(family).eval()
    x = tokens()
    changed = torch.cat([x[:, :-1], (x[:, -1:] + 1) % 30], dim=1)
    torch.testing.assert_close(model(x)[:, :-1], model(changed)[:, :-1])
    assert not torch.allclose(model(x)[:, -1], model(changed)[:, -1])


def test_wrong_configs():
    for family, changes, message in (
        ('llama', dict(model_type='lama'), "model_type='lama' is none of transformers"),
        ('llama', dict(hiden_size=8), 'hiden_size=8 is no setting of LlamaConfig'),
        ('gpt2', dict(intermediate_size=8), 'intermediate_size=8 is no setting of GPT2Config'),
    ):
        with pytest.raises(ValueError, match=message):
            build(family, **changes)


def test_other_names_of_settings():
    config = language_model('gpt2')['config']
    config['hidden_size'] = config.pop('n_embd')
    assert CausalLM(config).language_model.lm_head.in_features == 24


def test_wrong_mode():
    with pytest.raises(ValueError, match="mode='train' is not one of tensor, loss, predict"):
        build('llama')(tokens(), mode='train')


def test_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, 'transformers', None)
    with pytest.raises(ImportError, match='CausalLM needs transformers: pip install'):
        build('llama')


@pytest.mark.parametrize('family', SETTINGS)
def test_search_and_pruning(family):
    torch.manual_seed(0)
    search = DMSModel(
        language_model(family),
        0.6,
        'params',
        input_shape=(9,),
        structure_optimizer=dict(type='SGD', lr=0.05),
    ).train()
    whole = {key: value.clone() for key, value in search.model.state_dict().items()}
    wrapper = OptimWrapper(torch.optim.SGD(search.model.parameters(), lr=0.1))
    search.set_budget(search.goal)
    for step in range(20):
        search.train_step(dict(inputs=tokens(step)), wrapper)
        search.step_structure()
    assert any(not torch.equal(v, whole[k]) for k, v in search.model.state_dict().items())
    projection = search.project()
    assert 0.95 * search.goal <= projection.after <= search.goal
    search.eval()
    masked = search(tokens())
    keep = {g.name: search.gates[g.key].keep_indices.tolist() for g in search.groups.all}
    search.masks.remove()
    pruning = plan_pruning(search.model, search.groups, keep)
    small = pruned_model(language_model(family), pruning.to_json()).eval()
    small.load_state_dict(apply_pruning(search.model, pruning).state_dict())
    torch.testing.assert_close(small(tokens()), masked, rtol=1e-4, atol=1e-5)
    counted = count_module(small, inputs=[tokens()[:1]], memory=False)
    assert counted.params == projection.after == sum(p.numel() for p in small.parameters())


def test_width_kinds():
    settings = dict(target=0.9, input_shape=(9,), search=['width'])
    model = DMSModel(language_model('llama'), width_kinds=['heads', 'width'], **settings)
    assert {group.kind for group in model.groups.all} == {'heads', 'width'}
    assert len(model.groups.all) == 4
    with pytest.raises(ValueError, match=r"width_kinds=\['head'\] must hold some of \('width'"):
        DMSModel(language_model('llama'), width_kinds=['head'], **settings)


def test_the_7b_config_has_the_size_of_llama_7b():
    model = Config.fromfile(
        CONFIGS / 'dms/dms-llama-7b-5.47b_alpaca.py', import_custom_modules=False
    ).model
    with torch.device('meta'):
        whole = CausalLM(model.model.config)
    # 32 x (4 x 4096^2 + 3 x 4096 x 11008) are in heads and MLPs, 2 x 32000 x 4096 in the ends.
    params = sum(parameter.numel() for parameter in whole.parameters())
    assert params == 6_738_415_616
    assert model.target.params / params == pytest.approx(0.81, abs=0.01)
    # The same search of a small one.
    config = {**model, 'target': 0.81, 'metric': 'params', 'input_shape': (9,)}
    config |= dict(model=language_model('llama'), pipeline='np', pretrained=None)
    del config['type']
    small = DMSModel(**config)
    assert {group.kind for group in small.groups.all} == {'heads', 'width'}
