# %% [markdown]
# # mmscale from Python
# Run it cell by cell in a notebook or an editor, or as a script: `python docs/from_python.py`.
# It trains a super-supernet, which takes most of its time; with `--iterations 40` it is over soon,
# and its accuracies then mean nothing.

# %%
import argparse
from pathlib import Path

import torch
import torchvision

import mmscale

parser = argparse.ArgumentParser()
parser.add_argument('--iterations', type=int, default=1000, help='of the super-supernet')
parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/from_python'))
args, _ = parser.parse_known_args()
configs = Path(mmscale.__file__).parent / '.mim' / 'configs'

# %% [markdown]
# ## Networks and what they cost
# Every network is named in one way: a name, a file, an `Arch`, a config, or a module.

# %%
print(mmscale.list_archs('regnety-*'))
print(mmscale.get_cost('RegNetY-4.0GF'))
print(mmscale.get_cost(torchvision.models.resnet18(), resolution=128).cost)

# %% [markdown]
# ## Larger by a rule
# `dWr` scales width most: few activations, so fast. `matched` meets the budget.

# %%
for network in mmscale.scale('RegNetY-400MF', ['dwr', 'dWr'], [2, 4], mode='matched'):
    arch = network.arch
    print(network.strategy, network.factor, arch.depths, arch.widths, network.cost.acts)

# %% [markdown]
# ## As a module

# %%
classifier = mmscale.build(network.arch).eval()
print(classifier(torch.zeros(1, 3, 224, 224)).shape)
backbone = mmscale.build(network.arch, features_only=True).eval()
print([tuple(features.shape) for features in backbone(torch.zeros(1, 3, 224, 224))])

# %% [markdown]
# ## Smaller by groups of channels

# %%
resnet, images = torchvision.models.resnet18(), torch.zeros(1, 3, 64, 64)
print(mmscale.channel_groups(resnet, [images]))
small, cost = mmscale.prune(resnet, [images], keep=0.5)
print(cost)

# %% [markdown]
# ## Searched
# One super-supernet is trained, then base model and scaling strategy are searched in it.

# %%
from mmscale.launch import build_runner, read_config  # noqa: E402

training = read_config(
    configs / 'scalenet' / 'supernet_digits.py',
    [
        f'train_cfg.max_iters={args.iterations}',
        f'default_hooks.checkpoint.interval={args.iterations}',
    ],
    work_dir=args.work_dir / 'supernet',
)
build_runner(training, 'train').train()
result = mmscale.run_search(
    configs / 'scalenet' / 'search-mcea_digits.py',
    work_dir=args.work_dir / 'search',
    load_from=args.work_dir / 'supernet' / f'iter_{args.iterations}.pth',
)
print(result)
print(mmscale.load_result(args.work_dir / 'search').strategy)
print(mmscale.report(args.work_dir / 'search', out=args.work_dir / 'report'))

# %% [markdown]
# ## Shipped

# %%
exported = mmscale.export(
    args.work_dir / 'search' / 'result.json',
    args.work_dir / 'exported',
    scaling_stage=1,
    overwrite=True,
)
print(exported)
