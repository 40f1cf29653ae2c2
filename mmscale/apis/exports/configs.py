"""The configs of an export: mmpretrain's and mmdet's, beside the files that they name."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from mmscale.apis.exports.source import Source
from mmscale.arch import Arch
from mmscale.arch.checks import choice
from mmscale.config_parts import (
    head_classes,
    nested_datasets,
    nested_transforms,
    type_name,
    with_valid_topk,
)
from mmscale.errors import UsageError
from mmscale.launch.config_text import BesideConfig, settings_text
from mmscale.shown import without_markup

# What of a PrunedModel is left, as tools/prune.py wrote it.
PRUNED = 'pruned.json'
_IMPORTS = dict(imports=['mmscale.models'], allow_failed_imports=False)
# What belongs to a run and not to the network.
_OF_A_RUN = ('launcher', 'load_from', 'resume', 'work_dir')
# ImageNet's, in the order R, G, B, and for gray images the means of the three.
_IMAGENET = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)
_IMAGENET_GRAY = dict(mean=[114.495], std=[57.63], bgr_to_rgb=False)
# After all transforms, some of which know only three channels. The weights are OpenCV's in parts
# of 256, so that a gray image in a file stays what it is.
_GRAY_TRANSFORM = dict(
    type='RandomGrayscale', prob=1.0, channel_weights=(29, 150, 77), color_format='bgr'
)
_GRAY = f"""
# The network takes gray images: the last step before they are packed makes them.
{settings_text(dict(gray=_GRAY_TRANSFORM))}"""
_GRAY_PIPELINES = """\
train_pipeline = [*_base_.train_pipeline[:-1], gray, _base_.train_pipeline[-1]]
test_pipeline = [*_base_.test_pipeline[:-1], gray, _base_.test_pipeline[-1]]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
"""
_GRAY_SECOND_PIPELINE = """
train_pipeline_stage2 = [
    *_base_.train_pipeline_stage2[:-1],
    gray,
    _base_.train_pipeline_stage2[-1],
]
averaging, switch = _base_.custom_hooks
custom_hooks = [averaging, dict(switch, switch_pipeline=train_pipeline_stage2)]
"""


@dataclass(frozen=True)
class Detector:
    """A config of mmdet, and the neck that it has.

    Attributes:
        base: The config.
        strides: Of the feature maps that the neck takes, as far as an Arch has them.
        needed: Those that an Arch must have, or the anchors would not fit.
        neck: Config of the neck, without ``in_channels``.
    """

    base: str
    strides: tuple[int, ...]
    needed: tuple[int, ...]
    neck: dict[str, Any]


def _fpn(**settings: Any) -> dict[str, Any]:
    return dict(type='mmdet.FPN', out_channels=256, num_outs=5, **settings)


_THREE, _FOUR = (8, 16, 32), (4, 8, 16, 32)
DETECTORS = {
    'retinanet': Detector(
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
        _THREE,
        (8,),
        _fpn(add_extra_convs='on_input'),
    ),
    'faster-rcnn': Detector(
        'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', _FOUR, _FOUR, _fpn()
    ),
    'atss': Detector(
        'mmdet::atss/atss_r50_fpn_1x_coco.py', _THREE, (8,), _fpn(add_extra_convs='on_output')
    ),
    'gfl': Detector(
        'mmdet::gfl/gfl_r50_fpn_1x_coco.py', _THREE, (8,), _fpn(add_extra_convs='on_output')
    ),
    'rtmdet': Detector(
        'mmdet::rtmdet/rtmdet_l_8xb32-300e_coco.py',
        _THREE,
        _THREE,
        dict(
            type='mmdet.CSPNeXtPAFPN',
            out_channels=256,
            num_csp_blocks=3,
            expand_ratio=0.5,
            norm_cfg=dict(type='SyncBN'),
            act_cfg=dict(type='SiLU', inplace=True),
        ),
    ),
}


def _text(comment: str, settings: dict[str, Any]) -> str:
    # A name may have any letters, and a template in a comment is filled in too.
    return settings_text(settings, without_markup(f'{comment} Written by tools/export.py.'))


def _tell_resolution(dataset: Any, resolution: int) -> None:
    """Tells the transforms of a dataset the input size where a hook would have told them."""
    for part in nested_datasets(dataset):
        for transform in nested_transforms(part.get('pipeline')):
            if type_name(transform).endswith('ToResolution'):
                transform.setdefault('resolution', resolution)


def _test_data(shape: tuple[int, int, int]) -> dict[str, Any]:
    """Test data of an Arch that came without: images in folders, one a class.

    Args:
        shape: Channels, height and width of an image.
    """
    channels, height, width = shape
    pipeline: list[dict[str, Any]] = [dict(type='LoadImageFromFile')]
    if height == width:
        pipeline += [
            dict(type='ResizeEdge', scale=height, edge='short'),
            dict(type='CenterCrop', crop_size=height),
        ]
    else:
        pipeline.append(dict(type='Resize', scale=(width, height)))
    if channels == 1:
        pipeline.append(_GRAY_TRANSFORM)
    pipeline.append(dict(type='PackInputs'))
    return dict(
        test_dataloader=dict(
            batch_size=32,
            num_workers=2,
            sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=dict(type='CustomDataset', data_root='data/test', pipeline=pipeline),
        ),
        test_evaluator=dict(type='Accuracy', topk=(1,)),
        test_cfg={},
    )


def own_config(source: Source) -> str:
    """The config of the exported model itself: mmpretrain's, or mmdet's for a detector.

    Data, schedule and hooks are there if the model came with a config. Else a classifier of gray
    or color images gets a test pipeline, which mmpretrain's inferencer needs.
    """
    settings = {
        key: copy.deepcopy(value) for key, value in source.settings.items() if key not in _OF_A_RUN
    }
    model = settings.pop('model')
    classes = head_classes(model)
    inner = model['model'] if 'pruned' in model else model
    if isinstance(inner.get('head'), dict):
        inner['head'] = with_valid_topk(inner['head'], classes)
    for evaluator in ('val_evaluator', 'test_evaluator'):
        if evaluator in settings:
            settings[evaluator] = with_valid_topk(settings[evaluator], classes)
    has_images = source.scope != 'mmdet' and source.image_shape[0] in (1, 3)
    if classes and has_images and settings.get('test_dataloader') is None:
        settings |= _test_data(source.image_shape)
    if 'pruned' in model:
        model['pruned'] = BesideConfig(PRUNED)
    elif source.arch is not None:
        backbone = dict(model['backbone'], arch=BesideConfig('arch.json'))
        backbone.pop('scaling', None)  # the Arch is scaled already
        model['backbone'] = backbone
        # For mmpretrain's inferencers, which have no hook that would tell it.
        for loader in ('val_dataloader', 'test_dataloader'):
            if loader in settings:
                _tell_resolution((settings[loader] or {}).get('dataset'), source.arch.resolution)
    settings.setdefault('default_scope', 'mmpretrain')
    settings.setdefault('custom_imports', _IMPORTS)
    settings |= dict(model=model, load_from=BesideConfig('weights.pth'))
    return _text(f'{source.name}, with its weights.', settings)


def detector_config(source: Source, name: str) -> str:
    """A config of mmdet whose detector has the exported classifier as its backbone.

    Args:
        source: The network.
        name: Key of :data:`DETECTORS`.

    Raises:
        ValueError: There is no such detector, or the Arch lacks feature maps that it needs.
    """
    detector = find_detector(name, source.arch)
    strides = [stride for stride in detector.strides if stride in source.arch.strides]
    model: dict[str, Any] = dict(
        backbone=dict(
            _delete_=True,
            type='mmscale.ArchNet',
            arch=BesideConfig('arch.json'),
            out_strides=strides,
            neck=detector.neck,
            norm_eval=True,
            init_cfg=dict(
                type='Pretrained', checkpoint=BesideConfig('weights.pth'), prefix='backbone.'
            ),
        ),
        neck=None,
    )
    gray = source.arch.stem.in_channels == 1
    preprocessor = source.settings.get('data_preprocessor') or {}
    if preprocessor.get('mean') is not None:
        rgb = bool(preprocessor.get('to_rgb', False))
        keys = {key: list(preprocessor[key]) for key in ('mean', 'std')}
        model['data_preprocessor'] = dict(keys, bgr_to_rgb=rgb)
    else:
        model['data_preprocessor'] = _IMAGENET_GRAY if gray else _IMAGENET
        source.notes.append(
            'How the images of training were normalised is not known: mmdet_config.py takes '
            "ImageNet's mean and standard deviation."
        )
    settings = dict(_base_=detector.base, custom_imports=_IMPORTS, model=model)
    text = _text(f'{source.name} as the backbone of {name}, for COCO.', settings)
    if gray:
        text += _GRAY + _GRAY_PIPELINES
        text += _GRAY_SECOND_PIPELINE if name == 'rtmdet' else ''
    return text


def find_detector(name: str, arch: Arch) -> Detector:
    """A detector that an Arch can be the backbone of.

    Raises:
        ValueError: There is no such detector, or the Arch lacks feature maps that it needs.
    """
    found = DETECTORS[choice('detector', name, DETECTORS)]
    if arch.stem.in_channels not in (1, 3):
        raise UsageError(
            f'detector={name}: images in COCO have 3 channels, or 1 if made gray, and the Arch '
            f'takes {arch.stem.in_channels}; leave mmdet out of the formats'
        )
    missing = [str(stride) for stride in found.needed if stride not in arch.strides]
    if missing:
        raise UsageError(
            f'detector={name}: the Arch has no feature maps of stride {", ".join(missing)}, its '
            f'network stages have {", ".join(map(str, dict.fromkeys(arch.strides)))}'
        )
    return found
