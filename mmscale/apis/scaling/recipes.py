"""Writes mmpretrain configs that train scaled networks by the recipe of their base model."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mmscale
from mmscale.apis.input_shape import config_input
from mmscale.apis.networks import classifier_config
from mmscale.apis.scaling.common import backbone_of, sides
from mmscale.apis.scaling.input_sizes import (
    check_sizes,
    resized_pipeline,
    with_resized_pipelines,
)
from mmscale.apis.scaling.model_settings import starts_from_weights
from mmscale.arch import Arch
from mmscale.arch.origin import Origin, origin_of
from mmscale.config_parts import head_classes, type_name
from mmscale.cost import Scaled
from mmscale.errors import UsageError
from mmscale.files import write_text
from mmscale.launch.config_text import BesideConfig, check_config_folder, child_of, settings_text
from mmscale.quiet import quiet_imports
from mmscale.shown import without_markup
from mmscale.tables import size_text

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

# Where the configs are that packages bring, wherever these are installed.
_STOCK = re.compile(r'.*/(mmpretrain|mmdet)/\.mim/configs/(.*)')

# What heads with a hidden layer and without have in common.
_HEAD_SETTINGS = ('num_classes', 'loss', 'topk', 'cal_acc')

# What sides of images of detectors are multiples of.
_STRIDE = 32


def recipe_of(name: str, arch: Arch, origin: Origin | None = None) -> str:
    """The config whose recipe trains networks like a base model, if there is one that fits them.

    Args:
        name: Name of the base model; a preset's says the family.
        arch: The base model. Of another name, a network for gray images is trained like the
            digit networks, others like ResNet or, without full-width blocks, EfficientNet.
        origin: What is remembered of the config that the base model is from.

    Returns:
        The path of a config, or ``mmpretrain::...``.

    Raises:
        UsageError: The recipe is for images of other channels, for other classes or other data; or
            it is a config of this project, and those are not installed.
    """
    named = [recipe for key, recipe in _RECIPES.items() if name.lower().startswith(key)]
    if arch.stem.in_channels == 1:
        like = _DIGITS
    elif any(block.kind in ('bottleneck', 'basic') for block in arch.blocks):
        like = _RECIPES['resnet']
    else:
        like = _RECIPES['efficientnet']
    kinds = []
    for recipe in dict.fromkeys([*named, like]):
        if '::' not in recipe and not (_CONFIGS / recipe).is_file():
            raise UsageError(
                f"{name}: its recipe is configs/{recipe}, but the project's configs are not "
                'installed here; name a config as the base, or as data_config (--data-config)'
            )
        recipe = recipe if '::' in recipe else str(_CONFIGS / recipe)
        config = load_recipe(recipe)
        known, classes = origin_of(config), head_classes(config.model)
        data = None if origin is None else origin.dataset
        # An Arch without a head is of no classes; its name may say what it is for.
        of_classes = arch.head.num_classes in (classes, 0 if named else classes)
        of_channels = arch.stem.in_channels == len(known.mean or 'RGB')
        # Gray images of ten classes may be anything.
        of_data = data == known.dataset if data else known.dataset == 'ImageNet'
        if of_classes and of_channels and of_data:
            return recipe
        kinds.append(known.dataset)
    is_from = f'from {origin}' if origin else 'whose config is not remembered'
    raise UsageError(
        f'{name}: no recipe is known for networks of {arch.stem.in_channels} channels and '
        f'{arch.head.num_classes} classes, {is_from} (the nearest is for {kinds[0]}): name the '
        'config whose data and schedule train them as data_config (--data-config CONFIG)'
    )


def recipe_for(plan: ScalingPlan, data_config: str | Path | None = None) -> str:
    """The config whose recipe trains the networks of a plan.

    Args:
        plan: What is to be scaled.
        data_config: A config with data, schedule and head for them, by path or as
            ``mmpretrain::...``; by default the one that the base model is from, or a known recipe.

    Raises:
        UsageError: It is no config of a model with a backbone, or its images have other channels
            than the networks take; or no recipe is known that fits, see :func:`recipe_of`.
    """
    base = plan.base.unscaled()
    if data_config is None:
        origin = getattr(plan.base, 'origin', None)
        return plan.base.recipe or recipe_of(base.name, base.arch, origin)
    recipe = str(data_config)
    if '::' not in recipe and not Path(recipe).is_file():
        raise UsageError(f'data_config={recipe} is not a file')
    config = load_recipe(recipe)
    if backbone_of(config) is None:
        raise UsageError(f'data_config={recipe}: the config has no model with a backbone')
    mean = origin_of(config).mean
    if base.arch is not None and mean and len(mean) != base.arch.stem.in_channels:
        raise UsageError(
            f'data_config={recipe}: its images have {len(mean)} channels, and {base.name} takes '
            f'{base.arch.stem.in_channels}'
        )
    return recipe


def load_recipe(recipe: str) -> Config:
    """Reads a config by path or by ``mmpretrain::`` name."""
    with quiet_imports():
        from mmengine.config import Config

        if Path(recipe).is_file():
            return Config.fromfile(recipe)
        return Config.fromstring(settings_text(dict(_base_=_packaged(recipe))), '.py')


def _packaged(recipe: str) -> str:
    """The name of a packaged config as MMEngine takes it for a base: with its ending."""
    return recipe if recipe.endswith('.py') else f'{recipe}.py'


def _difference(old: Any, new: Any) -> Any:
    """What a child config has to say to make one value of another; nothing of what is alike.

    MMEngine merges dicts, and replaces lists.
    """
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return new
    changed = [key for key in new if key not in old or old[key] != new[key]]
    return {key: _difference(old.get(key), new[key]) for key in changed}


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
    if 'head' not in recipe.model:
        return dict(backbone=backbone)
    return dict(backbone=backbone, head=_head_overrides(recipe.model.head, arch))


def _head_overrides(head: Mapping[str, Any], arch: Arch) -> dict[str, Any]:
    """What a child config has to say of a classifier's head: its widths, or another type of it."""
    widths: dict[str, Any] = dict(in_channels=arch.feature_channels)
    if arch.head.hidden_channels:
        widths['mid_channels'] = [arch.head.hidden_channels]
    is_stacked = type_name(head) == 'StackedLinearClsHead'
    is_plain = type_name(head) in ('LinearClsHead', 'DropoutClsHead')
    fits = is_stacked == bool(arch.head.hidden_channels)
    if fits or not (is_plain or is_stacked):
        return widths
    # The other of the two kinds, which has no other settings than these in common.
    own = {key: value for key, value in head.items() if key in _HEAD_SETTINGS}
    if is_plain:
        kind = dict(classifier_config(arch)['head'], dropout_rate=head.get('dropout', 0.0))
        kind.pop('topk')
    else:
        kind = dict(type='mmpretrain.LinearClsHead')
    return dict(_delete_=True, **{**kind, **own, **widths})


def _follows_arch(recipe: Config) -> bool:
    """Whether transforms of a recipe that say no size get the Arch's, when it runs."""
    return 'InputResolutionHook' in map(type_name, recipe.get('custom_hooks') or ())


def _base_arch(recipe: Config) -> Arch | None:
    """The Arch of a recipe's own backbone, if that is an ArchNet."""
    backbone = recipe.model.backbone
    if type_name(backbone) != 'ArchNet' or backbone.get('arch') is None:
        return None  # base configs leave it to be set
    with quiet_imports():
        from mmscale.models.backbones.arch_net import scaled_arch

    return scaled_arch(backbone.get('arch'), backbone.get('scaling'))


def _sizes(recipe: Config, network: Scaled) -> tuple[tuple[int, int], tuple[int, int]]:
    """Height and width of the input by a recipe, and of a network made of it.

    They are the same where the pipelines are not to be changed.
    """
    new = sides(network.resolution)
    base = _base_arch(recipe)
    follows = _follows_arch(recipe)
    shape, source = config_input(recipe, None, base if follows else None)
    if source == 'an assumption':
        return new, new
    old = (shape[-2], shape[-1])
    if follows or network.arch is None or base is None:
        return old, new
    if old == (base.resolution, base.resolution):
        return old, new
    # The images of a detector are others than those that its Arch is made for.
    grown = Fraction(network.resolution, base.resolution)
    height, width = (round(side * grown / _STRIDE) * _STRIDE for side in old)
    return old, old if grown == 1 else (height, width)


def _overrides(
    recipe: Config, network: Scaled, sizes: tuple[tuple[int, int], tuple[int, int]]
) -> dict[str, Any]:
    """What a child config of a recipe has to say to train a network, see :func:`_sizes`."""
    overrides: dict[str, Any] = {}
    imports = list((recipe.get('custom_imports') or {}).get('imports') or ())
    if 'mmscale.models' not in imports:
        imports.append('mmscale.models')
        overrides['custom_imports'] = dict(imports=imports, allow_failed_imports=False)
    overrides['model'] = _model_overrides(recipe, network)
    old, new = sizes
    if old == new:
        return overrides
    # Some batches are resized in the preprocessor.
    model = overrides['model'] if network.arch is None else recipe.model
    if model.get('data_preprocessor'):
        resized = resized_pipeline(model['data_preprocessor'], old, new)
        if resized != model['data_preprocessor']:
            overrides['model']['data_preprocessor'] = resized
    for key, part in recipe.items():
        grown = part if key == 'model' else with_resized_pipelines({key: part}, old, new)[key]
        if grown != part:
            overrides[key] = _difference(part, grown)
    return overrides


def config_text(network: Scaled, recipe: str, folder: Path) -> str:
    """The config that trains a network: a child of a recipe, in a folder.

    Of a recipe in MMEngine's pure-Python style, which no text inherits from, it has all settings.

    Args:
        network: The network.
        recipe: See :func:`recipe_of`.
        folder: Where the config will lie, beside ``archs/`` with the network's JSON file.

    Raises:
        UsageError: The recipe's pipelines cannot be set to the size of the network.
    """
    base = load_recipe(recipe)
    old, new = _sizes(base, network)
    overrides = _overrides(base, network, (old, new))
    if old != new:
        child = copy.deepcopy(base)
        child.merge_from_dict({key: overrides[key] for key in overrides if key != 'model'})
        follows = _follows_arch(base)
        check_sizes(
            (base, _base_arch(base) if follows else None, old),
            (child, network.arch if follows else None, new),
            network.label,
        )
    stock = _STOCK.fullmatch(recipe)
    if stock is not None:
        settings = dict(_base_='::'.join(stock.groups()), **overrides)
    elif Path(recipe).is_file():
        settings = child_of(base, folder, overrides)
    else:
        settings = dict(_base_=_packaged(recipe), **overrides)
    cost = network.cost
    # A searched family is named after its folder, whatever that is called.
    made = without_markup(
        f'{network.name} scaled by {network.strategy}, factor {network.factor:g}'
    )
    comment = (
        f'{made}: {cost.flops:,} flops,\n'
        f'{cost.params:,} params, {cost.acts:,} acts at {size_text(sides(network.resolution))}. '
        'The recipe is the base config.'
    )
    backbone = {} if network.arch is not None else network.network.backbone
    if starts_from_weights(base.model.backbone) and not starts_from_weights(backbone):
        comment += '\nThe weights it starts from do not fit: the backbone starts at random.'
    return settings_text(settings, comment)


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
            raise UsageError(
                f'{path} exists: name another folder, or give overwrite (--overwrite)'
            )


def write_networks(networks: Sequence[Scaled], recipe: str, folder: Path) -> None:
    """Writes a config per network, the Archs, and ``networks.json`` with all of them.

    Args:
        networks: The networks.
        recipe: See :func:`recipe_of`.
        folder: Made if it is not there; existing files of these names are replaced.
    """
    check_config_folder(folder)
    texts = [config_text(network, recipe, folder) for network in networks]
    origin = origin_of(load_recipe(recipe), Path(recipe).name)
    folder.mkdir(parents=True, exist_ok=True)
    for network, text in zip(networks, texts, strict=True):
        if network.arch is not None:
            (folder / 'archs').mkdir(exist_ok=True)
            network.arch.save(folder / 'archs' / f'{network.label}.json', origin)
        write_text(folder / f'{network.label}.py', text)
    rows = json.dumps([network.to_json() for network in networks], indent=1)
    write_text(folder / 'networks.json', rows + '\n')


def write_scaling(
    plan: ScalingPlan, networks: Sequence[Scaled], folder: Path, recipe: str | None = None
) -> None:
    """Writes networks, see :func:`write_networks`, and a picture of them beside fast scaling.

    Args:
        plan: What the networks came of.
        networks: The networks.
        folder: Gets ``sweep.png`` and ``sweep.svg`` too.
        recipe: Their recipe; by default see :func:`recipe_for`.
    """
    from mmscale.visualization.scalings import ScalingPoint, plot_scalings

    base, model = plan.base.unscaled(), plan.latency_model
    write_networks(networks, recipe or recipe_for(plan), folder)

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
