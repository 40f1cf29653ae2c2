"""The model card of an export: Markdown, with the front matter that model hubs read."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from mmscale.apis.exports.source import Source
from mmscale.cost import Cost
from mmscale.search import Score
from mmscale.search.noise import with_error
from mmscale.shown import visible, without_markup
from mmscale.version import __version__

if TYPE_CHECKING:
    from mmscale.apis.exports.programs import Program

_PACKAGES = ('torch', 'mmengine', 'mmcv', 'mmpretrain', 'mmdet', 'onnx', 'onnxruntime')
# All that an export may consist of, besides its card.
CONTENT = {
    'arch.json': 'the Arch: the network as data',
    'pruned.json': 'which channels and blocks of the model are left',
    'weights.pth': 'the weights: tensors, numbers and strings',
    'weights.safetensors': 'the same weights in a format that cannot hold code',
    'mmpretrain_config.py': 'config for mmpretrain and mmscale, with these weights',
    'mmdet_config.py': 'config for mmdet, with these weights',
    'model.onnx': 'ONNX',
    'model.pt2': 'program of torch.export',
}
# What Hugging Face calls the public data sets of mmpretrain.
_HUB_DATASETS = {
    'CIFAR10': 'cifar10',
    'CIFAR100': 'cifar100',
    'FashionMNIST': 'fashion_mnist',
    'ImageNet': 'imagenet-1k',
    'MNIST': 'mnist',
}
_TASKS = {'classifier': 'image-classification', 'detector': 'object-detection'}


def _front_matter(
    source: Source, files: Mapping[str, str], program: Program, license_name: str | None
) -> str:
    """What model hubs read of a card, as far as it is known."""
    import yaml

    kind = 'detector' if source.scope == 'mmdet' else ''
    kind = 'classifier' if program.is_classifier else kind
    tags = ['mmscale', *(('mmdet',) if source.scope == 'mmdet' else ('mmpretrain',))]
    tags += [name for name in ('onnx', 'safetensors') if any(name in file for file in files)]
    about: dict[str, Any] = {} if license_name is None else {'license': license_name}
    about |= {'library_name': 'mmscale', 'tags': tags}
    about['pipeline_tag'] = _TASKS.get(kind, 'image-feature-extraction')
    is_trained = source.provenance.get('weights') != 'random'
    kinds = (source.origin.dataset or '').split(', ') if source.origin and is_trained else []
    datasets = [_HUB_DATASETS[kind] for kind in kinds if kind in _HUB_DATASETS]
    if datasets:
        about['datasets'] = datasets
    if source.score and kind == 'classifier':
        about['metrics'] = ['accuracy']
    return f'---\n{yaml.safe_dump(about, sort_keys=False)}---\n'


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, ('---',) * len(header), *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _about(source: Source) -> dict[str, str]:
    """Where it comes from; file names and words of a result are somebody else's."""
    return {
        without_markup(what): f'{without_markup(text):.500}'
        for what, text in source.provenance.items()
    }


def _versions() -> str:
    # Importing mmdet only to ask for its version would take seconds.
    loaded = [name for name in _PACKAGES if name in sys.modules and find_spec(name) is not None]
    found = {name: sys.modules[name].__version__ for name in loaded}
    versions = {'mmscale': __version__, 'Python': platform.python_version(), **found}
    return ', '.join(f'{name} {version}' for name, version in versions.items())


def _code(*lines: str) -> list[str]:
    return ['```python', *lines, '```', '']


def _loading(source: Source, files: Mapping[str, str], outputs: list[str]) -> list[str]:
    parts = ['## How to load it', '']
    package = 'mmdet' if source.scope == 'mmdet' else 'mmpretrain'
    if f'{package}_config.py' in files:
        module, function = 'mmpretrain', 'get_model'
        call = "get_model('mmpretrain_config.py', pretrained='weights.pth')"
        if package == 'mmdet':
            module, function = 'mmdet.apis', 'init_detector'
            call = "init_detector('mmdet_config.py', 'weights.pth', device='cpu')"
        parts += [f'{package}, in this folder:', '']
        parts += _code(f'from {module} import {function}', '', f'model = {call}')
    if source.arch is not None and source.scope != 'mmdet':
        imports = ['from mmscale.apis.networks import build_network']
        imports += ['from mmscale.arch import Arch', '']
        build = "network = build_network(Arch.from_json('arch.json')).eval()"
        weights = "torch.load('weights.pth', weights_only=True)['state_dict']"
        load = ['import torch', *imports, build, f'network.load_state_dict({weights})']
        if 'weights.safetensors' in files:
            weights = "load_file('weights.safetensors')"
            load = [*imports[:2], 'from safetensors.torch import load_file', '', build]
            load.append(f'network.load_state_dict({weights})')
        parts += ['Python, without a config:', '', *_code(*load)]
    if source.scope != 'mmdet' and 'mmdet_config.py' in files:
        parts += ["As a detector's backbone: train `mmdet_config.py` with mmdet.", '']
    names = ', '.join(f'`{one}`' for one in outputs)
    if 'model.onnx' in files:
        parts += [f'ONNX, `images` to {names}:', '']
        session = "session = onnxruntime.InferenceSession('model.onnx')"
        run = "outputs = session.run(None, {'images': images})"
        parts += _code('import onnxruntime', '', session, run)
    if 'model.pt2' in files:
        parts += [
            f'torch.export, images to {names}. Loading a `.pt2` file may run code that is in it: '
            'load only files that you trust.',
            '',
        ]
        load = "program = torch.export.load('model.pt2').module()"
        parts += _code('import torch', '', load, 'outputs = program(images)')
    return parts


def _numbers(values: object) -> str:
    """Numbers of a config, which may be somebody else's, one a channel."""
    values = values if isinstance(values, (list, tuple)) else [values]
    return f'[{", ".join(map(without_markup, values))}]'


def _images(source: Source, files: Mapping[str, str], program: Program, dynamic: bool) -> str:
    """What images the network takes."""
    channels, height, width = source.image_shape
    text = f'Images: {channels} x {height} x {width} (channels, height, width). '
    programs = [f'`{file}`' for file in ('model.onnx', 'model.pt2') if file in files]
    model = source.settings.get('model') or {}
    model = model['model'] if 'pruned' in model else model
    preprocessor = model.get('data_preprocessor') or source.settings.get('data_preprocessor') or {}
    if preprocessor.get('mean') is None:
        text += 'How they were normalised is not known here; see the training config. '
    else:
        order = ''
        if channels == 3:
            swaps = preprocessor.get('to_rgb') or preprocessor.get('bgr_to_rgb')
            order = f', channels in the order {"R, G, B" if swaps else "B, G, R"}'
        text += (
            f'They are normalised: pixels 0 to 255{order}, minus '
            f'{_numbers(preprocessor["mean"])}, divided by {_numbers(preprocessor.get("std"))}; '
            'mmpretrain and mmdet do that by themselves. '
        )
    if programs:
        size = 'batches of any size' + (', images of multiples of 32 pixels' if dynamic else '')
        inside = '' if program.dtype == 'float32' else f'; they compute in {program.dtype}'
        text += f'{" and ".join(programs)}: {size}, float32 in and out{inside}.'
    return text.rstrip()


def model_card(
    source: Source,
    cost: Cost,
    convention: str,
    files: Mapping[str, str],
    differences: Mapping[str, float],
    program: Program,
    dynamic_size: bool = False,
    license_name: str | None = None,
) -> str:
    """Markdown that says what an export is, where it comes from and how to load it.

    Args:
        source: The network.
        cost: Cost of what is exported, per image.
        convention: How it was counted.
        files: SHA-256 of the other files of the export, by name.
        differences: What was compared, and the largest difference that was found.
        program: What ONNX and ``.pt2`` hold.
        dynamic_size: Whether these take images of any size.
        license_name: License of the weights, if it is known.
    """
    parts = [_front_matter(source, files, program, license_name)]
    parts += [f'# {without_markup(source.name)}', '']
    if source.arch is not None:
        parts += ['```', str(source.arch), '```', '']
    parts += [_images(source, files, program, dynamic_size), '']
    parts += [f'- {visible(note)}' for note in dict.fromkeys(source.notes)]
    rows = [(key, f'{getattr(cost, key):,}') for key in ('flops', 'params', 'acts')]
    parts += ['', '## Cost', '']
    parts += [
        f'Per image, counted by the `{convention}` convention (flops are multiply-adds):',
        '',
        _table(('cost', 'value'), rows),
    ]
    if source.score:
        correct, total = source.score['correct'], source.score['total']
        where = _about(source).get('scored on')
        share = with_error(100 * correct / total, 100 * Score(correct, total).error, 2)
        share = f'{correct} of {total} images right ({share} %, 1.96 standard errors)'
        parts += [
            '',
            '## Score',
            '',
            f'{share if source.scope != "mmdet" else f"COCO mAP {correct / total:.3f}"}'
            f'{f" on {where}" if where else ""}: the score that the search gave to these very '
            'weights, and chose the network by. It is no test result.',
        ]
    if differences:
        parts += ['', '## Checks', '', 'Largest difference of the outputs, random images:', '']
        found = [(what, f'{value:.3g}') for what, value in differences.items()]
        parts.append(_table(('compared', 'difference'), found))
    named = [(f'`{name}`', CONTENT[name], f'`{digest}`') for name, digest in files.items()]
    parts += ['', '## Files', '', _table(('file', 'what', 'SHA-256'), named), '']
    parts += _loading(source, files, program.outputs)
    about = _about(source)
    if source.origin is not None and 'config' not in about and 'search config' not in about:
        about['found by'] = without_markup(source.origin)
    about['exported with'] = _versions()
    parts += ['## Where it comes from', '', _table(('what', ''), list(about.items()))]
    return '\n'.join(parts).replace('\n\n\n', '\n\n').rstrip() + '\n'
