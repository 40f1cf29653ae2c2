"""What is exported: a network with its weights, and what is known about it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmscale.apis.networks import (
    build_module,
    classifier_config,
    config_image_shape,
    find_arch,
    image_shape,
)
from mmscale.apis.reports.run_files import read_run
from mmscale.apis.untrusted_configs import check_untrusted
from mmscale.arch import Arch
from mmscale.arch.json_files import read_json
from mmscale.errors import UsageError
from mmscale.launch.command_line import read_checkpoint, read_config
from mmscale.search.result_files import read_result

if TYPE_CHECKING:
    from torch import Tensor, nn

# What of a checkpoint's `meta` says where the weights come from.
_META = ('epoch', 'iter', 'seed')
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
        settings: Config of the model and of what is around it, as plain data.
        arch: The Arch of the backbone; None if that is no ArchNet.
        provenance: Where network and weights come from: a few words each.
        score: ``correct`` and ``total``, as a search scored the very weights; or None.
        notes: What was decided for the user.
    """

    name: str
    model: nn.Module
    image_shape: tuple[int, int, int]
    settings: dict[str, Any]
    arch: Arch | None = None
    provenance: dict[str, str] = field(default_factory=dict)
    score: dict[str, int] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def scope(self) -> str:
        """``mmpretrain`` or ``mmdet``."""
        return self.settings.get('default_scope', 'mmpretrain')


def sha256(path: str | Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with Path(path).open('rb') as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def find_source(
    source: str | Path | dict | Arch,
    checkpoint: str | Path | None = None,
    scaling_stage: int | None = None,
    config: str | Path | None = None,
    options: Sequence[str] = (),
) -> Source:
    """Finds a network and its weights.

    Args:
        source: ``result.json`` of a search; an Arch (a name, its JSON file, its content); a
            config (``.py``) with a model; or ``weights.pth`` or ``weights.safetensors`` of an
            earlier export.
        checkpoint: The weights, of a classifier or a backbone; by default those that a search
            scored the network with.
        scaling_stage: Scaling stage of the network in a ``result.json``, or its place in a
            Pareto front, from 0 on.
        config: Config around an Arch: its model's backbone becomes the Arch.
        options: Overrides of the config, ``KEY=VALUE`` each.

    Raises:
        UsageError: A file cannot be read.
        ValueError: There is no such network, or the weights are not its own.
    """
    source = getattr(source, 'path', source)  # of a search's result
    if isinstance(source, (str, Path)) and (Path(source) / 'result.json').is_file():
        source = Path(source) / 'result.json'
    if not callable(getattr(source, 'named_modules', None)):
        source = getattr(source, 'arch', source)  # of what a scaling made
    if not isinstance(source, (str, Path, dict, Arch)):
        raise UsageError(
            f'{type(source).__name__} cannot be exported: name a file, an Arch or a result'
        )
    if scaling_stage is not None and not _is_json(source):
        raise UsageError(f'scaling stage {scaling_stage}: {source} is no result.json of a search')
    path = None if isinstance(source, (dict, Arch)) else Path(source)
    if path is not None and path.suffix == '.py':
        if config is not None:
            raise UsageError(f'{path} and config={config}: give one config')
        return _from_config(path, _needed(checkpoint, path), options)
    if options and config is None:
        raise UsageError(f'options={list(options)}: there is no config')
    found: dict[str, Any] = {}
    score = None
    if path is not None and path.suffix in ('.pth', '.safetensors'):
        if checkpoint is not None:
            raise UsageError(f'{path} and checkpoint={checkpoint}: give one of them')
        name, arch, checkpoint = path.resolve().parent.name, None, path
    elif _is_json(source) and _is_result(source):
        data = read_result(source, ('arch',))
        name, member = _member(path, data, scaling_stage or 0)
        arch = Arch.from_json(member['arch'])
        found = _search_provenance(path, data, name)
        if checkpoint is None:
            checkpoint = path.parent / 'weights' / f'{name}.pth'
            if not checkpoint.is_file():
                raise UsageError(f'{checkpoint} is not a file: name the checkpoint')
            score = member.get('score')
        name = f'{path.resolve().parent.name}_{name}'
    else:
        if scaling_stage is not None:
            raise UsageError(
                f'scaling stage {scaling_stage}: {source} is no result.json of a search'
            )
        name, arch = ('arch', source) if path is None else find_arch(str(source))
        arch = Arch.from_json(arch) if isinstance(arch, dict) else arch
    weights, about = _read_weights(_needed(checkpoint, source))
    if arch is None:
        if 'arch' not in about:
            raise UsageError(
                f'{checkpoint} has no Arch inside: name the Arch or the config, and the checkpoint'
            )
        arch = Arch.from_json(json.loads(about['arch']))
    elif 'arch' in about and Arch.from_json(json.loads(about['arch'])).stages != arch.stages:
        raise UsageError(f'{checkpoint} is of another Arch than {source}')
    provenance = {**found, **about['provenance']}
    around = _searched_detector(path.parent, arch) if found and config is None else None
    if config is not None:
        around = read_config(config, options)
    if around is not None:
        made = _around(arch, around, path.parent if config is None else Path(config))
        _load(made.model, weights, checkpoint)
        made.arch = made.arch if made.arch is None else _with_classes(made.arch, made.model)
        made.name, made.score, made.provenance = name, score, {**provenance, **made.provenance}
        return made
    arch, notes = _fitting_head(arch, weights)
    settings = {'default_scope': 'mmpretrain', 'model': classifier_config(arch)}
    if path is not None and found:
        run = read_run(path.parent).config
        if isinstance(run.get('data_preprocessor'), dict):
            # It belongs to somebody's dumped config, and goes into the exported one.
            part = {'data_preprocessor': run['data_preprocessor']}
            settings |= check_untrusted(str(path.parent), part)
    model = build_module(settings['model'])
    _load(model, weights, checkpoint)
    return Source(name, model, image_shape(arch), settings, arch, provenance, score, notes)


def _is_json(source: object) -> bool:
    return isinstance(source, (str, Path)) and Path(source).suffix == '.json'


def _is_result(source: str | Path) -> bool:
    """Whether a JSON file is meant as the result of a search; an Arch has other keys."""
    data = read_json(source)
    return isinstance(data, dict) and ('settings' in data or 'scaling_stages' in data)


def _needed(checkpoint: str | Path | None, source: object) -> str | Path:
    if checkpoint is None:
        source = source if isinstance(source, (str, Path)) else 'the Arch'
        raise UsageError(f'{source}: a checkpoint with the weights is needed')
    if not Path(checkpoint).is_file():
        raise UsageError(f'checkpoint={checkpoint} is not a file')
    return checkpoint


# ---------------------------------------------------------------------- searches


def _member(path: Path, data: dict, number: int) -> tuple[str, dict]:
    """One network of a result, and the name of its files."""
    key, name = ('front', 'front') if data.get('kind') == 'pareto' else (
        'scaling_stages', 'scaling_stage',
    )  # fmt: skip
    members = data[key]
    if not 0 <= number < len(members):
        raise UsageError(f'scaling stage {number}: {path} has {key} 0 to {len(members) - 1}')
    return f'{name}_{number}', members[number]


def _search_provenance(path: Path, data: dict, name: str) -> dict[str, str]:
    """What a result and the dumped config beside it say of the search."""
    about = {'network': f'{name} of a search', 'search seed': str(data.get('seed'))}
    if data.get('config_hash'):
        about['search config, SHA-256'] = str(data['config_hash'])
    if isinstance(data.get('versions'), dict):
        about['search versions'] = ', '.join(f'{k} {v}' for k, v in data['versions'].items())
    run = read_run(path.parent)
    names = sorted(file.name for file in path.parent.glob('*.py'))
    if names:
        about['search config'] = ', '.join(names)
    dataset = (run.config.get('test_dataloader') or {}).get('dataset')
    if isinstance(dataset, dict):
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
    model = run.get('model') or {}
    if str(model.get('type')).rpartition('.')[2] != 'SuperNetDetector':
        return None
    if not isinstance(model.get('detector'), Mapping):
        raise ValueError(f'{folder}: model.detector of the dumped config is no dict')
    detector = dict(model['detector'])
    backbone = dict(detector.get('backbone') or {})
    backbone = {key: value for key, value in backbone.items() if key in _OF_BOTH}
    detector['backbone'] = dict(backbone, type='mmscale.ArchNet')
    config = {key: run[key] for key in ('default_scope', 'custom_imports') if key in run}
    loader = run.get('test_dataloader') or {}
    dataset = dict(loader.get('dataset') or {})
    while isinstance(dataset.get('dataset'), Mapping):
        dataset = dict(dataset['dataset'])
    if dataset.get('pipeline'):
        # The images of a search have the resolution of the network that is scored.
        dataset['pipeline'] = [
            dict(one, resolution=arch.resolution)
            if str(one.get('type')).endswith('ResizeToResolution')
            else one
            for one in dataset['pipeline']
        ]
        config['test_dataloader'] = dict(loader, dataset=dataset)
        config['test_evaluator'] = dict(type='CocoMetric', metric='bbox')
        config['test_cfg'] = {}
    return Config(check_untrusted(str(folder), dict(config, model=detector)))


def _dataset(dataset: Mapping) -> str:
    """A dataset of a config in a few words; wrappers are left out, and so are paths."""
    while isinstance(dataset.get('dataset'), Mapping):
        dataset = dataset['dataset']
    split = dataset.get('split')
    return f'{dataset.get("type")}{f", split {split}" if split else ""}'


# ---------------------------------------------------------------------- configs


def _from_config(path: Path, checkpoint: str | Path, options: Sequence[str]) -> Source:
    config = read_config(path, options)
    weights, about = _read_weights(checkpoint)
    made = _of_config(config, path)
    _load(made.model, weights, checkpoint)
    made.provenance = {**about['provenance'], **made.provenance}
    if made.arch is not None:
        made.arch = _with_classes(made.arch, made.model)
    return made


def _around(arch: Arch, config: Any, path: Path) -> Source:
    """The model of a config with an Arch as its backbone."""
    model = config.get('model')
    backbone = model.get('backbone') if isinstance(model, Mapping) else None
    if not isinstance(backbone, Mapping) or backbone.get('type') != 'mmscale.ArchNet':
        raise UsageError(f'{path}: model.backbone is no mmscale.ArchNet')
    backbone['arch'] = arch.to_json()
    backbone.pop('scaling', None)
    return _of_config(config, path)


def _of_config(config: Any, path: Path) -> Source:
    """The model of a config, without its weights."""
    from mmscale.models import ArchNet

    if not isinstance(config.get('model'), Mapping):
        raise UsageError(f'{path}: the config has no model')
    kind = str(config.model.get('type')).rpartition('.')[2]
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
    settings = dict(model)
    if config.get('data_preprocessor') is not None:
        settings.setdefault('data_preprocessor', config.data_preprocessor)
    built = build_module(settings, config.get('default_scope') or 'mmpretrain')
    built.eval()
    arch = None
    # That of a pruned one is of the network before.
    if isinstance(getattr(built, 'backbone', None), ArchNet) and 'pruned' not in model:
        arch = built.backbone.arch
    about = {'config': path.name}
    dataset = (config.get('train_dataloader') or {}).get('dataset')
    if isinstance(dataset, Mapping):
        about['trained on'] = _dataset(dataset)
    shape = config_image_shape(config, built)
    return Source(path.stem, built, shape, config.to_dict(), arch, about)


def _with_classes(arch: Arch, model: nn.Module) -> Arch:
    """The Arch with as many classes as the head of a classifier has."""
    classes = getattr(getattr(model, 'head', None), 'num_classes', None)
    is_classifier = hasattr(getattr(model, 'head', None), 'fc') or arch.head.hidden_channels
    if not is_classifier or not isinstance(classes, int):
        return arch
    return replace(arch, head=replace(arch.head, num_classes=classes))


# ---------------------------------------------------------------------- weights


def _read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a checkpoint; ``provenance`` and, where there is one, its Arch."""
    from torch import Tensor

    checkpoint = read_checkpoint(str(path))
    weights = checkpoint.get('state_dict', checkpoint)
    if not isinstance(weights, Mapping) or not weights:
        raise UsageError(f'{path} holds no weights')
    for key, value in weights.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise UsageError(f'{path}: {key!r} is a {type(value).__name__}, not weights')
    about: dict[str, Any] = {}
    if isinstance(checkpoint.get('arch'), str):
        about['arch'] = checkpoint['arch']
    meta = checkpoint.get('meta')
    meta = meta if isinstance(meta, Mapping) else {}
    known = [f'{key} {meta[key]}' for key in _META if isinstance(meta.get(key), (int, float, str))]
    when = f' ({", ".join(known)})' if known else ''
    about['provenance'] = {
        'checkpoint': f'{Path(path).name}{when}',
        'checkpoint, SHA-256': sha256(path),
    }
    return {key.removeprefix('module.'): value for key, value in weights.items()}, about


def _fitting_head(arch: Arch, weights: Mapping[str, Tensor]) -> tuple[Arch, list[str]]:
    """The Arch with the classes that the weights have, and what there is to say about it."""
    last = 'head.layers.1.fc.weight' if arch.head.hidden_channels else 'head.fc.weight'
    if not any(key.startswith('head.') for key in weights):
        if not arch.head.num_classes:
            return arch, []
        head = replace(arch.head, num_classes=0, hidden_channels=0)
        note = 'The weights have no head: the backbone is exported, its outputs are feature maps.'
        return replace(arch, head=head), [note]
    if last not in weights or len(weights[last]) == arch.head.num_classes:
        return arch, []
    classes = len(weights[last])
    notes = []
    if arch.head.num_classes:
        notes = [
            f'The head has the {classes} classes of the weights, not {arch.head.num_classes}.'
        ]
    return replace(arch, head=replace(arch.head, num_classes=classes)), notes


def _load(model: nn.Module, weights: Mapping[str, Tensor], path: str | Path) -> None:
    """Puts weights into a model; each has to fit.

    Raises:
        ValueError: Keys are missing or left over, or a shape differs; the first is named.
    """
    from mmscale.models.checkpoints import misfit

    if hasattr(model, 'backbone') and not any(key.startswith('backbone.') for key in weights):
        weights = {f'backbone.{key}': value for key, value in weights.items()}
    # What a data preprocessor keeps is set by its config.
    weights = {k: v for k, v in weights.items() if not k.startswith('data_preprocessor.')}
    wanted = {k: v for k, v in model.state_dict().items() if k in weights or not _is_counter(k)}
    difference = misfit(wanted, weights)
    if difference:
        raise UsageError(f'{path} does not fit the network: {difference}')
    model.load_state_dict(weights, strict=False)
    model.eval()


def _is_counter(key: str) -> bool:
    """Whether a BN counts its batches there; old weights have none, and only training asks."""
    return key.endswith('.num_batches_tracked')
