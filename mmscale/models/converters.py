"""Weights of mmpretrain's and timm's networks as weights of the matching ArchNet."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from mmscale.arch import Arch, Block, get_arch, preset_name, preset_names
from mmscale.arch.checks import choice
from mmscale.arch.presets import timm_variants, with_numerics
from mmscale.errors import UsageError
from mmscale.models.backbones import ArchNet
from mmscale.models.checkpoints import misfit

# Names of modules: an ArchNet's to the other library's.
Modules = dict[str, str]
# Names of tensors: ours to another's, with tensors of the shapes that they have to have.
Names = dict[str, tuple[str, Tensor]]

# How mmpretrain and timm spell the presets of a family; None where mmpretrain has no such network.
_SPELLINGS: dict[str, tuple[str | None, str]] = {
    'EfficientNet': ('efficientnet-{}', 'efficientnet_{}'),
    'MobileNetV2': ('mobilenet-v2', 'mobilenetv2_100'),
    'MobileNetV3': ('mobilenet-v3-{}', 'mobilenetv3_{}_100'),
    'RegNetX': ('regnetx-{}', 'regnetx_{}'),
    'RegNetY': (None, 'regnety_{}'),
    'RegNetZ': (None, 'regnetz_{}'),
    'ResNet': ('resnet{}', 'resnet{}'),
    'ResNeXt': ('resnext{}', 'resnext{}'),
}
# Padding and eps where they are not half and 1e-5: defaults of mmpretrain's classes.
_MMPRETRAIN_NUMERICS = {'EfficientNet': ('same', 1e-3), 'MobileNetV3': ('half', 1e-3)}


@dataclass(frozen=True)
class _Match:
    """A network's preset, its own name if it is timm's variant, and other padding and eps."""

    preset: str
    variant: str | None = None
    numerics: tuple[str, float] | None = None


def _timm_size(family: str, size: str) -> str:
    if family.startswith('RegNet'):
        number, unit = float(size[:-2]), size[-2:]
        return f'{round(number * (10 if unit == "GF" else 0.01)):03d}'
    return size.lower().replace('-', '_')


@cache
def _matches(source: str) -> dict[str, _Match]:
    """What matches each network of a source, by the source's name of it."""
    found = {}
    for preset in preset_names():
        family, _, size = preset.partition('-')
        mmpretrain, timm = _SPELLINGS.get(family, (None, None))
        if source == 'mmpretrain':
            if mmpretrain is not None and 'Lite' not in size:
                numerics = _MMPRETRAIN_NUMERICS.get(family)
                found[mmpretrain.format(size.lower())] = _Match(preset, numerics=numerics)
        elif timm is not None:
            name = timm.format(_timm_size(family, size))
            if name == 'resnext152_32x4d':
                continue  # the only ResNeXt that timm lacks
            found[name] = _Match(preset)
    if source == 'timm':
        found |= {name: _Match(preset, name) for name, preset in timm_variants().items()}
    return found


def source_names(source: str) -> tuple[str, ...]:
    """Names of the networks of a source that :func:`matching_arch` knows.

    Raises:
        ValueError: The source is neither ``mmpretrain`` nor ``timm``.
    """
    _check_source(source)
    return tuple(_matches(source))


def matching_arch(name: str, source: str) -> Arch:
    """The Arch with the layers, padding and eps that a source's weights are for.

    mmpretrain's EfficientNet pads as TensorFlow does and has eps 1e-3, as timm's ``tf_``
    networks; mmpretrain's MobileNetV3 has that eps alone. No checkpoint tells either.

    Args:
        name: A network's name in the source (``resnet50``, ``tf_efficientnet_b0``), with or
            without what follows it there (``resnet50_8xb32_in1k``, ``resnet50.a1_in1k``), or a
            preset's (``ResNet-50``).
        source: ``mmpretrain`` or ``timm``.

    Raises:
        ValueError: The source or the name is not known.
    """
    _check_source(source)
    matches = _matches(source)
    wanted = name.lower()
    preset = preset_name(name)
    if preset is None and wanted not in matches:
        wanted = wanted.partition('_' if source == 'mmpretrain' else '.')[0]
        preset = preset_name(wanted)
    match = matches.get(wanted)
    if match is None:
        same = (one for one in matches.values() if preset in (one.preset, one.variant))
        match = next(same, None) if preset is not None else None
    if match is None:
        near = difflib.get_close_matches(wanted, matches, n=4, cutoff=0.6)
        hint = f'near names are {", ".join(near)}' if near else f'known are {", ".join(matches)}'
        raise UsageError(f'name={name!r}: no Arch matches such a network of {source}; {hint}')
    arch = get_arch(match.variant or match.preset)
    return arch if match.numerics is None else with_numerics(arch, *match.numerics)


def _check_source(source: str) -> None:
    choice('source', source, _LAYOUTS)


def _numbered(arch: Arch) -> Iterator[tuple[int, int, str, Block]]:
    """Number of the network stage, of the block in it, the block's name in ArchNet, the block."""
    for i, stage in enumerate(arch.stages):
        for j, block in enumerate(stage):
            yield i, j, f'stages.{i}.{j}', block


def _conv_norm(ours: str, conv: str, norm: str) -> Modules:
    return {f'{ours}.conv': conv, f'{ours}.bn': norm}


def _conv_module(ours: str, theirs: str) -> Modules:
    """Of two modules that both call their layers conv and bn, as mmcv's ConvModule does."""
    return _conv_norm(ours, f'{theirs}.conv', f'{theirs}.bn')


def _squeeze_excite(ours: str, block: Block, reduce: str, expand: str) -> Modules:
    if block.se is None:
        return {}
    return {f'{ours}.se.conv1.conv': reduce, f'{ours}.se.conv2.conv': expand}


def _resnet(arch: Arch) -> Modules:
    """ResNet and ResNeXt, in mmpretrain RegNetX too: the names of torchvision."""
    modules = _conv_norm('stem', 'conv1', 'bn1')
    for i, j, ours, block in _numbered(arch):
        theirs = f'layer{i + 1}.{j}'
        parts = ('spatial', 'project')
        if block.kind != 'basic':
            parts = ('expand', *parts)
        for number, part in enumerate(parts, start=1):
            names = (f'{theirs}.conv{number}', f'{theirs}.bn{number}')
            modules |= _conv_norm(f'{ours}.{part}', *names)
        if block.residual == 'projection':
            names = (f'{theirs}.downsample.0', f'{theirs}.downsample.1')
            modules |= _conv_norm(f'{ours}.shortcut', *names)
    return modules


def _mmpretrain_inverted(ours: str, theirs: str, block: Block) -> Modules:
    modules = {}
    if block.kind == 'mbconv':
        modules |= _conv_module(f'{ours}.expand', f'{theirs}.expand_conv')
    modules |= _conv_module(f'{ours}.spatial', f'{theirs}.depthwise_conv')
    names = (f'{theirs}.se.conv1.conv', f'{theirs}.se.conv2.conv')
    modules |= _squeeze_excite(ours, block, *names)
    return modules | _conv_module(f'{ours}.project', f'{theirs}.linear_conv')


def _mmpretrain_efficientnet(arch: Arch) -> Modules:
    """One layer per stride: network stages of stride 1 follow in the layer before theirs."""
    modules = _conv_module('stem', 'layers.0')
    layer = position = 0
    for i, j, ours, block in _numbered(arch):
        if j == 0 and (i == 0 or block.stride > 1):
            layer, position = layer + 1, 0
        modules |= _mmpretrain_inverted(ours, f'layers.{layer}.{position}', block)
        position += 1
    return modules | _conv_module('conv_head', f'layers.{layer + 1}')


def _mmpretrain_mobilenet_v2(arch: Arch) -> Modules:
    modules = _conv_module('stem', 'conv1')
    for i, j, ours, block in _numbered(arch):
        parts = ('expand', 'spatial', 'project')[0 if block.kind == 'mbconv' else 1 :]
        for number, part in enumerate(parts):
            modules |= _conv_module(f'{ours}.{part}', f'layer{i + 1}.{j}.conv.{number}')
    return modules | _conv_module('conv_head', 'conv2')


def _mmpretrain_mobilenet_v3(arch: Arch) -> Modules:
    modules = _conv_module('stem', 'layer0')
    for number, (_, _, ours, block) in enumerate(_numbered(arch), start=1):
        modules |= _mmpretrain_inverted(ours, f'layer{number}', block)
    return modules | _conv_module('conv_head', f'layer{len(arch.blocks) + 1}')


def _timm_inverted(arch: Arch) -> Modules:
    """EfficientNet, MobileNetV2 and V3; in V3 the head's convolution is one more stage."""
    modules = _conv_norm('stem', 'conv_stem', 'bn1')
    for i, j, ours, block in _numbered(arch):
        theirs = f'blocks.{i}.{j}'
        parts = {'spatial': 'conv_dw', 'project': 'conv_pw'}
        if block.kind != 'dsconv':
            parts = {'expand': 'conv_pw', 'spatial': 'conv_dw', 'project': 'conv_pwl'}
        for number, (part, conv) in enumerate(parts.items(), start=1):
            modules |= _conv_norm(f'{ours}.{part}', f'{theirs}.{conv}', f'{theirs}.bn{number}')
        names = (f'{theirs}.se.conv_reduce', f'{theirs}.se.conv_expand')
        modules |= _squeeze_excite(ours, block, *names)
    names = ('conv_head', 'bn2')
    if arch.head.hidden_channels:
        last = f'blocks.{len(arch.stages)}.0'
        names = (f'{last}.conv', f'{last}.bn1')
    return modules | _conv_norm('conv_head', *names)


def _timm_regnet(arch: Arch) -> Modules:
    modules = _conv_module('stem', 'stem')
    for i, j, ours, block in _numbered(arch):
        theirs = f's{i + 1}.b{j + 1}'
        for number, part in enumerate(('expand', 'spatial', 'project'), start=1):
            modules |= _conv_module(f'{ours}.{part}', f'{theirs}.conv{number}')
        modules |= _squeeze_excite(ours, block, f'{theirs}.se.fc1', f'{theirs}.se.fc2')
        if block.residual == 'projection':
            modules |= _conv_module(f'{ours}.shortcut', f'{theirs}.downsample')
    return modules | _conv_module('conv_head', 'final_conv')


@dataclass(frozen=True)
class _Layout:
    """How a library names the modules of some of its networks.

    Attributes:
        stem: The first convolution, whose name tells the layouts of a library apart.
        backbone: Names of an Arch's modules, classifier excepted.
        classifier: The last linear layer.
        hidden: The linear layer between pooling and classifier, or None if there is none.
    """

    stem: str
    backbone: Callable[[Arch], Modules]
    classifier: str
    hidden: str | None = None


_LAYOUTS = {
    'mmpretrain': (
        _Layout('conv1', _resnet, 'head.fc'),
        _Layout('layers.0.conv', _mmpretrain_efficientnet, 'head.fc'),
        _Layout('conv1.conv', _mmpretrain_mobilenet_v2, 'head.fc'),
        _Layout('layer0.conv', _mmpretrain_mobilenet_v3, 'head.layers.1.fc', 'head.layers.0.fc'),
    ),
    'timm': (
        _Layout('conv1', _resnet, 'fc'),
        _Layout('conv_stem', _timm_inverted, 'classifier', 'conv_head'),
        _Layout('stem.conv', _timm_regnet, 'head.fc'),
    ),
}


def _linear_shapes(arch: Arch) -> dict[str, tuple[int, int]]:
    """Shapes of the weights of linear layers in mmpretrain's heads."""
    head = arch.head
    if not head.hidden_channels:
        return {'head.fc': (head.num_classes, arch.feature_channels)}
    return {
        'head.layers.0.fc': (head.hidden_channels, arch.feature_channels),
        'head.layers.1.fc': (head.num_classes, head.hidden_channels),
    }


def _own_tensors(arch: Arch, with_head: bool) -> dict[str, Tensor]:
    """Tensors without values, of the shapes and names of an ArchNet's classifier."""
    with torch.device('meta'):
        own = {f'backbone.{key}': tensor for key, tensor in ArchNet(arch).state_dict().items()}
        for name, shape in _linear_shapes(arch).items() if with_head else ():
            own[f'{name}.weight'] = torch.empty(shape)
            own[f'{name}.bias'] = torch.empty(shape[0])
    return own


def _linear_layers(arch: Arch, layout: _Layout) -> dict[str, tuple[str, tuple[int, int]]]:
    """Names of linear layers in mmpretrain's heads: their names there, shapes of the weights."""
    head = arch.head
    shapes = _linear_shapes(arch)
    if not head.hidden_channels:
        return {'head.fc': (layout.classifier, shapes['head.fc'])}
    if layout.hidden is None:
        raise UsageError(
            f'arch: the weights are of a network without the hidden layer of '
            f'head.hidden_channels={head.hidden_channels}'
        )
    theirs = {'head.layers.0.fc': layout.hidden, 'head.layers.1.fc': layout.classifier}
    return {ours: (theirs[ours], shape) for ours, shape in shapes.items()}


def _some(keys: Iterable[str]) -> str:
    keys = list(keys)
    return f'{", ".join(keys[:4])}{", ..." if len(keys) > 4 else ""}'


def _renamed(state_dict: Mapping[str, Tensor], wanted: Names) -> dict[str, Tensor]:
    """Tensors of `wanted`, all of them and nothing else."""
    found = dict(state_dict)
    for theirs, like in wanted.values():
        if theirs not in found and theirs.endswith('.num_batches_tracked'):
            found[theirs] = torch.tensor(0)  # weights of old PyTorch versions have none
        tensor = found.get(theirs, like)
        if tensor.ndim == 4 and like.ndim == 2 and tensor.shape[2:] == (1, 1):
            found[theirs] = tensor.flatten(1)  # a linear layer written as a 1x1 convolution
    difference = misfit(dict(wanted.values()), found)
    if difference:
        raise UsageError(f'the weights do not fit the Arch: {difference}')
    return {ours: found[theirs] for ours, (theirs, _) in wanted.items()}


def convert_state_dict(
    state_dict: Mapping[str, Tensor], arch: str | Arch, source: str
) -> tuple[Arch, dict[str, Tensor]]:
    """Renames the weights of another library's network to those of an ArchNet's classifier.

    Every key has to be used and every layer of the Arch to be given, in its shape. Only the
    whole classifier may be missing: the weights of a backbone alone give a backbone's.

    Args:
        state_dict: The weights, of a classifier or of a backbone.
        arch: The network: a name for :func:`matching_arch`, or an Arch, whose padding and eps
            then have to be those of the weights.
        source: ``mmpretrain`` or ``timm``.

    Returns:
        The Arch, with as many classes as the weights have, and the weights of an mmpretrain
        ImageClassifier with an ArchNet: keys ``backbone...`` and ``head...``.

    Raises:
        ValueError: The source or the name is not known, or the weights do not fit the Arch; the
            message names keys.
    """
    _check_source(source)
    if not isinstance(arch, Arch):
        arch = matching_arch(arch, source)
    whole = source == 'mmpretrain' and any(key.startswith('backbone.') for key in state_dict)
    prefix = 'backbone.' if whole else ''
    stems = {f'{prefix}{layout.stem}.weight': layout for layout in _LAYOUTS[source]}
    layout = next((layout for key, layout in stems.items() if key in state_dict), None)
    if layout is None:
        raise UsageError(
            f'source={source!r}: of the networks that are known of it, one has each of the keys '
            f'{", ".join(stems)}; the weights have none, but {_some(state_dict) or "no keys"}'
        )
    classifier = state_dict.get(f'{layout.classifier}.weight')
    if classifier is not None and classifier.ndim:
        arch = replace(arch, head=replace(arch.head, num_classes=len(classifier)))
    linear = _linear_layers(arch, layout)
    names = tuple(f'{theirs}.' for theirs, _ in linear.values())
    with_head = any(key.startswith(names) for key in state_dict)
    return arch, _renamed(state_dict, _names(arch, layout, prefix, with_head))


def _names(arch: Arch, layout: _Layout, prefix: str, with_head: bool) -> Names:
    """Our keys of an Arch's weights: the other library's, and tensors of the shapes we want."""
    for i, j, _, block in _numbered(arch):
        if block.kind == 'conv':
            raise UsageError(f'arch: stages[{i}][{j}]: kind=conv: no network of a library has one')
    wanted = {}
    modules = {
        f'backbone.{ours}': f'{prefix}{theirs}' for ours, theirs in layout.backbone(arch).items()
    }
    modules |= {ours: theirs for ours, (theirs, _) in _linear_layers(arch, layout).items()}
    for key, tensor in _own_tensors(arch, with_head).items():
        module, _, leaf = key.rpartition('.')
        if module not in modules:
            name = module.removeprefix('backbone.')
            raise UsageError(f'arch: the weights are of a network without its layer {name}')
        wanted[key] = (f'{modules[module]}.{leaf}', tensor)
    return wanted


def revert_state_dict(
    weights: Mapping[str, Tensor], arch: Arch, theirs: Mapping[str, Tensor], source: str
) -> dict[str, Tensor]:
    """The inverse of :func:`convert_state_dict`.

    Args:
        weights: Those of an mmpretrain ImageClassifier with an ArchNet.
        arch: Its Arch.
        theirs: State dict of the other library's network: its keys and shapes are what counts.
        source: ``mmpretrain`` or ``timm``.

    Raises:
        ValueError: One network has layers that the other has not; the message names keys.
    """
    convert_state_dict(theirs, arch, source)  # refuses another network
    layout = next(one for one in _LAYOUTS[source] if f'{one.stem}.weight' in theirs)
    linear = tuple(f'{name}.' for name, _ in _linear_layers(arch, layout).values())
    names = _names(arch, layout, '', any(key.startswith(linear) for key in theirs))
    wanted = {key: (ours, names[ours][1]) for ours, (key, _) in names.items()}
    found = _renamed(weights, wanted)
    return {key: tensor.reshape(theirs[key].shape) for key, tensor in found.items()}


def _without_numerics(arch: Arch) -> Arch:
    """An Arch without what a checkpoint says itself, or not at all."""
    arch = with_numerics(arch, 'half', 1e-5)
    stem = replace(arch.stem, in_channels=3)
    head = replace(arch.head, num_classes=0)
    return replace(arch, resolution=1, stem=stem, head=head)


def _numerics(arch: Arch) -> set[tuple[str, float]]:
    parts = (arch.stem, *arch.blocks)
    own = {(part.padding, part.eps) for part in parts}
    has_norm = arch.head.channels
    return own | {(arch.stem.padding, arch.head.eps)} if has_norm else own


def source_name(arch: Arch, source: str) -> str | None:
    """A source's name of the network with the layers, padding and eps of an Arch, or None.

    Args:
        arch: The network, with any classes, image channels and resolution.
        source: ``mmpretrain`` or ``timm``.
    """
    wanted = _without_numerics(arch)
    for name in source_names(source):
        known = matching_arch(name, source)
        if _without_numerics(known) == wanted and _numerics(known) == _numerics(arch):
            return name
    return None


def weights_for_source(
    weights: Mapping[str, Tensor], arch: Arch, source: str
) -> dict[str, Tensor]:
    """Renames the weights of an ArchNet's classifier to those of a source's same network.

    The way back of :func:`convert_state_dict`, where the source has such a network: mmpretrain
    has the published sizes alone, timm also what :func:`mmscale.to_timm` can say.

    Args:
        weights: Of an mmpretrain ImageClassifier with an ArchNet of the Arch, or of its
            backbone alone (keys ``backbone...``).
        arch: The Arch; its classes are those of the weights.
        source: ``mmpretrain`` or ``timm``.

    Returns:
        The state dict of mmpretrain's ImageClassifier or timm's network.

    Raises:
        ValueError: The source has no such network, or the weights do not fit the Arch.
    """
    _check_source(source)
    linear = 'head.layers.1.fc.weight' if arch.head.hidden_channels else 'head.fc.weight'
    stem = weights.get('backbone.stem.conv.weight')
    classes = len(weights[linear]) if linear in weights and weights[linear].ndim else 0
    arch = replace(arch, head=replace(arch.head, num_classes=classes))
    if stem is not None and stem.ndim == 4:
        arch = replace(arch, stem=replace(arch.stem, in_channels=stem.shape[1]))
    with_head = any(key.startswith('head.') for key in weights)
    if source == 'timm':
        from mmscale.models.timm_networks import to_timm

        # Before timm's network is built, which may be a large one.
        wanted = _own_tensors(arch, with_head)
        _renamed(weights, {key: (key, tensor) for key, tensor in wanted.items()})
        return to_timm(arch, weights).state_dict()
    name = source_name(arch, source)
    if name is None:
        raise UsageError(f'arch: {source} has no such network{_near_numerics(arch, source)}')
    stems = {'efficientnet': 'layers.0.conv', 'mobilenet-v2': 'conv1.conv'}
    stems['mobilenet-v3'] = 'layer0.conv'
    stem_name = next((stems[key] for key in stems if name.startswith(key)), 'conv1')
    layout = next(one for one in _LAYOUTS[source] if one.stem == stem_name)
    names = _names(arch, layout, 'backbone.', with_head)
    return _renamed(weights, {theirs: (ours, like) for ours, (theirs, like) in names.items()})


def _near_numerics(arch: Arch, source: str) -> str:
    """What to say if a source has the layers of an Arch with another padding or eps."""
    wanted = _without_numerics(arch)
    for name in source_names(source):
        known = matching_arch(name, source)
        if _without_numerics(known) == wanted:
            return (
                f': its {name} has padding={known.stem.padding} and eps={known.stem.eps:g}, the '
                f'Arch {arch.stem.padding} and {arch.stem.eps:g}'
            )
    return ''
