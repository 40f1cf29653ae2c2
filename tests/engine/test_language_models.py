"""The configs of small language models: training, search, pruning, retraining, cut short."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import CheckpointLoader, Runner

from mmscale.apis.pruned_files import export_search

pytest.importorskip('transformers')

CONFIGS = Path(__file__).parents[2] / 'configs'
SMALL = {
    'llama': dict(
        hidden_size=24, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2
    ),
    'gpt2': dict(n_embd=24, n_layer=2, n_head=2),
}


def short(name, family, folder, **changes):
    config = Config.fromfile(CONFIGS / name)
    model = config.model if config.model.type == 'mmscale.CausalLM' else config.model.model
    model.config.update(SMALL[family])
    config.work_dir = str(folder / name)
    config.experiment_name = f'{folder.name}{name}'.replace('/', '_')
    config.train_cfg.update(max_iters=6, val_interval=6)
    for loader in (config.train_dataloader, config.val_dataloader):
        loader.batch_size = 2
        loader.dataset.length = 16
    # A few windows are enough.
    config.val_dataloader.dataset = dict(
        type='mmscale.TokenFile', file=str(folder / 'text.npy'), length=16
    )
    config.test_dataloader = config.test_cfg = config.test_evaluator = None
    config.merge_from_dict(changes)
    return config


def test_resumed_search_equals_uninterrupted(tmp_path):
    """Tokens, AdamW, clipping and masks of heads: all that a resumed search has to find again."""
    np.save(tmp_path / 'text.npy', np.random.default_rng(0).integers(0, 256, 400, dtype=np.uint8))
    states, files = [], []
    for name in ('straight', 'resumed'):
        folder = tmp_path / name
        changes = {'work_dir': str(folder), 'val_cfg': None, 'custom_hooks.2.interval': 1}
        for resume in (False, True)[: 1 + (name == 'resumed')]:
            search = short('dms/dms-llama-mini_stdlib.py', 'llama', tmp_path, **changes)
            search.experiment_name = f'{folder}{resume}'
            search.val_dataloader = search.val_evaluator = None
            search.default_hooks.checkpoint.update(interval=3)
            search.resume = resume
            runner = Runner.from_cfg(search)
            runner.train()
            if name == 'resumed' and not resume:
                # As if it had been killed after its checkpoint.
                (folder / 'last_checkpoint').write_text(str(folder / 'iter_3.pth'))
        files.append((folder / 'structure.jsonl').read_text())
        found = CheckpointLoader.load_checkpoint(f'{folder}/iter_6.pth', 'cpu')
        states.append(found['state_dict'])
    assert files[0] == files[1]
    assert files[0].count('\n') == 6
    one, other = states
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[key]) for key, value in one.items())


def train(config):
    runner = Runner.from_cfg(config)
    runner.train()
    return runner.message_hub.get_scalar('val/perplexity').current()


@pytest.mark.slow
@pytest.mark.parametrize('family', SMALL)
def test_search_prune_and_retrain(family, tmp_path):
    np.save(tmp_path / 'text.npy', np.tile(np.arange(32, 127, dtype=np.uint8), 2))
    whole = short(f'causal_lm/{family}-mini_stdlib.py', family, tmp_path)
    assert 1 < train(whole) < 400
    search = short(
        f'dms/dms-{family}-mini_stdlib.py',
        family,
        tmp_path,
        **{'model.pipeline': 'p', 'model.pretrained': f'{whole.work_dir}/iter_6.pth'},
    )
    found = train(search)
    state = CheckpointLoader.load_checkpoint(f'{search.work_dir}/iter_6.pth', 'cpu')['state_dict']
    report = export_search(search, state, tmp_path / 'pruned').to_json()
    assert 0.45 < report['after']['params'] / report['before']['params'] <= 0.5
    pruned, weights, _ = report['files']
    retrain = short(
        f'dms/{family}-mini-pruned_stdlib.py',
        family,
        tmp_path,
        **{'model.pruned': pruned, 'load_from': weights, 'optim_wrapper.optimizer.lr': 0.0},
    )
    # With a learning rate of 0 it stays what the search ended with.
    retrain.param_scheduler = None
    retrain.optim_wrapper.optimizer.weight_decay = 0.0
    assert train(retrain) == pytest.approx(found, rel=1e-4)
