"""SuperNet: the weight-sharing network that contains every Arch of a search space."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import nn
from torch.func import functional_call

from mmscale.arch import Arch, Block, SearchSpace
from mmscale.arch.sampling import SIDES
from mmscale.models.backbones.arch_net import ArchNet
from mmscale.models.backbones.blocks import ArchBlock
from mmscale.registry import MODELS

KERNEL_SHARING = ('shared', 'separate')

# One slice per dimension of a tensor, as hashable (start, stop) pairs.
Region = tuple[tuple[int, int], ...]


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
        if dimension >= 2:
            start = (size - part) // 2
        else:
            start = 0 if side == 'left' else size - part
        region.append((start, start + part))
    return tuple(region)


@dataclass(frozen=True)
class _Subnet:
    """A subnet without weights, and where its tensors lie in the super-supernet."""

    net: ArchNet
    names: dict[str, str]
    regions: dict[str, dict[str, Region]]


def _tensors_of(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


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


@MODELS.register_module()
class SuperNet(ArchNet):
    """Holds one set of weights for all Archs of a space; a forward pass uses one subnet of them.

    The weights are those of an ArchNet of the space's :attr:`~SearchSpace.allocation`. The
    subnet is a function of (Arch, side) alone: :meth:`regions` says which part of every tensor
    it uses, and the forward pass runs the subnet's own ArchNet on those parts, so that the
    super-supernet and an extracted subnet cannot differ. Network stage i, block j of an Arch
    always uses the weights of slot (i, j).

    Args:
        space: Config of the :class:`SearchSpace`, or the space.
        kernels: ``shared``: a small kernel is the centre of the large one; ``separate``: every
            kernel size has a whole block of its own (the paper's).
        out_indices: As in :class:`ArchNet`.
        frozen_stages: As in :class:`ArchNet`.
        norm_eval: As in :class:`ArchNet`.
        norm_cfg: As in :class:`ArchNet`.
        init_cfg: As in :class:`ArchNet`.

    Attributes:
        used_regions: Parameter name to the regions that forward passes in training mode have
            used since :meth:`forget_used_regions`; what was not used must not be updated.
    """

    def __init__(
        self,
        space: dict | SearchSpace,
        kernels: str = 'shared',
        out_indices: int | Sequence[int] = -1,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        norm_cfg: dict | None = None,
        init_cfg: dict | list | None = None,
    ) -> None:
        if kernels not in KERNEL_SHARING:
            raise ValueError(f'kernels={kernels!r} is not one of {", ".join(KERNEL_SHARING)}')
        space = space if isinstance(space, SearchSpace) else SearchSpace(**space)
        # The base class makes the blocks, for which it needs to know the space.
        self.space = space
        self.kernels = kernels
        super().__init__(
            space.allocation,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            norm_eval=norm_eval,
            norm_cfg=norm_cfg,
            init_cfg=init_cfg,
        )
        self.used_regions: dict[str, set[Region]] = {}
        self._subnet = lru_cache(maxsize=256)(self._make_subnet)
        self.set_arch(space.largest())

    def _make_block(self, stage: int, block: Block, drop_path_rate: float) -> nn.Module:
        if self.kernels == 'shared':
            return super()._make_block(stage, block, drop_path_rate)
        return nn.ModuleDict(
            {
                f'kernel{kernel}': ArchBlock(replace(block, kernel=kernel), self.norm_cfg)
                for kernel in self.space.stages[stage].kernels
            }
        )

    def _check(self, arch: Arch) -> None:
        """Raises ValueError if the Arch is no subnet of this super-supernet."""
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
            raise ValueError(f'arch {arch.digest[:10]} is not in this search space: {problem}')

    def _make_subnet(self, arch: Arch) -> _Subnet:
        self._check(arch)
        with torch.device('meta'):
            net = ArchNet(
                arch,
                out_indices=self.out_indices,
                frozen_stages=self.frozen_stages,
                norm_eval=self.norm_eval,
                norm_cfg=self.norm_cfg,
            )
        names = {}
        allocated = dict(self._tensors())
        for name, tensor in _tensors_of(net):
            parts = name.split('.')
            if self.kernels == 'separate' and parts[0] == 'stages':
                block = arch.stages[int(parts[1])][int(parts[2])]
                parts.insert(3, f'kernel{block.kernel}')
            shared_name = '.'.join(parts)
            names[name] = shared_name
            if len(allocated[shared_name].shape) != len(tensor.shape):
                raise ValueError(f'{name} has another number of dimensions than {shared_name}')
        shapes = {name: tuple(tensor.shape) for name, tensor in _tensors_of(net)}
        regions = {
            side: {
                name: slice_region(allocated[names[name]].shape, shape, side)
                for name, shape in shapes.items()
            }
            for side in SIDES
        }
        return _Subnet(net, names, regions)

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        return _tensors_of(self)

    def set_arch(self, arch: Arch, side: str = 'left') -> None:
        """Chooses the subnet that :meth:`forward` runs.

        Raises:
            ValueError: The Arch is not in the space, or the side is unknown.
        """
        if side not in SIDES:
            raise ValueError(f'side={side!r} is not one of {", ".join(SIDES)}')
        self._check(arch)
        self._active = arch, side

    def _cut(self, arch: Arch, side: str) -> Iterator[tuple[str, str, Region, torch.Tensor]]:
        """Names in the subnet and here, region, and the part of every tensor of a subnet."""
        subnet = self._subnet(arch)
        allocated = dict(self._tensors())
        for name, region in subnet.regions[side].items():
            shared_name = subnet.names[name]
            tensor = allocated[shared_name]
            whole = all(stop - start == size for (start, stop), size in zip(region, tensor.shape))
            yield name, shared_name, region, tensor if whole else tensor[index_of(region)]

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Runs the active subnet on images (N, channels, H, W)."""
        arch, side = self._active
        net = self._subnet(arch).net
        net.train(self.training)
        record = self.training and torch.is_grad_enabled()
        tensors = {}
        for name, shared_name, region, tensor in self._cut(arch, side):
            tensors[name] = tensor
            if record and tensor.requires_grad:
                self.used_regions.setdefault(shared_name, set()).add(region)
        return functional_call(net, tensors, (x,))

    def forget_used_regions(self) -> None:
        """Starts a new record of what forward passes use."""
        self.used_regions.clear()

    def extract(self, arch: Arch, side: str = 'left') -> ArchNet:
        """A stand-alone ArchNet with its own contiguous copy of a subnet's weights.

        Raises:
            ValueError: The Arch is not in the space, or the side is unknown.
        """
        self.set_arch(arch, side)
        net = ArchNet(arch, out_indices=self.out_indices, norm_cfg=self.norm_cfg)
        reference = next(self.parameters())
        net.to(device=reference.device, dtype=reference.dtype)
        state = {
            name: tensor.detach().clone(memory_format=torch.contiguous_format)
            for name, _, _, tensor in self._cut(arch, side)
        }
        net.load_state_dict(state)
        return net
