"""The model card of an export."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from importlib.util import find_spec

from mmscale.apis.exports.source import Source
from mmscale.apis.untrusted_configs import one_line_text
from mmscale.cost import Cost
from mmscale.version import __version__

_PACKAGES = ('torch', 'mmengine', 'mmcv', 'mmpretrain', 'mmdet', 'onnx', 'onnxruntime')
# All that an export may consist of, besides its card.
CONTENT = {
    'arch.json': 'the Arch: the network as data',
    'pruned.json': 'which channels and blocks of the model are left',
    'weights.pth': 'the weights: tensors, numbers and strings, the Arch inside',
    'weights.safetensors': 'the same weights in a format that cannot hold code',
    'mmpretrain_config.py': 'config for mmpretrain and mmscale, with these weights',
    'mmdet_config.py': 'config for mmdet, with these weights',
    'model.onnx': 'ONNX, any batch size',
    'model.pt2': 'program of torch.export, any batch size',
}


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, ('---',) * len(header), *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _about(source: Source) -> dict[str, str]:
    """Where it comes from; file names and words of a result are somebody else's."""
    return {what: one_line_text(text) for what, text in source.provenance.items()}


def _versions() -> str:
    # Importing mmdet only to ask for its version would take seconds.
    loaded = [name for name in _PACKAGES if name in sys.modules and find_spec(name) is not None]
    found = {name: sys.modules[name].__version__ for name in loaded}
    versions = {'mmscale': __version__, 'Python': platform.python_version(), **found}
    return ', '.join(f'{name} {version}' for name, version in versions.items())


def _loading(source: Source, files: Mapping[str, str], outputs: list[str]) -> list[str]:
    shape = ', '.join(map(str, source.image_shape))
    parts = ['## How to load it', '']
    config = 'mmdet_config.py' if source.scope == 'mmdet' else 'mmpretrain_config.py'
    if config in files:
        package = 'mmdet' if source.scope == 'mmdet' else 'mmpretrain'
        call = "get_model('mmpretrain_config.py', pretrained='weights.pth')"
        if package == 'mmdet':
            call = "init_detector('mmdet_config.py', 'weights.pth', device='cpu')"
        function = call.partition('(')[0]
        parts += [
            f'{package}, in this folder:',
            '```python',
            f'from {package}{".apis" if package == "mmdet" else ""} import {function}',
            f'model = {call}',
            '```',
        ]
    if source.arch is not None and source.scope != 'mmdet':
        parts += [
            'Python, without a config; `weights.pth` loads with `weights_only=True`:',
            '```python',
            'import json, torch',
            'from mmscale.apis.networks import build_network',
            'from mmscale.arch import Arch',
            '',
            "exported = torch.load('weights.pth', weights_only=True)",
            "network = build_network(Arch.from_json(json.loads(exported['arch']))).eval()",
            "network.load_state_dict(exported['state_dict'])",
            '```',
        ]
    if source.scope != 'mmdet' and 'mmdet_config.py' in files:
        parts += [
            "mmdet, as a detector's backbone: train `mmdet_config.py` with mmdet's or our "
            '`tools/train.py`.',
            '',
        ]
    if 'model.onnx' in files:
        parts += [
            f'ONNX: `images` of (batch, {shape}) to {", ".join(f"`{one}`" for one in outputs)}:',
            '```python',
            'import onnxruntime',
            "session = onnxruntime.InferenceSession('model.onnx')",
            "outputs = session.run(None, {'images': images})",
            '```',
        ]
    if 'model.pt2' in files:
        parts += [
            'torch.export, the same inputs and outputs. Loading a `.pt2` file may run code that '
            'is in it: load only files that you trust.',
            '```python',
            "program = torch.export.load('model.pt2').module()",
            'outputs = program(images)',
            '```',
        ]
    return parts


def _normalisation(source: Source) -> str:
    channels, height, width = source.image_shape
    text = f'Images: {channels} x {height} x {width} (channels, height, width), float32. '
    model = source.settings.get('model') or {}
    model = model['model'] if 'pruned' in model else model
    preprocessor = model.get('data_preprocessor') or source.settings.get('data_preprocessor') or {}
    if preprocessor.get('mean') is None:
        return text + 'How they were normalised is not known here; see the training config.'
    order = ''
    if channels == 3:
        swaps = preprocessor.get('to_rgb') or preprocessor.get('bgr_to_rgb')
        order = ', channels in the order R, G, B' if swaps else ', channels in the order B, G, R'
    return (
        f'{text}ONNX and .pt2 take them normalised: pixels 0 to 255{order}, minus '
        f'{list(preprocessor["mean"])}, divided by {list(preprocessor["std"])}.'
    )


def model_card(
    source: Source,
    cost: Cost,
    convention: str,
    files: Mapping[str, str],
    differences: Mapping[str, float],
    outputs: list[str],
) -> str:
    """Markdown that says what an export is, where it comes from and how to load it.

    Args:
        source: The network.
        cost: Cost of what is exported, per image.
        convention: How it was counted.
        files: SHA-256 of the other files of the export, by name.
        differences: What was compared, and the largest difference that was found.
        outputs: Names of the program's outputs.
    """
    rows = [(f'{getattr(cost, key):,}', key) for key in ('flops', 'params', 'acts')]
    parts = [f'# {one_line_text(source.name)}', '']
    if source.arch is not None:
        parts += ['```', str(source.arch), '```', '']
    parts += [_normalisation(source), '', *source.notes, '## Cost', '']
    parts += [
        f'Per image, counted by the `{convention}` convention (flops are multiply-adds):',
        '',
        _table(('cost', 'value'), [(key, value) for value, key in rows]),
        '',
        '## Score',
        '',
    ]
    if source.score:
        correct, total = source.score['correct'], source.score['total']
        where = _about(source).get('scored on')
        is_classifier = source.scope != 'mmdet'
        share = f'{correct} of {total} images right ({correct / total:.2%})'
        parts.append(
            f'{share if is_classifier else f"COCO mAP {correct / total:.3f}"}'
            f'{f" on {where}" if where else ""}: the score that the search gave to these very '
            'weights, and chose the network by. It is no test result.'
        )
    else:
        parts.append('None is known: these weights were not scored by a search.')
    if differences:
        parts += ['', '## Checks', '', 'Largest difference of the outputs, random images:', '']
        found = [(what, f'{value:.3g}') for what, value in differences.items()]
        parts.append(_table(('compared', 'difference'), found))
    about = {**_about(source), 'exported with': _versions()}
    parts += ['', '## Where it comes from', '']
    parts += [_table(('what', ''), list(about.items())), '', '## Files', '']
    named = [(f'`{name}`', CONTENT[name], f'`{digest}`') for name, digest in files.items()]
    parts += [_table(('file', 'what', 'SHA-256'), named), '']
    parts += _loading(source, files, outputs)
    return '\n'.join(parts).rstrip() + '\n'
