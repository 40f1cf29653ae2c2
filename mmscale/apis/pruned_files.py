"""Pruned networks as files: of a search by gradient, or of a trained network that had none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mmscale.apis.networks import build_module
from mmscale.arch import Arch, get_arch
from mmscale.arch.origin import origin_of
from mmscale.config_parts import head_classes, is_pretrained, type_name, with_valid_topk
from mmscale.cost import count_module
from mmscale.errors import UsageError, one_line
from mmscale.files import atomic_write, write_text
from mmscale.launch.config_text import BesideConfig, check_config_folder, child_of, settings_text
from mmscale.models import ArchNet, DMSModel
from mmscale.models.checkpoints import unwrapped_state
from mmscale.models.dms import (
    ChannelGroups,
    Pruning,
    apply_pruning,
    is_described_by_arch,
    plan_pruning,
    pruned_arch,
    renumbered,
)
from mmscale.tables import Printed, make_table

if TYPE_CHECKING:
    from mmengine.config import Config
    from rich.table import Table

_DESCRIPTIONS = ('arch.json', 'pruned.json')
_IMPORTS = dict(imports=['mmscale.models'], allow_failed_imports=False)


@dataclass(frozen=True, repr=False)
class PrunedFiles(Printed):
    """A pruned network as files; prints what is left.

    Attributes:
        before: Flops, params and acts of the whole network.
        after: Those of the network that was found.
        budget: The ``metric``, the ``goal``, the network's ``value``, and whether the search has
            ``ended``, which puts the network onto it; pruning without a search always has.
        kept: Kept and all elements by group.
        widths: New settings of what feeds the head after an ArchNet.
        files: Names of the files.
    """

    before: dict[str, int]
    after: dict[str, int]
    budget: dict[str, Any]
    kept: dict[str, list[int]]
    widths: dict[str, int]
    files: list[str]

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain JSON data."""
        return dict(self.__dict__)

    def renderables(self) -> list[Table | str]:
        """Costs before and after, the budget, the widths and the files."""
        rows = [
            (name, f'{before:,}', f'{self.after[name]:,}', f'{self.after[name] / before:.1%}')
            for name, before in self.before.items()
        ]
        metric, goal, value = (self.budget[key] for key in ('metric', 'goal', 'value'))
        lines = [f'budget: {metric} {goal:,.6g}, the network has {value / goal - 1:+.2%}']
        if not self.budget['ended']:
            lines.append('The search has not ended: its last iteration meets the budget.')
        lines += [
            f'{name}: {kept} of {size}' for name, (kept, size) in self.kept.items() if kept < size
        ]
        lines += [f'{setting}: {width}' for setting, width in self.widths.items()]
        lines.append(f'\nWrote {", ".join(self.files)}.')
        if self.files[-1].endswith('.py'):
            lines.append(f'To train it: tools/train.py {self.files[-1]}')
        return [make_table(None, ('', 'before', 'after', 'share'), rows), *lines]


def export_search(
    config: Config,
    state: Mapping[str, torch.Tensor],
    out: str | Path,
    recipe: Config | None = None,
    overwrite: bool = False,
) -> PrunedFiles:
    """Writes the network that a search by gradient has found, and a config to retrain it.

    Args:
        config: Config of the search; its model is a DMSModel.
        state: State dict of the search's checkpoint.
        out: See :func:`write_pruned`.
        recipe: Config that ``retrain.py`` inherits from and whose model it prunes; the search's
            own by default.
        overwrite: Whether to replace an earlier export.

    Raises:
        ValueError: The config is of no search, the state is not its own, the recipe is of another
            kind of model, or the folder must not be replaced.
    """
    recipe = config if recipe is None else recipe
    check_folder(out, recipe, overwrite)
    settings = model_settings(config)
    search = build_module(settings, config.get('default_scope') or 'mmpretrain')
    if not isinstance(search, DMSModel):
        raise UsageError(f'model.type={settings["type"]} is not a mmscale.DMSModel')
    try:
        search.load_state_dict(unwrapped_state(state))
    except RuntimeError as error:
        raise UsageError(f'the checkpoint is not of this config: {one_line(error):.300}') from None
    budget = {
        'metric': search.metric,
        'goal': search.goal,
        'value': search.value(search.current_cost()),
        'ended': all(bool(gate.hard) for gate in search.gates.values()),
    }
    search.masks.remove()
    model, groups = search.model, search.groups
    keep = {group.name: search.gates[group.key].keep_indices.tolist() for group in groups.all}
    return write_pruned(model, groups, keep, search.example_inputs, recipe, out, budget)


def model_settings(config: Config) -> dict[str, Any]:
    """The model of a config, with the data_preprocessor that is beside it."""
    settings = dict(config.get('model') or {})
    if 'data_preprocessor' in config:
        settings.setdefault('data_preprocessor', config.data_preprocessor)
    return settings


def write_pruned(
    model: nn.Module,
    groups: ChannelGroups,
    keep: Mapping[str, Sequence[int]],
    inputs: Sequence[torch.Tensor],
    recipe: Config,
    out: str | Path,
    budget: dict[str, Any],
    finish: Callable[[nn.Module], object] | None = None,
) -> PrunedFiles:
    """Prunes a network, in place, and writes what is left and a config to train it.

    Args:
        model: The whole network, with the weights that are handed down.
        groups: What can go.
        keep: Indices of the elements that stay, by the groups' names.
        inputs: Positional arguments of one forward pass, which the cost is counted for.
        recipe: Config that ``retrain.py`` inherits from and whose model it prunes.
        out: Folder to write to: ``weights.pth``; ``arch.json`` for an ArchNet alone and for a
            classifier with one, ``pruned.json`` for any other model; and ``retrain.py``, unless
            the recipe is of no file.
        budget: ``metric``, ``goal`` and whether pruning has ``ended``; and ``value`` where that is
            not counted here.
        finish: What is done to the pruned network before it is written.

    Raises:
        ValueError: The recipe is of another kind of model.
    """
    folder = Path(out)
    pruning = plan_pruning(model, groups, keep)
    whole = _plain_model(recipe)
    arch_net = _arch_net(model)
    if arch_net is not None and 'arch' not in whole.get('backbone', whole):
        raise UsageError(f'recipe={recipe.filename}: its model has no mmscale.ArchNet')
    before = count_module(model, inputs=inputs, memory=False)
    after = count_module(apply_pruning(model, pruning), inputs=inputs, memory=False)
    if finish is not None:
        finish(model)
    tensors = model.state_dict()
    described: Pruning | Arch = pruning
    path = folder / 'pruned.json'
    widths: dict[str, int] = {}
    if arch_net is not None:
        name, module = arch_net
        prefix = f'{name}.' if name else ''
        described = pruned_arch(module.arch, pruning, prefix)
        tensors = renumbered(tensors, module.arch, pruning, prefix)
        path = folder / 'arch.json'
        widths = _new_widths(whole, described, module.out_indices[-1])
    retraining = None
    if recipe.filename is not None:
        retraining = _retraining(recipe, whole, folder, path.name, widths)
    folder.mkdir(parents=True, exist_ok=True)
    for name in _DESCRIPTIONS:
        (folder / name).unlink(missing_ok=True)
    if isinstance(described, Arch):
        described.save(path, origin_of(recipe))
    else:
        described.save(path)
    weights = folder / 'weights.pth'
    with atomic_write(weights) as file:
        torch.save({'state_dict': tensors}, file)
    files = [path, weights]
    if retraining is not None:
        files.append(folder / 'retrain.py')
        write_text(files[-1], retraining)
    return PrunedFiles(
        asdict(before.cost),
        asdict(after.cost),
        {'value': getattr(after.cost, budget['metric'], None), **budget},
        {
            group.name: [len(keep.get(group.name, range(group.size))), group.size]
            for group in groups.all
        },
        widths,
        [str(file) for file in files],
    )


def check_folder(out: str | Path, recipe: Config, overwrite: bool) -> None:
    """Refuses a folder that must not be written to, before any work.

    Raises:
        UsageError: It is a file, or holds an earlier export that is not to be replaced.
    """
    folder = Path(out)
    if recipe.filename is not None:
        check_config_folder(folder)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f'out={folder} is a file, not a folder')
    earlier = [name for name in (*_DESCRIPTIONS, 'weights.pth') if (folder / name).exists()]
    if earlier and not overwrite:
        raise UsageError(
            f'{folder / earlier[0]} exists: name another folder, or give overwrite (--overwrite); '
            'what was trained from it would no longer fit'
        )


def _arch_net(model: nn.Module) -> tuple[str, ArchNet] | None:
    """The ArchNet whose Arch says all that goes of a model, and its name there."""
    for name in ('', 'backbone'):
        module = getattr(model, name, None) if name else model
        if isinstance(module, ArchNet) and is_described_by_arch(model, module):
            return name, module
    return None


def _plain_model(config: Config) -> dict[str, Any]:
    """Config of the model that is trained, without the search around it."""
    model = config.to_dict().get('model')
    if not isinstance(model, dict):
        raise UsageError(f'recipe={config.filename} has no model')
    if type_name(model) != 'DMSModel':
        return model
    plain = model['model']
    if 'data_preprocessor' in model:
        plain.setdefault('data_preprocessor', model['data_preprocessor'])
    return plain


def _new_widths(model: Mapping[str, Any], arch: Arch, index: int) -> dict[str, int]:
    """What a classifier's head is told of the feature map of that index, as settings."""
    channels = (*arch.widths, arch.feature_channels)
    if isinstance((model.get('head') or {}).get('in_channels'), int):
        return {'head.in_channels': channels[index]}
    return {}


def _retraining(
    recipe: Config,
    model: dict[str, Any],
    folder: Path,
    described: str,
    widths: Mapping[str, int],
) -> str:
    """The config that trains a pruned network: its recipe's, with another model."""
    # In the place of the config itself, so that the folder can be moved.
    is_pruned = type_name(model) == 'PrunedModel'
    inner = model['model'] if is_pruned else model
    if 'head' in inner:
        inner['head'] = with_valid_topk(inner['head'], head_classes(inner))
    network = inner.get('backbone', inner)
    for part in (inner, network):
        # These weights do not fit what is left, and load_from has all of it.
        settings = part.get('init_cfg')
        if any(map(is_pretrained, settings if isinstance(settings, list) else [settings])):
            del part['init_cfg']
    if described == 'arch.json':
        network['arch'] = BesideConfig(described)
        network.pop('scaling', None)  # The Arch is scaled already.
        for setting, value in widths.items():
            part, _, key = setting.partition('.')
            model[part][key] = value
    else:
        if str(network.get('arch')).endswith('.json'):
            # The pruning is of this very network, whatever comes of the file.
            network['arch'] = get_arch(network['arch']).to_json()
        if is_pruned:
            model['pruned'] = BesideConfig(described)
        else:
            model = dict(type='mmscale.PrunedModel', pruned=BesideConfig(described), model=model)
    changes: dict[str, Any] = dict(
        model=dict(_delete_=True, **model),
        load_from=BesideConfig('weights.pth'),
        work_dir=BesideConfig('retrain'),
    )
    whole = recipe.to_dict()
    hooks = whole.get('custom_hooks') or []
    if any(type_name(hook) == 'DMSHook' for hook in hooks):
        changes['custom_hooks'] = [hook for hook in hooks if type_name(hook) != 'DMSHook']
    for key in ('val_evaluator', 'test_evaluator'):
        evaluator = with_valid_topk(whole.get(key), head_classes(model))
        if evaluator != whole.get(key):
            changes[key] = evaluator
    settings = child_of(recipe, folder, changes)
    if '_base_' not in settings:
        settings.setdefault('custom_imports', _IMPORTS)
    comment = 'Written by tools/prune.py. From random weights: --cfg-options load_from=None'
    return settings_text(settings, comment)
