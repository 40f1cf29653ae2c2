"""Parts of a config that come from a result and not from the user: data, checked before use.

A config is code: a ``type`` may be any dotted name, ``custom_imports`` any module, and a text may
close the quotes around it when it is written into another config. Of what somebody else has dumped
only plain values are used, and only layers, losses, datasets and transforms that OpenMMLab and
mmscale have registered and that read no files: MMEngine reads YAML so that it runs code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from inspect import signature
from typing import Any

from mmscale.arch.checks import check_keys, number
from mmscale.config_parts import is_pretrained
from mmscale.errors import UsageError
from mmscale.quiet import quiet_imports
from mmscale.shown import shortly
from mmscale.untrusted import UntrustedFileError

PACKAGES = ('mmcv', 'mmdet', 'mmengine', 'mmpretrain', 'mmscale')
# Where the registered classes and functions are that make networks, and those that read data.
_OF_MODELS = (
    *('mmcv.cnn.bricks.', 'mmcv.ops.', 'mmdet.models.backbones.', 'mmdet.models.dense_heads.'),
    *('mmdet.models.detectors.', 'mmdet.models.layers.', 'mmdet.models.losses.'),
    *('mmdet.models.necks.', 'mmdet.models.roi_heads.', 'mmdet.models.seg_heads.'),
    *('mmdet.models.task_modules.', 'mmdet.models.utils.', 'mmengine.model.'),
    *('mmpretrain.models.backbones.', 'mmpretrain.models.classifiers.'),
    *('mmpretrain.models.heads.', 'mmpretrain.models.losses.', 'mmpretrain.models.necks.'),
    *('mmpretrain.models.utils.', 'mmscale.models.', 'torch.nn.'),
)
_OF_DATA = (
    *('mmcv.transforms.', 'mmdet.datasets.samplers.', 'mmdet.datasets.transforms.'),
    *('mmengine.dataset.', 'mmpretrain.datasets.samplers.', 'mmpretrain.datasets.transforms.'),
    *('mmscale.datasets.', 'torch.utils.data.'),
)
_OF_PREPROCESSORS = (
    *('mmdet.models.data_preprocessors.', 'mmengine.model.base_model.data_preprocessor.'),
    'mmpretrain.models.utils.data_preprocessor.',
)
# Datasets of annotations in JSON; others read pickles, or files of any kind.
_COCO = 'mmdet.datasets.coco'
# Those that read further configs, or models of Hugging Face or timm by name.
_READERS = (
    *('mmdet.models.detectors.d2_wrapper', 'mmdet.models.detectors.kd_one_stage'),
    *('mmpretrain.models.backbones.timm_backbone', 'mmpretrain.models.classifiers.hugging_face'),
    *('mmpretrain.models.classifiers.timm', 'mmpretrain.models.utils.huggingface'),
    'mmpretrain.models.utils.tokenizer',
)
# MMCV and mmdet look these up by eval.
_NOT_REGISTERED = ('nms', 'nms_quadri', 'nms_rotated', 'soft_nms')
_KEY = re.compile(r'[A-Za-z][A-Za-z0-9_]*', re.ASCII)
_TYPE = re.compile(r'([A-Za-z]\w*\.)?[A-Za-z]\w*', re.ASCII)
_MODULE = re.compile(r'[A-Za-z_]\w*(\.[A-Za-z_]\w*)*', re.ASCII)
# Keys of what is read when a part is built, whatever it is: pickles and YAML would run code.
_OF_FILES = re.compile(
    r'ckpt|checkpoint|config|file|hub|model_name|name_or|path|pretrain|root|teacher|tokeni|url|'
    r'vocab|(^|_)dir($|_)|^weights$',
    re.IGNORECASE,
)
# A word or a few: no file, address, Python or template.
_WORDS = re.compile(r'[\w ,+=%-]*')
# A path or the name of a class, without quotes, brackets, braces or line breaks.
_TEXT = re.compile(r'[\w ./,@+=~%#-]*')
# Where datasets find images and annotations.
_PLACES = ('ann_file', 'data_prefix', 'data_root')
_CLASSES = 'metainfo'
_LARGEST = 2**53
_MOST_DEEP = 40


def _registries() -> Iterator[Any]:
    with quiet_imports():
        from mmengine import registry

        import mmscale.datasets
        import mmscale.models  # noqa: F401
    yield from (registry.MODELS, registry.TASK_UTILS, registry.WEIGHT_INITIALIZERS)
    yield from (registry.DATASETS, registry.TRANSFORMS, registry.DATA_SAMPLERS)
    yield registry.FUNCTIONS


def _registered(name: str, scope: str) -> object | None:
    """What a name stands for; nothing is imported for its sake, as a registry would."""
    own, _, key = name.rpartition('.')
    for root in _registries():
        scoped = root if (own or scope) == 'mmengine' else root.children.get(own or scope)
        for registry in (scoped,) if own else (scoped, root):
            if registry is not None:
                registry.import_from_location()
                if key in registry.module_dict:
                    return registry.module_dict[key]
    return None


def _check_type(owner: str, name: object, scope: str, allowed: Sequence[str]) -> None:
    if isinstance(name, str) and name in _NOT_REGISTERED:
        return
    found = None
    if isinstance(name, str) and _TYPE.fullmatch(name):
        package = name.rpartition('.')[0]
        found = _registered(name, scope) if package in ('', *PACKAGES) else None
    module = f'{getattr(found, "__module__", "")}.'
    is_known = module.startswith(tuple(allowed)) and not module.startswith(
        tuple(f'{reader}.' for reader in _READERS)
    )
    bases = [base.__module__ for base in getattr(found, '__mro__', ())]
    if not is_known and not (allowed is _OF_DATA and _COCO in bases):
        raise UntrustedFileError(
            f'{owner}.type={shortly(name)} is no part of a network, or of its test data, that '
            f'{", ".join(PACKAGES)} have registered and that reads no other files'
        )


def _check_text(owner: str, key: str, value: str) -> None:
    """Checks a text, which stands under a key, or in a list or dict under it."""
    is_place = key in _PLACES
    pattern = _TEXT if is_place or key == _CLASSES else _WORDS
    is_file = not is_place and _OF_FILES.search(key)
    is_annotation = key != 'ann_file' or value == '' or value.lower().endswith('.json')
    if not pattern.fullmatch(value) or '//' in value or is_file or not is_annotation:
        raise UntrustedFileError(f'{owner}={shortly(value)} is no plain text')


def _check(
    owner: str, key: str, value: object, scope: str, allowed: Sequence[str], depth: int = 0
) -> Any:
    """A copy of a value without the checkpoints that its parts would start from.

    Args:
        owner: Where the value stands, for messages.
        key: The key that it stands under, also through lists.
        value: The value.
        scope: The default scope of the config.
        allowed: Modules whose classes and functions may be named.
        depth: How many values it is inside of.
    """
    if depth > _MOST_DEEP:
        raise UntrustedFileError(f'{owner:.80} is nested too deeply')
    if isinstance(value, Mapping):
        found = {}
        for name, part in value.items():
            if not isinstance(name, str) or not _KEY.fullmatch(name):
                raise UntrustedFileError(f'{owner}: the key {shortly(name)} is no name')
            if is_pretrained(part):
                continue  # all weights are in the export, and whose those are is not known
            here = f'{owner}.{name}'
            if name == 'type':
                _check_type(owner, part, scope, allowed)
                found[name] = part
            elif name == 'data_preprocessor':
                found[name] = _check_preprocessor(here, part, scope)
            elif name == _CLASSES and isinstance(part, Mapping):
                for of, classes in part.items():
                    # A text would be the file that has them.
                    if isinstance(classes, (str, Mapping)) or not _KEY.fullmatch(f'{of}'):
                        raise UntrustedFileError(f'{here}.{of}={shortly(classes)} must be a list')
                found[name] = {
                    of: _check(f'{here}.{of}', _CLASSES, classes, scope, allowed, depth + 2)
                    for of, classes in part.items()
                }
            else:
                under = key if key == 'data_prefix' else name
                found[name] = _check(here, under, part, scope, allowed, depth + 1)
        return found
    if isinstance(value, (list, tuple)):
        return type(value)(
            _check(f'{owner}[{i}]', key, part, scope, allowed, depth + 1)
            for i, part in enumerate(value)
            if not is_pretrained(part)
        )
    if isinstance(value, str):
        _check_text(owner, key, value)
        return value
    is_number = type(value) in (int, float) and abs(value) <= _LARGEST
    if value is not None and type(value) is not bool and not is_number:
        raise UntrustedFileError(f'{owner}={shortly(value)} is no plain value')
    return value


def _check_preprocessor(owner: str, value: object, scope: str) -> object:
    """How images are normalised: numbers, and nothing that only a training needs."""
    if value is None:
        return None
    found = check_keys(owner, value, None)
    found.pop('batch_augments', None)
    kind = found.get('type', 'mmpretrain.ClsDataPreprocessor')
    _check_type(owner, kind, scope, _OF_PREPROCESSORS)
    check_keys(owner, found, ('type', *signature(_registered(kind, scope)).parameters))
    for key, part in found.items():
        here, is_list = f'{owner}.{key}', isinstance(part, (list, tuple))
        if key in ('mean', 'std') and part is not None and not (is_list and part):
            raise UntrustedFileError(f'{here}={shortly(part)} must be a list of numbers')
        for one in part if is_list else [part]:
            if key != 'type' and one is not None and not isinstance(one, bool):
                number(here, one, -_LARGEST, _LARGEST, above=0 if key == 'std' else None)
    return found


def check_untrusted(owner: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Checks settings that somebody else has dumped, before they are built or written.

    Weights that parts would start from (``init_cfg`` of type ``Pretrained``) are left out.

    Args:
        owner: The file, for messages.
        config: Settings, ``default_scope`` and ``custom_imports`` among them.

    Returns:
        A copy.

    Raises:
        UntrustedFileError: A type is none that mmengine, mmcv, mmpretrain, mmdet or mmscale has
            registered, or one that reads other files; a module to import is of another package;
            or a value is not plain. The message names the key.
    """
    scope = config.get('default_scope', 'mmpretrain')
    if not isinstance(scope, str) or scope not in PACKAGES:
        raise UntrustedFileError(f'{owner}: default_scope={shortly(scope)} is not known')
    imports = config.get('custom_imports') or {}
    modules = imports.get('imports') if isinstance(imports, Mapping) else [imports]
    names = list(modules) if isinstance(modules, (list, tuple)) else [modules] if modules else []
    for module in names:
        is_name = isinstance(module, str) and _MODULE.fullmatch(module)
        if not is_name or module.partition('.')[0] not in PACKAGES:
            raise UntrustedFileError(
                f'{owner}: custom_imports names {shortly(module)}, which is of no known package'
            )
    of_data = {key: part for key, part in config.items() if key == 'test_dataloader'}
    of_models = {
        key: part for key, part in config.items() if key not in ('custom_imports', *of_data)
    }
    try:
        found = {
            **_check(owner, '', of_models, scope, _OF_MODELS),
            **_check(owner, '', of_data, scope, _OF_DATA),
        }
    except UsageError as error:
        raise UntrustedFileError(
            f'{error}; if you trust it, give the config by yourself, as config (--config)'
        ) from None
    if names:
        found['custom_imports'] = dict(imports=names, allow_failed_imports=False)
    return found
