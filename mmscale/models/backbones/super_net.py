"""SuperNet: the weight-sharing network that contains every Arch of a search space."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from mmscale.arch import Arch, Block, Head, SearchSpace, Stem
from mmscale.arch.checks import check_keys, choice
from mmscale.arch.sampling import SIDES
from mmscale.config_parts import type_name
from mmscale.errors import UsageError
from mmscale.models.backbones.arch_net import ArchNet, Layer
from mmscale.models.backbones.blocks import ArchBlock, checkpointed
from mmscale.registry import MODELS

KERNEL_SHARING = ('shared', 'separate')
# What of an ArchNet's settings a SuperNet has too.
_SETTINGS = (
    *('out_indices', 'out_strides', 'neck', 'frozen_stages', 'norm_eval', 'norm_cfg'),
    *('channels_last', 'init_cfg', 'with_cp'),
)

# One slice per dimension of a tensor, as hashable (start, stop) pairs.
Region = tuple[tuple[int, int], ...]
# What a layer is made from: the head's convolution from its input's width too, a neck from the
# channels of the feature maps.
Part = Stem | Block | tuple[int, Head] | tuple[int, ...]


def index_of(region: Region) -> tuple[slice, ...]:
    """The index that cuts a region out of its tensor."""
    return tuple(slice(start, stop) for start, stop in region)


def slice_region(allocated: Sequence[int], wanted: Sequence[int], side: str) -> Region:
    """Where a subnet's tensor lies in the super-supernet's (BCNet's coupling, as in ScaleNet).

    Channels are the first ones of a dimension on the left side and the last ones on the right.
    Kernels, the dimensions from the third on, are the centre of the larger kernel.

    Args:
        allocated: Shape in the super-supernet.
        wanted: Shape in the subnet.
        side: ``left`` or ``right``.
    """
    region = []
    for dimension, (size, part) in enumerate(zip(allocated, wanted, strict=True)):
        offsets = {'left': 0, 'right': size - part}
        start = offsets[side] if dimension < 2 else (size - part) // 2
        region.append((start, start + part))
    return tuple(region)


def _tensors_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _fits(block: Block, slot: Block) -> bool:
    """Whether a block differs from its slot in kernel and smaller widths alone."""
    if (block.se is None) != (slot.se is None):
        return False
    widths = [
        (block.in_channels, slot.in_channels),
        (block.hidden_channels, slot.hidden_channels),
        (block.out_channels, slot.out_channels),
    ]
    se = None
    if block.se is not None:
        widths.append((block.se.channels, slot.se.channels))
        se = replace(block.se, channels=slot.se.channels)
    if any(width > most for width, most in widths) or not block.depthwise:
        return False
    return slot == replace(
        block,
        kernel=slot.kernel,
        in_channels=slot.in_channels,
        hidden_channels=slot.hidden_channels,
        out_channels=slot.out_channels,
        groups=slot.groups,
        se=se,
    )


def _separate_kernels(space: SearchSpace) -> Callable[[Block, dict, float], nn.ModuleDict]:
    """Makes the slots of a space in their order, each with a block for every kernel size."""
    slots = zip(space.stages, space.allocation.stages, strict=True)
    choices = iter([stage.kernels for stage, blocks in slots for _ in blocks])

    def make_block(block: Block, norm_cfg: dict, _: float) -> nn.ModuleDict:
        return nn.ModuleDict(
            {f'kernel{k}': ArchBlock(replace(block, kernel=k), norm_cfg) for k in next(choices)}
        )

    return make_block


@MODELS.register_module()
class SuperNet(ArchNet):
    """Holds one set of weights for all Archs of a space; a forward pass uses one subnet of them.

    The weights are those of an ArchNet of the space's :attr:`~SearchSpace.allocation`. The
    subnet is a function of (Arch, side) alone: :func:`slice_region` says which part of every
    tensor it uses, and the forward pass runs the very layers of the Arch's own ArchNet on those
    parts, so that the super-supernet and an extracted subnet cannot differ. Network stage i,
    block j of an Arch always uses the weights of slot (i, j).

    Args:
        space: Config of the :class:`SearchSpace`, or the space.
        kernels: ``shared``: a small kernel is the centre of the large one; ``separate``: every
            kernel size has a whole block of its own (the paper's).
        **settings: As for :class:`ArchNet`: ``out_indices``, ``out_strides``, ``neck`` (a subnet
            uses the part of its weights that fits its widths), ``frozen_stages``, ``norm_eval``,
            ``norm_cfg`` (``dict(type='SyncBN')`` computes the statistics of a step over all
            processes, GPUs only; extracted networks have plain BN), ``channels_last``,
            ``init_cfg`` and ``with_cp``.

    Attributes:
        used_regions: Parameter name to the regions that forward passes in training mode have
            used since :meth:`forget_used_regions`; what was not used must not be updated.

    Raises:
        ValueError: A setting is unknown or not allowed.
    """

    def __init__(
        self,
        space: dict | SearchSpace,
        kernels: str = 'shared',
        **settings: Any,
    ) -> None:
        choice('kernels', kernels, KERNEL_SHARING)
        check_keys('SuperNet', settings, _SETTINGS)
        space = space if isinstance(space, SearchSpace) else SearchSpace(**space)
        make_block = ArchBlock if kernels == 'shared' else _separate_kernels(space)
        super().__init__(space.allocation, make_block=make_block, **settings)
        self.space = space
        self.kernels = kernels
        self.used_regions: dict[str, set[Region]] = {}
        self._templates: dict[Part, nn.Module] = {}
        self.set_arch(space.largest())

    def _check(self, arch: Arch, side: str) -> None:
        """Raises ValueError if the Arch is no subnet of this super-supernet."""
        choice('side', side, SIDES)
        whole = self.arch
        problem = None
        if len(arch.stages) != len(whole.stages):
            problem = f'{len(arch.stages)} network stages, the space has {len(whole.stages)}'
        elif arch.head != whole.head:
            problem = f'head {arch.head}, the space has {whole.head}'
        elif replace(arch.stem, out_channels=whole.stem.out_channels) != whole.stem:
            problem = f'stem {arch.stem}, the space has {whole.stem}'
        elif arch.stem.out_channels > whole.stem.out_channels:
            problem = f'stem wider than {whole.stem.out_channels}'
        else:
            for i, (stage, slots) in enumerate(zip(arch.stages, whole.stages, strict=True)):
                if len(stage) > len(slots):
                    problem = f'{len(stage)} blocks in network stage {i}, of {len(slots)} slots'
                    break
                kernels = self.space.stages[i].kernels
                for j, block in enumerate(stage):
                    if block.kernel not in kernels or not _fits(block, slots[j]):
                        problem = f'block {j} of network stage {i}: {block}'
                        break
        if problem is not None:
            raise UsageError(f'arch {arch.digest[:10]} is not in this search space: {problem}')

    def _template(self, part: Part) -> nn.Module:
        """A layer of a subnet without weights, built once: few differ within a space."""
        if part not in self._templates:
            with torch.device('meta'):
                if isinstance(part, Stem):
                    template = self._make_stem(part)
                elif isinstance(part, Block):
                    template = ArchBlock(part, self.norm_cfg)
                elif isinstance(part[-1], Head):
                    template = self._make_conv_head(*part)
                else:
                    template = self._make_neck(part)
            self._templates[part] = template
        return self._templates[part]

    def _block_name(self, stage: int, slot: int, block: Block) -> str:
        name = f'stages.{stage}.{slot}'
        return name if self.kernels == 'shared' else f'{name}.kernel{block.kernel}'

    def set_arch(self, arch: Arch, side: str = 'left') -> None:
        """Chooses the subnet that :meth:`forward` runs.

        Raises:
            ValueError: The Arch is not in the space, or the side is unknown.
        """
        self._check(arch, side)
        self._active = arch, side

    def _cut(
        self, name: str, template: nn.Module, side: str
    ) -> Iterator[tuple[str, Region, torch.Tensor]]:
        """Name in the template, region, and the part that it uses, of a layer's every tensor."""
        allocated = _tensors_of(self.get_submodule(name))
        for key, wanted in _tensors_of(template).items():
            tensor = allocated[key]
            region = slice_region(tensor.shape, wanted.shape, side)
            yield key, region, tensor if tensor.shape == wanted.shape else tensor[index_of(region)]

    def _layer(self, name: str, part: Part, side: str) -> Layer:
        """The layer of that name, cut to what a subnet's part needs."""
        template = self._template(part)
        record = self.training and torch.is_grad_enabled()
        tensors = {}
        for key, region, tensor in self._cut(name, template, side):
            tensors[key] = tensor
            if record and tensor.requires_grad:
                self.used_regions.setdefault(f'{name}.{key}', set()).add(region)

        def run(x: torch.Tensor) -> torch.Tensor:
            # What is frozen, or in eval mode, is so in this network's own modules.
            modules = self.get_submodule(name).modules()
            for module, own in zip(template.modules(), modules, strict=True):
                module.training = own.training
            return functional_call(template, tensors, (x,))

        is_block = isinstance(part, Block)
        return checkpointed(run, template, tensors) if is_block and self._recomputes else run

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Runs the active subnet on images (N, channels, H, W)."""
        arch, side = self._active
        if torch.jit.is_tracing():
            # Tracing, as MMEngine's analysis of cost does it, knows no functional calls.
            return self.extract(arch, side).train(self.training)(x)
        last = self.out_indices[-1]
        stages = [
            [
                self._layer(self._block_name(i, j, block), block, side)
                for j, block in enumerate(stage)
            ]
            for i, stage in enumerate(arch.stages[: last + 1])
        ]
        conv_head = neck = None
        if last == len(arch.stages) and self.conv_head is not None:
            conv_head = self._layer('conv_head', (arch.widths[-1], arch.head), side)
        if self.neck is not None:
            neck = self._layer('neck', self._channels_of(arch), side)
        return self._run(x, self._layer('stem', arch.stem, side), stages, conv_head, neck)

    def forget_used_regions(self) -> None:
        """Starts a new record of what forward passes use."""
        self.used_regions.clear()

    @property
    def is_synchronised(self) -> bool:
        """Whether its norms are to be those of all processes together."""
        return type_name(self.norm_cfg) in ('SyncBN', 'SyncBatchNorm')

    def extract(self, arch: Arch, side: str = 'left') -> ArchNet:
        """A stand-alone ArchNet with its own contiguous copy of a subnet's weights.

        Raises:
            ValueError: The Arch is not in the space, or the side is unknown.
        """
        self._check(arch, side)
        # Ranks score networks of their own: a stand-alone one must not wait for the others'.
        norm_cfg = {**self.norm_cfg, 'type': 'BN'} if self.is_synchronised else self.norm_cfg
        # Without weights at first: drawing some would cost time and random numbers.
        with torch.device('meta'):
            net = ArchNet(
                arch,
                out_indices=self.out_indices,
                neck=self.neck_cfg,
                norm_cfg=norm_cfg,
                channels_last=self.channels_last,
            )
        names = {
            name: name for name in ('stem', 'conv_head', 'neck') if getattr(net, name) is not None
        }
        for i, stage in enumerate(arch.stages):
            for j, block in enumerate(stage):
                names[f'stages.{i}.{j}'] = self._block_name(i, j, block)
        state = {
            f'{name}.{key}': tensor.detach().clone(memory_format=torch.contiguous_format)
            for name, own_name in names.items()
            for key, _, tensor in self._cut(own_name, net.get_submodule(name), side)
        }
        net.load_state_dict(state, assign=True)
        net.is_init = True
        return net
