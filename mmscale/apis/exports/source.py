"""What is exported: a network with its weights, and what is known about it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmscale.apis.exports.weights import (
    RANDOM,
    checked_weights,
    fitting_head,
    read_weights,
    same_random_weights,
)
from mmscale.apis.networks import (
    Network,
    build_module,
    classifier_config,
    config_image_shape,
    find_network,
    image_shape,
)
from mmscale.apis.reports.run_files import read_run
from mmscale.apis.untrusted_configs import check_untrusted
from mmscale.arch import Arch
from mmscale.arch.checks import check_keys
from mmscale.arch.json_files import parse_json, read_json
from mmscale.arch.origin import KEY, Origin, origin_of
from mmscale.config_parts import innermost_datasets, type_name
from mmscale.errors import UsageError
from mmscale.launch.command_line import read_config
from mmscale.search.result_files import read_result

if TYPE_CHECKING:
    from mmengine.config import Config
    from torch import nn

# Models that hold many networks, and the tool that writes one of them.
_NOT_ONE_NETWORK = {
    'DMSModel': 'write the network that it found with tools/prune.py',
    'SuperNetClassifier': 'export the result.json of a search in it',
    'SuperNetDetector': 'export the result.json of a search in it',
}
# Settings of a SuperNet that an ArchNet has too.
_OF_BOTH = ('channels_last', 'neck', 'norm_cfg', 'norm_eval', 'out_indices', 'out_strides')


@dataclass
class Source:
    """A network to export.

    Attributes:
        name: For the model card.
        model: The network with its weights: an mmpretrain classifier, an mmdet detector, or
            another model that maps images.
        image_shape: Of one image.
        settings: Config of the model and of what is around it, as plain data; empty for a module
            that no config describes.
        arch: The Arch of the backbone; None if that is no ArchNet.
        origin: The config that it is from and its data, as far as they are known.
        provenance: Where network and weights come from: a few words each.
        score: ``correct`` and ``total``, as a search scored the very weights; or None.
        notes: What was decided for the user.
    """

    name: str
    model: nn.Module
    image_shape: tuple[int, int, int]
    settings: dict[str, Any]
    arch: Arch | None = None
    origin: Origin | None = None
    provenance: dict[str, str] = field(default_factory=dict)
    score: dict[str, int] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def scope(self) -> str:
        """``mmpretrain`` or ``mmdet``."""
        return self.settings.get('default_scope', 'mmpretrain')


def find_source(
    source: str | Path | dict | Arch | Config | nn.Module | Network,
    checkpoint: str | Path | None = None,
    scaling_stage: int | None = None,
    config: str | Path | None = None,
    options: Sequence[str] = (),
    random_weights: bool = False,
) -> Source:
    """Finds a network and its weights.

    Args:
        source: Whatever :func:`mmscale.apis.networks.find_network` finds; or ``weights.pth`` or
            ``weights.safetensors`` of an earlier export.
        checkpoint: The weights, of a classifier or a backbone; by default those that a search
            scored the network with, or those of a module that was given built.
        scaling_stage: Scaling stage of the network in a ``result.json``, or its place in a
            Pareto front, from 0 on.
        config: Config around an Arch: its model's backbone becomes the Arch.
        options: Overrides of the config, ``KEY=VALUE`` each.
        random_weights: Whether there are no weights yet.

    Raises:
        UsageError: There is no such network, or the weights are not its own.
    """
    if random_weights and checkpoint is not None:
        raise UsageError(f'random_weights and checkpoint={checkpoint}: give one of them')
    if checkpoint is not None and not Path(checkpoint).is_file():
        raise UsageError(f'checkpoint={checkpoint} is not a file')
    if isinstance(source, (str, Path)) and Path(source).suffix in ('.pth', '.safetensors'):
        network, checkpoint = _exported(Path(source), checkpoint, scaling_stage, random_weights)
        if options and config is None:
            raise UsageError(f'options={list(options)}: {source} is no config')
    else:
        with same_random_weights():  # where a name alone builds a module
            network = find_network(source, () if config else options, scaling_stage)
    if network.arch is None:
        if config is not None:
            raise UsageError(f'config={config}: {network.name} is no Arch that it could be around')
        return _of_network(network, checkpoint, random_weights)
    member = None if network.member is None else _Member(network, scaling_stage or 0)
    is_scored = checkpoint is None and member is not None and not random_weights
    if is_scored:
        checkpoint = member.checkpoint
    weights, about = None, {'provenance': {'weights': 'random'}}
    if not random_weights:
        weights, about = read_weights(_needed(checkpoint, network))
    arch = network.arch
    if 'arch' in about and _described(checkpoint, about).stages != arch.stages:
        raise UsageError(f'{checkpoint} is of another Arch than {network.name}')
    provenance = {**(member.provenance if member else {}), **about['provenance']}
    around = _searched_detector(member.folder, arch) if member and config is None else None
    if config is not None:
        around = read_config(config, options)
    if around is not None:
        path = member.folder if config is None else Path(config)
        made = _around(arch, around, path, checkpoint, weights)
        made.provenance = {**provenance, **made.provenance}
    else:
        arch, notes = (arch, []) if weights is None else fitting_head(arch, weights)
        settings = {'default_scope': 'mmpretrain', 'model': classifier_config(arch)}
        settings |= _preprocessor(network, member)
        model = _built(settings['model'], 'mmpretrain', checkpoint, weights)
        shape = image_shape(arch)
        made = Source('', model, shape, settings, arch, network.origin, provenance, notes=notes)
        _load(made, checkpoint, weights)
    made.name = network.name if member is None else member.name
    if is_scored:
        made.score = network.member.get('score')
    return made


def _exported(
    path: Path, checkpoint: str | Path | None, scaling_stage: int | None, random_weights: bool
) -> tuple[Network, Path]:
    """The network of an earlier export, and its weights."""
    if checkpoint is not None or random_weights:
        other = 'random_weights' if random_weights else f'checkpoint={checkpoint}'
        raise UsageError(f'{path} and {other}: give one of them')
    if scaling_stage is not None:
        raise UsageError(f'scaling stage {scaling_stage}: {path} is no result of a search')
    if not path.is_file():
        raise UsageError(f'{path} is not a file')
    _, about = read_weights(path)
    if 'arch' not in about:
        raise UsageError(
            f'{path} has no Arch inside: name the Arch or the config, and this as checkpoint'
        )
    network = Network(path.resolve().parent.name, None, _described(path, about))
    data = parse_json(f'{path}: arch', about['arch'])
    if KEY in data:
        network.origin = Origin.from_json(str(path), data[KEY])
    return network, path


def _needed(checkpoint: str | Path | None, network: Network) -> str | Path:
    if checkpoint is None:
        raise UsageError(
            f'{network.source or network.name}: a checkpoint with the weights is needed; for a '
            'network that is not trained yet say random_weights (--random-weights)'
        )
    return checkpoint


def _described(path: str | Path, about: Mapping[str, Any]) -> Arch:
    """The Arch inside of a checkpoint."""
    try:
        return Arch.from_json(parse_json('arch', about['arch']))
    except ValueError as error:
        raise UsageError(f'{path}: {error}') from None


def _built(
    settings: Mapping[str, Any], scope: str, checkpoint: str | Path | None, weights: Mapping | None
) -> nn.Module:
    """A model with random weights; those of a checkpoint are compared with it before."""
    if weights is not None:
        checked_weights(build_module(settings, scope, meta=True), weights, checkpoint)
    with same_random_weights():
        model = build_module(settings, scope)
    model.eval()  # mmpretrain's backbones return nothing
    return model


def _load(made: Source, checkpoint: str | Path | None, weights: Mapping | None) -> None:
    """Puts weights into the model of a source, or says that they are random."""
    if weights is None:
        made.notes.append(RANDOM)
        made.provenance['weights'] = 'random'
        made.provenance.pop('trained on', None)
        return
    fitting = checked_weights(made.model, weights, checkpoint)
    made.model.load_state_dict(fitting, strict=False)


# ---------------------------------------------------------------------- searches


class _Member:
    """One network of a search's result: its files and what is known of the search."""

    def __init__(self, network: Network, number: int) -> None:
        path = Path(network.source)
        self.path = path / 'result.json' if path.is_dir() else path
        self.folder = self.path.parent
        self.data = read_result(self.path)
        is_front = self.data.get('kind') == 'pareto'
        self.file_name = f'{"front" if is_front else "scaling_stage"}_{number}'
        self.name = f'{self.path.resolve().parent.name}_{self.file_name}'
        self.run = read_run(self.folder)

    @property
    def checkpoint(self) -> Path:
        """The weights that the search scored the network with."""
        path = self.folder / 'weights' / f'{self.file_name}.pth'
        if not path.is_file():
            raise UsageError(
                f'{path} is not a file: name the checkpoint, or say random_weights '
                '(--random-weights)'
            )
        return path

    @property
    def provenance(self) -> dict[str, str]:
        """What the result and the dumped config beside it say of the search."""
        data = self.data
        about = {'network': f'{self.file_name} of a search', 'search seed': str(data.get('seed'))}
        if data.get('config_hash'):
            about['search config, SHA-256'] = str(data['config_hash'])
        if isinstance(data.get('versions'), dict):
            about['search versions'] = ', '.join(f'{k} {v}' for k, v in data['versions'].items())
        names = sorted(file.name for file in self.folder.glob('*.py'))
        if names:
            about['search config'] = ', '.join(names)
        loader = self.run.config.get('test_dataloader')
        dataset = loader.get('dataset') if isinstance(loader, Mapping) else None
        if isinstance(dataset, Mapping):
            about['scored on'] = _dataset(dataset)
        return about


def _searched_detector(folder: Path, arch: Arch) -> Any:
    """Config of the detector that a search on detection scored with an Arch; None of any other.

    Args:
        folder: Of the search, with its dumped config.
        arch: The network.
    """
    from mmengine.config import Config

    run = read_run(folder).config
    model = run.get('model')
    if not isinstance(model, Mapping) or type_name(model) != 'SuperNetDetector':
        return None
    owner = f'{folder}: model.detector of the dumped config'
    detector = check_keys(owner, model.get('detector'), None)
    backbone = check_keys(f'{owner}: backbone', detector.get('backbone') or {}, None)
    backbone = {key: value for key, value in backbone.items() if key in _OF_BOTH}
    detector['backbone'] = dict(backbone, type='mmscale.ArchNet')
    config = {key: run[key] for key in ('default_scope', 'custom_imports') if key in run}
    owner = f'{folder}: test_dataloader of the dumped config'
    loader = check_keys(owner, run.get('test_dataloader') or {}, None)
    dataset = check_keys(f'{owner}: dataset', loader.get('dataset') or {}, None)
    while isinstance(dataset.get('dataset'), Mapping):
        dataset = dict(dataset['dataset'])
    if isinstance(dataset.get('pipeline'), (list, tuple)):
        # The images of a search have the resolution of the network that is scored.
        dataset['pipeline'] = [
            dict(one, resolution=arch.resolution)
            if type_name(one) == 'ResizeToResolution'
            else one
            for one in dataset['pipeline']
        ]
        config['test_dataloader'] = dict(loader, dataset=dataset)
    checked = check_untrusted(str(folder), dict(config, model=detector))
    if 'test_dataloader' in checked:
        checked |= dict(test_evaluator=dict(type='CocoMetric', metric='bbox'), test_cfg={})
    return Config(checked)


def _preprocessor(network: Network, member: _Member | None) -> dict[str, Any]:
    """How the images of an Arch's training are known to have been normalised."""
    found = None if member is None else member.run.config.get('data_preprocessor')
    if isinstance(found, dict):
        # It belongs to somebody's dumped config, and goes into the exported one.
        return check_untrusted(str(member.folder), {'data_preprocessor': found})
    known = {} if network.origin is None else network.origin.preprocessor
    return {'data_preprocessor': known} if known else {}


def _dataset(dataset: Mapping) -> str:
    """A dataset of a config in a few words; wrappers are left out, and so are paths."""
    found = []
    for one in innermost_datasets(dataset):
        split = one.get('split')
        of = f', split {split}' if split and isinstance(split, str) else ''
        found.append(f'{type_name(one)}{of}')
    return '; '.join(dict.fromkeys(found))


# ---------------------------------------------------------------------- configs


def _of_network(network: Network, checkpoint: str | Path | None, random_weights: bool) -> Source:
    """The model of a config, or a module; with its weights."""
    weights, about = None, {'provenance': {}}
    is_built = network.config is None and network.source is None
    if not random_weights and not (is_built and checkpoint is None):
        weights, about = read_weights(_needed(checkpoint, network))
    if network.config is not None:
        path = Path(network.source or 'the config')
        made = _of_config(network.config, network.name, path, checkpoint, weights)
    else:
        model = copy.deepcopy(network.build())
        model.eval()  # mmpretrain's backbones return nothing
        made = Source(network.name, model, network.image_shape, {})
    if weights is not None or random_weights:
        _load(made, checkpoint, weights)
    made.provenance = {**about['provenance'], **made.provenance}
    if made.arch is not None:
        made.arch = _with_classes(made.arch, made.model)
    return made


def _around(
    arch: Arch, config: Any, path: Path, checkpoint: str | Path | None, weights: Mapping | None
) -> Source:
    """The model of a config with an Arch as its backbone."""
    model = config.get('model')
    backbone = model.get('backbone') if isinstance(model, Mapping) else None
    if not isinstance(backbone, Mapping) or type_name(backbone) != 'ArchNet':
        raise UsageError(f'{path}: model.backbone is no mmscale.ArchNet')
    mean = origin_of(config).mean
    if mean and len(mean) != arch.stem.in_channels:
        raise UsageError(
            f'config={path}: its images have {len(mean)} channels, and the Arch takes '
            f'{arch.stem.in_channels}'
        )
    backbone['arch'] = arch.to_json()
    backbone.pop('scaling', None)
    head = model.get('head')
    if isinstance(head, Mapping) and type_name(model.get('neck')) == 'GlobalAveragePooling':
        # It is for the config's own Arch.
        head['in_channels'] = arch.feature_channels
    made = _of_config(config, path.stem, path, checkpoint, weights)
    _load(made, checkpoint, weights)
    made.arch = made.arch if made.arch is None else _with_classes(made.arch, made.model)
    return made


def _of_config(
    config: Any, name: str, path: Path, checkpoint: str | Path | None, weights: Mapping | None
) -> Source:
    """The model of a config, without its weights, which fit it."""
    from mmscale.models import ArchNet

    if not isinstance(config.get('model'), Mapping):
        raise UsageError(f'{path}: the config has no model')
    kind = type_name(config.model)
    if kind in _NOT_ONE_NETWORK:
        raise UsageError(f'{path}: model.type={kind} is not one network: {_NOT_ONE_NETWORK[kind]}')
    model = config.model.to_dict()
    # Weights that training starts from: the checkpoint has them all.
    model.pop('init_cfg', None)
    if isinstance(model.get('backbone'), dict):
        model['backbone'].pop('init_cfg', None)
    if isinstance(model.get('pruned'), str):
        model['pruned'] = read_json(model['pruned'])
    config.model = model
    settings = copy.deepcopy(model)
    if config.get('data_preprocessor') is not None:
        settings.setdefault('data_preprocessor', config.data_preprocessor)
    built = _built(settings, config.get('default_scope') or 'mmpretrain', checkpoint, weights)
    arch = None
    # That of a pruned one is of the network before.
    if isinstance(getattr(built, 'backbone', None), ArchNet) and 'pruned' not in model:
        arch = built.backbone.arch
    about = {'config': path.name}
    dataset = (config.get('train_dataloader') or {}).get('dataset')
    if isinstance(dataset, Mapping):
        about['trained on'] = _dataset(dataset)
    shape = config_image_shape(config, built)
    if len(shape) == 1:
        raise UsageError(f'{path}: a language model maps no images, and cannot be exported')
    return Source(name, built, shape, config.to_dict(), arch, origin_of(config, path.name), about)


def _with_classes(arch: Arch, model: nn.Module) -> Arch:
    """The Arch with as many classes as the head of a classifier has."""
    classes = getattr(getattr(model, 'head', None), 'num_classes', None)
    is_classifier = hasattr(getattr(model, 'head', None), 'fc') or arch.head.hidden_channels
    if not is_classifier or not isinstance(classes, int):
        return arch
    return replace(arch, head=replace(arch.head, num_classes=classes))
