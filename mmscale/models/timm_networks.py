"""Archs as timm's networks and back, where both have the same layers."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmscale.arch import Arch, Block, get_arch
from mmscale.errors import UsageError
from mmscale.quiet import quiet_imports

if TYPE_CHECKING:
    from types import ModuleType

    from torch import Tensor, nn

# More than any network has: timm would dilate instead of striding on.
_NO_LIMIT = 2**20


def _timm() -> ModuleType:
    try:
        import timm
    except ImportError:
        raise ImportError('timm is not installed: pip install timm') from None
    return timm


def to_timm(
    arch: str | Path | dict | Arch, weights: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """Builds timm's network with the layers of an Arch.

    EfficientNet, MobileNetV2 and V3, RegNet, ResNet and ResNeXt that timm has by name, with any
    number of classes and image channels; and of timm's classes whatever they can be, scaled
    networks among it: networks of inverted residuals, as ScaleNet's and MobileNetV3's, ResNets
    and ResNeXts of other depths and widths, and RegNets with any four network stages.

    Args:
        arch: See :func:`mmscale.arch.get_arch`.
        weights: Of an mmpretrain ImageClassifier with an ArchNet of the Arch (keys
            ``backbone...`` and ``head...``); without them the network has timm's random ones.

    Raises:
        ImportError: timm is not installed.
        ValueError: timm has no such network, and the message names what it lacks; or the
            weights are not the Arch's.

    Example:
        >>> type(to_timm('scalenet-s0')).__name__
        'EfficientNet'
    """
    timm = _timm()
    with quiet_imports():
        from mmscale.models.backbones.arch_net import check_weights_fit
        from mmscale.models.converters import revert_state_dict, source_name

    arch = get_arch(arch)
    for where, block in _numbered(arch):
        _refuse(block.kind == 'conv', where, 'kind=conv')
    check_weights_fit(arch)
    name = source_name(arch, 'timm')
    if name is not None:
        settings = dict(num_classes=arch.head.num_classes, in_chans=arch.stem.in_channels)
        network = timm.create_model(name, **settings)
    elif {block.kind for block in arch.blocks} <= {'mbconv', 'dsconv'}:
        network = _inverted(arch)
    elif arch.stem.max_pool and (arch.stem.kernel, arch.stem.stride) == (7, 2):
        network = _resnet(arch)
    else:
        network = _regnet(arch)
    if weights is not None:
        theirs = revert_state_dict(weights, arch, network.state_dict(), 'timm')
        network.load_state_dict(theirs)
    return network


def create(name: str) -> nn.Module:
    """One of timm's networks, with random weights.

    Raises:
        ImportError: timm is not installed.
        UsageError: timm has no such network.
    """
    timm = _timm()
    try:
        return timm.create_model(name)
    except RuntimeError as error:  # of an unknown name
        names = timm.list_models()
        near = timm.list_models(f'*{name}*')[:4] or difflib.get_close_matches(name, names, n=4)
        hint = f'; near names are {", ".join(near)}' if near else ''
        raise UsageError(f'timm:{name}: timm has no such network{hint}') from error


def from_timm(
    model: str | nn.Module, arch: Arch | None = None, pretrained: bool = False
) -> tuple[Arch, dict[str, Tensor]]:
    """The Arch and the weights of one of timm's networks.

    ``build_network(arch).load_state_dict(weights)`` then computes the same logits.

    Args:
        model: The network, or its name.
        arch: Its Arch, where timm does not know it by name: as of :func:`to_timm`.
        pretrained: Whether a network given by name gets its published weights, which timm
            downloads, or random ones.

    Returns:
        The Arch, and the weights of an mmpretrain ImageClassifier with an ArchNet.

    Raises:
        ImportError: timm is not installed.
        ValueError: No Arch is known to have these layers; the message names keys.

    Example:
        >>> arch, weights = from_timm('resnet18')
        >>> arch.depths
        (2, 2, 2, 2)
    """
    timm = _timm()
    with quiet_imports():
        from mmscale.models.converters import convert_state_dict, matching_arch

    name = model if isinstance(model, str) else _name_of(model)
    if arch is None:
        if name is None:
            raise UsageError(f'{type(model).__name__} has no name in timm: give its arch too')
        arch = matching_arch(name, 'timm')
    if isinstance(model, str):
        model = timm.create_model(model, pretrained=pretrained)
    channels = next(iter(model.state_dict().values())).shape[1]  # of the stem's convolution
    arch = replace(arch, stem=replace(arch.stem, in_channels=channels))
    return convert_state_dict(model.state_dict(), arch, 'timm')


def _name_of(model: nn.Module) -> str | None:
    """The name that timm's registry knows a network by."""
    about = getattr(model, 'pretrained_cfg', None) or {}
    return about.get('architecture')


def _common(arch: Arch, key: str) -> Any:
    """What stem, blocks and head have all the same.

    Raises:
        ValueError: A block has another one than the stem.
    """
    value = getattr(arch.stem, key)
    parts = [*_numbered(arch), ('head', arch.head)]
    for name, part in parts:
        is_used = part is not arch.head or arch.head.channels or arch.head.hidden_channels
        if is_used and hasattr(part, key) and getattr(part, key) != value:
            raise UsageError(
                f'timm: {name} has {key}={getattr(part, key)}, the stem {value}; timm needs one '
                f'for the whole network'
            )
    return value


def _numbered(arch: Arch) -> list[tuple[str, Block]]:
    return [
        (f'stages[{i}][{j}]', block)
        for i, stage in enumerate(arch.stages)
        for j, block in enumerate(stage)
    ]


def _refuse(condition: bool, where: str, what: str) -> None:
    if condition:
        raise UsageError(f'timm cannot say the Arch: {where}: {what}')


def _layer(name: str) -> type[nn.Module]:
    """The layer of an activation or gate that an Arch names."""
    from mmscale.models.backbones.blocks import LAYERS

    return LAYERS[name][1]


def _settings(arch: Arch) -> dict[str, Any]:
    """Arguments that timm's classes share."""
    from torch import nn

    return dict(
        num_classes=arch.head.num_classes,
        in_chans=arch.stem.in_channels,
        act_layer=_layer(arch.stem.act),
        norm_layer=partial(nn.BatchNorm2d, eps=_common(arch, 'eps')),
    )


def _inverted(arch: Arch) -> nn.Module:
    """A network of inverted residuals: timm's EfficientNet, or MobileNetV3 with its head."""
    from timm.models._efficientnet_blocks import SqueezeExcite
    from timm.models.efficientnet import EfficientNet
    from timm.models.mobilenetv3 import MobileNetV3

    stem, head = arch.stem, arch.head
    _refuse(stem.stride != 2 or stem.max_pool, 'stem', 'timm has stride 2 and no max-pool')
    has_head = bool(head.channels or head.hidden_channels)
    _refuse(has_head and head.act != stem.act, 'head', f'act={head.act}, the stem has {stem.act}')
    _refuse(bool(head.hidden_channels and stem.kernel != 3), 'stem', 'timm has kernel 3')
    stages = [[_inverted_args(arch, i, j) for j in range(n)] for i, n in enumerate(arch.depths)]
    squeezes = {(block.se.act, block.se.gate) for block in arch.blocks if block.se}
    _refuse(len(squeezes) > 1, 'se', 'act and gate must be the same in all blocks')
    settings = dict(
        _settings(arch),
        block_args=stages,
        stem_size=stem.out_channels,
        fix_stem=True,
        pad_type='same' if _common(arch, 'padding') == 'same' else '',
        round_chs_fn=int,
    )
    for act, gate in squeezes:
        layers = dict(force_act_layer=_layer(act), gate_layer=_layer(gate))
        settings['se_layer'] = partial(SqueezeExcite, **layers)
    if not head.hidden_channels:
        with _exact_hidden_widths():
            return EfficientNet(
                **settings,
                num_features=head.channels,
                stem_kernel_size=stem.kernel,
                output_stride=_NO_LIMIT,
            )
    _refuse(arch.strides[-1] > 32, 'stages', f'stride {arch.strides[-1]}, timm ends at 32')
    if head.channels:
        # As in MobileNetV3, where the head's convolution is one more network stage.
        last = dict(block_type='cn', kernel_size=1, stride=1, out_chs=head.channels)
        stages.append([dict(last, act_layer=None)])
    with _exact_hidden_widths():
        return MobileNetV3(**settings, num_features=head.hidden_channels, se_from_exp=False)


@contextlib.contextmanager
def _exact_hidden_widths() -> Iterator[None]:
    """Keeps timm from rounding hidden widths to multiples of 8, which no argument of it can."""
    from timm.models import _efficientnet_blocks as blocks

    rounding = blocks.make_divisible
    blocks.make_divisible = lambda channels, *args, **kwargs: round(channels)
    try:
        yield
    finally:
        blocks.make_divisible = rounding


def _inverted_args(arch: Arch, i: int, j: int) -> dict[str, Any]:
    """How timm's builder is told of a block."""
    block = arch.stages[i][j]
    where = f'stages[{i}][{j}]'
    hidden = block.hidden_channels
    _refuse(block.residual == 'projection', where, 'residual=projection')
    _refuse(block.grouped_channels is not None, where, 'grouped_channels')
    _refuse(block.stride not in (1, 2), where, f'stride={block.stride}')
    _refuse(j > 0 and block.stride > 1, where, 'only the first block of a stage may have a stride')
    can_skip = block.stride == 1 and block.in_channels == block.out_channels
    arguments: dict[str, Any] = dict(
        block_type='ds',
        dw_kernel_size=block.kernel,
        stride=block.stride,
        out_chs=block.out_channels,
        group_size=hidden // block.groups,
        noskip=can_skip and block.residual == 'none',
        act_layer=_layer(block.act),
    )
    ratio = 1.0
    if block.kind == 'mbconv':
        ratio = hidden / block.in_channels
        arguments.update(block_type='ir', exp_ratio=ratio)
    if block.se is not None:
        # timm rounds it back to this number of channels.
        arguments['se_ratio'] = block.se.channels / hidden * ratio
    return arguments


def _expected(where: str, block: Block, expected: Block, family: str) -> None:
    """Refuses a block that is not what a network of a family would have there."""
    for key in vars(block):
        found, wanted = getattr(block, key), getattr(expected, key)
        _refuse(found != wanted, where, f'{key}={found}, its {family} has {wanted}')


def _full_width_blocks(arch: Arch, family: str, kernel: int, strides: Sequence[int]) -> None:
    """Refuses blocks that differ from those of their network stage's first one.

    What may differ from stage to stage are the widths and the groups.
    """
    stem, channels = arch.stem, arch.stem.out_channels
    for i, stage in enumerate(arch.stages):
        first = stage[0]
        for j, block in enumerate(stage):
            stride = 1 if j else strides[i]
            is_projected = not j and (stride != 1 or channels != first.out_channels)
            expected = replace(
                first,
                kind=arch.blocks[0].kind,
                stride=stride,
                in_channels=channels,
                kernel=kernel,
                se=block.se,
                act=stem.act,
                residual='projection' if is_projected else 'identity',
                padding='half',
                eps=stem.eps,
                grouped_channels=None,
            )
            _expected(f'stages[{i}][{j}]', block, expected, family)
            channels = first.out_channels


def _resnet(arch: Arch) -> nn.Module:
    """A ResNet or ResNeXt: timm's with other depths, widths and groups."""
    from timm.models.resnet import BasicBlock, Bottleneck, ResNet

    stem, kind = arch.stem, arch.blocks[0].kind
    _refuse(stem.padding != 'half', 'stem', f'padding={stem.padding}')
    _refuse(bool(arch.head.channels or arch.head.hidden_channels), 'head', 'timm has none here')
    _refuse(len(arch.stages) > 4, 'stages[4]', 'timm ends at stride 32')
    _refuse(kind not in ('basic', 'bottleneck'), 'stages[0][0]', f'kind={kind}')
    if kind == 'basic':
        for where, block in _numbered(arch):
            expected = replace(block, hidden_channels=block.out_channels, groups=1)
            _expected(where, block, expected, 'ResNet')
    _full_width_blocks(arch, 'ResNet', 3, (1, 2, 2, 2))
    expansion = 4 if kind == 'bottleneck' else 1
    blocks = []
    for i, stage in enumerate(arch.stages):
        first, where = stage[0], f'stages[{i}][0]'
        _refuse(any(block.se is not None for block in stage), where, 'se: its ResNet has none')
        planes, rest = divmod(first.out_channels, expansion)
        _refuse(rest > 0, where, f'out_channels={first.out_channels} is no multiple of 4')
        # timm rounds down what it makes of this.
        base_width = (first.hidden_channels // first.groups + 0.5) * 64 / planes
        is_basic = kind == 'basic'
        blocks.append(
            BasicBlock if is_basic else _resnet_stage(Bottleneck, first.groups, base_width)
        )
    return ResNet(
        **_settings(arch),
        block=tuple(blocks),
        layers=arch.depths,
        channels=tuple(width // expansion for width in arch.widths),
    )


def _resnet_stage(
    block: type[nn.Module], cardinality: int, base_width: float
) -> Callable[..., nn.Module]:
    """Makes the blocks of one network stage, where timm has one cardinality for all."""

    def make(*args: Any, **kwargs: Any) -> nn.Module:
        return block(*args, **{**kwargs, 'cardinality': cardinality, 'base_width': base_width})

    make.expansion = block.expansion
    return make


def _regnet(arch: Arch) -> nn.Module:
    """A RegNet X or Y: timm's with any widths, depths and groups."""
    from timm.models.regnet import RegNet, RegNetCfg

    stem = arch.stem
    _refuse(
        stem.max_pool or (stem.kernel, stem.stride, stem.padding) != (3, 2, 'half'),
        'stem',
        'no ResNet or RegNet has it',
    )
    _refuse(len(arch.stages) != 4, 'stages', f'there are {len(arch.stages)}, a RegNet has 4')
    _refuse(bool(arch.head.hidden_channels), 'head', 'timm has no hidden layer here')
    _refuse(bool(arch.head.channels) and arch.head.act != stem.act, 'head', 'act')
    _full_width_blocks(arch, 'RegNet', 3, [stage[0].stride for stage in arch.stages])
    stages = [
        dict(
            out_chs=stage[0].out_channels,
            stride=stage[0].stride,
            dilation=1,
            depth=len(stage),
            bottle_ratio=stage[0].hidden_channels / stage[0].out_channels,
            group_size=stage[0].hidden_channels // stage[0].groups,
            se_ratio=_se_ratio(f'stages[{i}]', stage),
        )
        for i, stage in enumerate(arch.stages)
    ]
    shared = _settings(arch)
    layers = {key: shared.pop(key) for key in ('act_layer', 'norm_layer')}
    config = RegNetCfg(stem_width=stem.out_channels, num_features=arch.head.channels, **layers)
    network = RegNet.__new__(RegNet)
    # timm computes the network stages from numbers of the design space, which scaled ones lack.
    given = (stages, dict(layers, downsample='conv1x1', linear_out=False))
    object.__setattr__(network, '_get_stage_args', lambda *args, **kwargs: given)
    network.__init__(config, **shared)
    object.__delattr__(network, '_get_stage_args')
    return network


def _se_ratio(where: str, stage: Sequence[Block]) -> float:
    """The ratio of squeeze to input of which timm makes the squeezes of a network stage."""
    squeezes = [block.se for block in stage]
    if not any(squeezes):
        return 0.0
    _refuse(not all(squeezes), where, 'se: in some of its blocks alone')
    for block, se in zip(stage, squeezes, strict=True):
        _refuse((se.act, se.gate) != (block.act, 'sigmoid'), where, f'se: {se.act} and {se.gate}')
    for ratio in (0.25, *(block.se.channels / block.in_channels for block in stage)):
        if all(round(block.in_channels * ratio) == block.se.channels for block in stage):
            return ratio
    _refuse(True, where, 'se: the squeezes are of no one ratio')
    raise AssertionError
