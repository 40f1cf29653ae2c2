"""Writes mmpretrain configs that train scaled networks by the recipe of their base model."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mmscale
from mmscale.apis.untrusted_configs import one_line_text
from mmscale.arch import Arch
from mmscale.config_parts import nested_datasets, nested_transforms, type_name
from mmscale.cost import Scaled
from mmscale.errors import UsageError
from mmscale.files import write_text
from mmscale.launch.config_text import BesideConfig, base_of, check_config_folder, settings_text
from mmscale.quiet import quiet_imports

if TYPE_CHECKING:
    from mmengine.config import Config

    from mmscale.apis.scaling.archs import ScalingPlan

# By the beginning of a base model's name. mmpretrain has no recipes for RegNetY and RegNetZ:
# theirs is RegNetX's.
_RECIPES = {
    'efficientnet': 'mmpretrain::efficientnet/efficientnet-b0_8xb32_in1k.py',
    'mobilenetv2': 'mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py',
    'mobilenetv3': 'mmpretrain::mobilenet_v3/mobilenet-v3-large_8xb128_in1k.py',
    'regnet': 'mmpretrain::regnet/regnetx-400mf_8xb128_in1k.py',
    'resnet': 'mmpretrain::resnet/resnet50_8xb32_in1k.py',
    'resnext': 'mmpretrain::resnext/resnext50-32x4d_8xb32_in1k.py',
    'scalenet': 'scalenet/scalenet-s0_8xb128_in1k.py',
}
_DIGITS = 'scalenet/arch-net_digits.py'
_CONFIGS = (Path(mmscale.__file__).parent / '.mim' / 'configs').resolve()

# Where mmpretrain's own configs are, wherever it is installed.
_STOCK = '/mmpretrain/.mim/configs/'

# Which argument of a transform is a size in pixels. The first ones cut the network's input.
_CROPS = {
    'CenterCrop': 'crop_size',
    'EfficientNetCenterCrop': 'crop_size',
    'EfficientNetRandomCrop': 'scale',
    'RandomCrop': 'crop_size',
    'RandomResizedCrop': 'scale',
}
_SIZES = {**_CROPS, 'Resize': 'scale', 'ResizeEdge': 'scale'}


def recipe_of(name: str, arch: Arch) -> str:
    """The config whose recipe trains networks like a base model.

    Args:
        name: Name of the base model; a preset's says the family.
        arch: The base model. Of another name, a network for gray images is trained like the
            digit networks, others like ResNet or, without full-width blocks, EfficientNet.

    Returns:
        The path of a config, or ``mmpretrain::...``.

    Raises:
        ValueError: It is a config of this project, and those are not installed.
    """
    named = [recipe for key, recipe in _RECIPES.items() if name.lower().startswith(key)]
    if named:
        recipe = named[0]
    elif arch.stem.in_channels == 1:
        recipe = _DIGITS
    elif any(block.kind in ('bottleneck', 'basic') for block in arch.blocks):
        recipe = _RECIPES['resnet']
    else:
        recipe = _RECIPES['efficientnet']
    if '::' in recipe:
        return recipe
    if not (_CONFIGS / recipe).is_file():
        raise UsageError(
            f"{name}: its recipe is configs/{recipe}, but the project's configs are not installed "
            'here; name a config as the base'
        )
    return str(_CONFIGS / recipe)


def load_recipe(recipe: str) -> Config:
    """Reads a config by path or by ``mmpretrain::`` name."""
    with quiet_imports():
        from mmengine.config import Config

        if Path(recipe).is_file():
            return Config.fromfile(recipe)
        return Config.fromstring(settings_text(dict(_base_=recipe)), '.py')


def _difference(old: Any, new: Any) -> Any:
    """What a child config has to say to make one value of another; nothing of what is alike.

    MMEngine merges dicts, and replaces lists.
    """
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return new
    changed = [key for key in new if key not in old or old[key] != new[key]]
    return {key: _difference(old.get(key), new[key]) for key in changed}


def _resized(pipeline: list, resolution: int) -> list:
    """A pipeline for another input size; what is resized before the crop keeps its ratio."""
    resized = copy.deepcopy(pipeline)
    for sizes in (_CROPS, _SIZES):
        inputs = [
            one[sizes[type_name(one)]]
            for one in nested_transforms(pipeline)
            if type_name(one) in sizes
        ]
        if inputs:
            break
    else:
        return resized
    before = inputs[-1] if isinstance(inputs[-1], int) else max(inputs[-1])

    def size(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return tuple(size(part) for part in value)
        return round(value * resolution / before) if value > 0 else value

    for old, new in zip(nested_transforms(pipeline), nested_transforms(resized), strict=True):
        key = _SIZES.get(type_name(old))
        if key is not None:
            new[key] = size(old[key])
    return resized


def _model_overrides(recipe: Config, network: Scaled) -> dict[str, Any]:
    """What a child config of a recipe has to say of the model."""
    arch = network.arch
    if arch is None:
        return dict(_delete_=True, **network.network.model)
    arch_file = BesideConfig(f'archs/{network.label}.json')
    backbone: dict[str, Any] = dict(type='mmscale.ArchNet', arch=arch_file)
    if type_name(recipe.model.backbone) == 'ArchNet':
        backbone['scaling'] = None
    else:
        backbone['_delete_'] = True
    head: dict[str, Any] = dict(in_channels=arch.feature_channels)
    if arch.head.hidden_channels:
        head['mid_channels'] = [arch.head.hidden_channels]
    return dict(backbone=backbone, head=head)


def _overrides(recipe: Config, network: Scaled) -> dict[str, Any]:
    """What a child config of a recipe has to say to train a network."""
    overrides: dict[str, Any] = {}
    imports = list((recipe.get('custom_imports') or {}).get('imports') or ())
    if 'mmscale.models' not in imports:
        imports.append('mmscale.models')
        overrides['custom_imports'] = dict(imports=imports, allow_failed_imports=False)
    overrides['model'] = _model_overrides(recipe, network)
    if 'InputResolutionHook' in map(type_name, recipe.get('custom_hooks') or ()):
        return overrides  # it sets the pipelines' sizes from the Arch
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        dataset = (recipe.get(loader) or {}).get('dataset')
        resized = copy.deepcopy(dataset)
        # From the old to the new: a part that occurs twice may be one object.
        for old, new in zip(nested_datasets(dataset), nested_datasets(resized), strict=True):
            if old.get('pipeline'):
                new['pipeline'] = _resized(old['pipeline'], network.resolution)
        if resized != dataset:
            overrides[loader] = dict(dataset=_difference(dataset, resized))
    return overrides


def config_text(network: Scaled, recipe: str, folder: Path) -> str:
    """The config that trains a network: a child of a recipe, in a folder.

    Args:
        network: The network.
        recipe: See :func:`recipe_of`.
        folder: Where the config will lie, beside ``archs/`` with the network's JSON file.
    """
    overrides = _overrides(load_recipe(recipe), network)
    base = recipe
    if _STOCK in recipe:
        base = f'mmpretrain::{recipe.rpartition(_STOCK)[2]}'
    cost = network.cost
    # A searched family is named after its folder, whatever that is called.
    made = one_line_text(f'{network.name} scaled by {network.strategy}, factor {network.factor:g}')
    comment = (
        f'{made}: {cost.flops:,} flops,\n'
        f'{cost.params:,} params, {cost.acts:,} acts at {network.resolution} px. '
        'The recipe is the base config.'
    )
    return settings_text(dict(_base_=base_of(base, folder), **overrides), comment)


def output_files(labels: Sequence[str], folder: Path) -> list[Path]:
    """The files that :func:`write_scaling` makes for networks of these labels."""
    configs = [folder / f'{label}.py' for label in labels]
    archs = [folder / 'archs' / f'{label}.json' for label in labels]
    sweep = [folder / f'sweep.{kind}' for kind in ('png', 'svg')]
    return [*configs, *archs, folder / 'networks.json', *sweep]


def check_output(labels: Sequence[str], folder: Path) -> None:
    """Refuses to write over files.

    Raises:
        ValueError: One of the files exists, or the folder is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f'{folder} is a file, not a folder')
    for path in output_files(labels, folder):
        if path.exists():
            raise UsageError(f'{path} exists: name another folder, or give --overwrite')


def write_networks(networks: Sequence[Scaled], recipe: str, folder: Path) -> None:
    """Writes a config per network, the Archs, and ``networks.json`` with all of them.

    Args:
        networks: The networks.
        recipe: See :func:`recipe_of`.
        folder: Made if it is not there; existing files of these names are replaced.
    """
    check_config_folder(folder)
    texts = [config_text(network, recipe, folder) for network in networks]
    folder.mkdir(parents=True, exist_ok=True)
    for network, text in zip(networks, texts, strict=True):
        if network.arch is not None:
            (folder / 'archs').mkdir(exist_ok=True)
            network.arch.save(folder / 'archs' / f'{network.label}.json')
        write_text(folder / f'{network.label}.py', text)
    rows = json.dumps([network.to_json() for network in networks], indent=1)
    write_text(folder / 'networks.json', rows + '\n')


def write_scaling(plan: ScalingPlan, networks: Sequence[Scaled], folder: Path) -> None:
    """Writes networks, see :func:`write_networks`, and a picture of them beside fast scaling.

    Args:
        plan: What the networks came of.
        networks: The networks.
        folder: Gets ``sweep.png`` and ``sweep.svg`` too.
    """
    from mmscale.visualization.scalings import ScalingPoint, plot_scalings

    base, model = plan.base.unscaled(), plan.latency_model
    write_networks(networks, plan.base.recipe or recipe_of(base.name, base.arch), folder)

    def points(some: Sequence[Scaled]) -> list[ScalingPoint]:
        return [
            ScalingPoint(
                made.strategy,
                made.cost.flops,
                made.cost.acts,
                None if model is None else model.predict(made.default_cost),
                made.factor,
            )
            for made in some
        ]

    title = f'{base.name} under fast scaling of several alphas'
    setting = '' if model is None else str(model.setting)
    (origin,) = points([base])
    figure = plot_scalings(origin, points(plan.sweep()), title, setting, points(networks))
    for kind in ('png', 'svg'):
        figure.savefig(folder / f'sweep.{kind}', dpi=120)
