"""Parts of a config that come from a result and not from the user: data, checked before use.

A config is code: a ``type`` may be any dotted name, ``custom_imports`` any module, and a text may
close the quotes around it when it is written into another config. Of what somebody else has dumped
only plain values are used, and only layers, losses, datasets and transforms that OpenMMLab and
mmscale have registered.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mmscale.config_parts import is_pretrained
from mmscale.quiet import quiet_imports
from mmscale.untrusted import UntrustedFileError

PACKAGES = ('mmcv', 'mmdet', 'mmengine', 'mmpretrain', 'mmscale')
# Where the registered classes and functions are that make networks and read data.
_MODULES = (
    *('mmcv.cnn.bricks.', 'mmcv.ops.', 'mmcv.transforms.', 'mmdet.datasets.', 'mmdet.evaluation.'),
    *('mmdet.models.', 'mmengine.dataset.', 'mmengine.model.', 'mmpretrain.datasets.'),
    *('mmpretrain.evaluation.', 'mmpretrain.models.'),
    *('mmscale.datasets.', 'mmscale.models.', 'torch.nn.', 'torch.utils.data.'),
)
# Those that read further configs, or models of Hugging Face or timm by name.
_READERS = (
    *('mmdet.models.detectors.d2_wrapper', 'mmdet.models.detectors.kd_one_stage'),
    *('mmdet.models.language_models', 'mmpretrain.models.backbones.timm_backbone'),
    *('mmpretrain.models.classifiers.hugging_face', 'mmpretrain.models.classifiers.timm'),
    *('mmpretrain.models.multimodal', 'mmpretrain.models.utils.huggingface'),
    'mmpretrain.models.utils.tokenizer',
)
# MMCV and mmdet look these up by eval.
_NOT_REGISTERED = ('nms', 'nms_quadri', 'nms_rotated', 'soft_nms')
_KEY = re.compile(r'[A-Za-z][A-Za-z0-9_]*', re.ASCII)
_TYPE = re.compile(r'([A-Za-z]\w*\.)?[A-Za-z]\w*', re.ASCII)
# No quotes, brackets, braces or line breaks: neither Python nor MMEngine's templates.
_TEXT = re.compile(r'[\w ./:@,+=~%#-]*')
# Files that run code when they are read; MMEngine's datasets read pickles.
_CODE = ('.pickle', '.pkl', '.py', '.pyc')
_MOST_DEEP = 40


def _registries() -> Iterator[Any]:
    with quiet_imports():
        from mmengine import registry

        import mmscale.datasets
        import mmscale.models  # noqa: F401
    yield from (registry.MODELS, registry.TASK_UTILS, registry.WEIGHT_INITIALIZERS)
    yield from (registry.DATASETS, registry.TRANSFORMS, registry.DATA_SAMPLERS)
    yield from (registry.FUNCTIONS, registry.METRICS)


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


def _check_type(owner: str, name: object, scope: str) -> None:
    if name in _NOT_REGISTERED:
        return
    found = None
    if isinstance(name, str) and _TYPE.fullmatch(name):
        package = name.rpartition('.')[0]
        found = _registered(name, scope) if package in ('', *PACKAGES) else None
    module = f'{getattr(found, "__module__", "")}.'
    if not module.startswith(_MODULES) or module.startswith(tuple(f'{r}.' for r in _READERS)):
        raise UntrustedFileError(
            f'{owner}.type={name!r:.80} is no part of a network that {", ".join(PACKAGES)} have '
            'registered'
        )


def _check(owner: str, value: object, scope: str, depth: int) -> object:
    """A copy of a value without the checkpoints that its parts would start from."""
    if depth > _MOST_DEEP:
        raise UntrustedFileError(f'{owner:.80} is nested too deeply')
    if isinstance(value, Mapping):
        found = {}
        for key, part in value.items():
            if not isinstance(key, str) or not _KEY.fullmatch(key):
                raise UntrustedFileError(f'{owner}: the key {key!r:.80} is no name')
            if key == 'type':
                _check_type(owner, part, scope)
            found[key] = _check(f'{owner}.{key}', part, scope, depth + 1)
        # All weights are in the export, and whose those here are is not known.
        return {key: part for key, part in found.items() if not is_pretrained(part)}
    if isinstance(value, (list, tuple)):
        parts = [_check(f'{owner}[{i}]', p, scope, depth + 1) for i, p in enumerate(value)]
        return type(value)(part for part in parts if not is_pretrained(part))
    if isinstance(value, str):
        if not _TEXT.fullmatch(value) or '::' in value or value.lower().endswith(_CODE):
            raise UntrustedFileError(f'{owner}={value!r:.80} is no plain text')
        return value
    is_number = type(value) in (bool, int) or (type(value) is float and math.isfinite(value))
    if value is not None and not is_number:
        raise UntrustedFileError(f'{owner}={value!r:.80} is no plain value')
    return value


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
            registered, a module to import is of another package, or a value is not plain; the
            message names the key.
    """
    scope = config.get('default_scope', 'mmpretrain')
    if scope not in PACKAGES:
        raise UntrustedFileError(f'{owner}: default_scope={scope!r:.80} is not known')
    imports = config.get('custom_imports') or {}
    modules = imports.get('imports') if isinstance(imports, Mapping) else [imports]
    for module in [modules] if isinstance(modules, str) else modules or ():
        if not isinstance(module, str) or module.partition('.')[0] not in PACKAGES:
            raise UntrustedFileError(
                f'{owner}: custom_imports names {module!r:.80}, which is of no known package'
            )
    try:
        return dict(_check(owner, config, scope, 0))
    except UntrustedFileError as error:
        raise UntrustedFileError(
            f'{error}; if you trust it, give the config by yourself, as config (--config)'
        ) from None
