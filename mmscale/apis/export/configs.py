"""The configs of an export: mmpretrain's and mmdet's, beside the files that they name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mmscale.apis.export.source import Source
from mmscale.arch import Arch

# The config's own folder, so that an export can be moved.
HERE = '{{ fileDirname }}'
_IMPORTS = dict(imports=['mmscale.models'], allow_failed_imports=False)
# What belongs to a run and not to the network.
_OF_A_RUN = ('launcher', 'load_from', 'resume', 'work_dir')


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
    from mmengine.config import Config

    return f'# {comment} Written by tools/export.py.\n{Config(settings).pretty_text}'


def own_config(source: Source) -> str:
    """The config of the exported model itself: mmpretrain's, or mmdet's for a detector.

    Data, schedule and hooks are there if the model came with a config.
    """
    settings = {key: value for key, value in source.settings.items() if key not in _OF_A_RUN}
    model = dict(settings.pop('model'))
    if source.arch is not None:
        backbone = dict(model['backbone'], arch=f'{HERE}/arch.json')
        backbone.pop('scaling', None)  # the Arch is scaled already
        model['backbone'] = backbone
    settings.setdefault('default_scope', 'mmpretrain')
    settings.setdefault('custom_imports', _IMPORTS)
    settings |= dict(model=model, load_from=f'{HERE}/weights.pth')
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
            arch=f'{HERE}/arch.json',
            out_strides=strides,
            neck=detector.neck,
            norm_eval=True,
            init_cfg=dict(type='Pretrained', checkpoint=f'{HERE}/weights.pth', prefix='backbone.'),
        ),
        neck=None,
    )
    comment = f'{source.name} as the backbone of {name}, for COCO.'
    preprocessor = source.settings.get('data_preprocessor') or {}
    if preprocessor.get('mean') is not None:
        rgb = bool(preprocessor.get('to_rgb', False))
        keys = {key: list(preprocessor[key]) for key in ('mean', 'std')}
        model['data_preprocessor'] = dict(keys, bgr_to_rgb=rgb)
    if source.arch.stem.in_channels == 1:
        comment += (
            '\n# The network takes gray images: its pipelines need '
            "dict(type='LoadImageFromFile', color_type='grayscale').\n#"
        )
    settings = dict(_base_=detector.base, custom_imports=_IMPORTS, model=model)
    return _text(comment, settings)


def find_detector(name: str, arch: Arch) -> Detector:
    """A detector that an Arch can be the backbone of.

    Raises:
        ValueError: There is no such detector, or the Arch lacks feature maps that it needs.
    """
    if name not in DETECTORS:
        raise ValueError(f'detector={name!r} is not one of {", ".join(DETECTORS)}')
    found = DETECTORS[name]
    missing = [str(stride) for stride in found.needed if stride not in arch.strides]
    if missing:
        raise ValueError(
            f'detector={name}: the Arch has no feature maps of stride {", ".join(missing)}, its '
            f'network stages have {", ".join(map(str, dict.fromkeys(arch.strides)))}'
        )
    return found
