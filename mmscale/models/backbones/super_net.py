"""SuperNet: the weight-sharing network that contains every Arch of a search space."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from mmscale.arch import Arch, Block, Head, SearchSpace
from mmscale.arch.checks import check_keys, choice
from mmscale.arch.sampling import SIDES, checked_sides
from mmscale.arch.slots import Slot, variant_of
from mmscale.config_parts import type_name
from mmscale.errors import UsageError
from mmscale.models.backbones.arch_net import ArchNet
from mmscale.models.backbones.blocks import ArchBlock
from mmscale.models.backbones.shared_weights import Needed, SharedWeights
from mmscale.models.backbones.slices import unshared
from mmscale.registry import MODELS

KERNEL_SHARING = ('shared', 'separate')
# What of an ArchNet's settings a SuperNet has too.
_SETTINGS = (
    *('out_indices', 'out_strides', 'neck', 'frozen_stages', 'norm_eval', 'norm_cfg'),
    *('channels_last', 'init_cfg', 'with_cp', 'zero_init_residual'),
)

Slots = tuple[tuple[dict[str, Slot], ...], ...]


def _slot_maker(slots: Slots, separate: bool) -> Callable[[Block, dict, float], nn.Module]:
    """Makes the layers of slots in their order: of every variant, or also of its every kernel."""
    waiting = iter([variants for stage in slots for variants in stage])

    def make_variant(slot: Slot, norm_cfg: dict) -> nn.Module:
        if not separate:
            return ArchBlock(slot.block, norm_cfg)
        blocks = {f'kernel{k}': replace(slot.block, kernel=k) for k in slot.kernels}
        return nn.ModuleDict({name: ArchBlock(one, norm_cfg) for name, one in blocks.items()})

    def make_slot(_: Block, norm_cfg: dict, __: float) -> nn.Module:
        variants = {name: make_variant(slot, norm_cfg) for name, slot in next(waiting).items()}
        return nn.ModuleDict(variants) if len(variants) > 1 else next(iter(variants.values()))

    return make_slot


class _Methods(nn.Module):
    """A head of which any method is called by name, as torch's functional calls need it."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.head, method)(*args, **kwargs)


@MODELS.register_module()
class SuperNet(SharedWeights, ArchNet):
    """Holds one set of weights for all Archs of a space; a forward pass uses one subnet of them.

    The weights are those of an ArchNet of the space's :attr:`~SearchSpace.allocation`, or with one
    side of :attr:`~SearchSpace.widest`. The subnet is a function of (Arch, side) alone:
    :func:`slice_region` says which part of every tensor it uses, and the forward pass runs the
    very layers of the Arch's own ArchNet on those parts, so that the super-supernet and an
    extracted subnet cannot differ. Network stage i, block j of an Arch always uses the weights of
    slot (i, j). Where a slot has a choice of kinds of block or of groups, every such variant has
    weights of its own, ``stages.i.j.<variant>``. A block without SE or without a projection leaves
    its slot's unused.

    Args:
        space: Config of the :class:`SearchSpace`, or the space.
        sides: Sides of the channel coupling that there are weights for, ``left``, ``right`` or
            both. One side needs about half of the weights; checkpoints of other sides do not fit.
        kernels: ``shared``: a small kernel is the centre of the large one; ``separate``: every
            kernel size has a whole block of its own (the paper's).
        **settings: As for :class:`ArchNet`: ``out_indices``, ``out_strides``, ``neck`` (a subnet
            uses the part of its weights that fits its widths), ``frozen_stages``, ``norm_eval``,
            ``norm_cfg`` (``dict(type='SyncBN')`` computes the statistics of a step over all
            processes, GPUs only; extracted networks have plain BN), ``channels_last``,
            ``init_cfg``, ``with_cp`` and ``zero_init_residual``.

    By default gradients flow to the whole parameters, as in any module. Inside :meth:`slices`
    every used part of a parameter is a leaf of its own, a view of the parameter's memory: forward
    and backward pass then cost what the subnet alone costs, and the optimizer steps what they
    used and nothing else (:func:`mmscale.models.step_slices`).

    Example:
        >>> from mmscale.models import SuperNet, step_slices
        >>> def train_step(net: SuperNet, images, optimizer):
        ...     with net.slices():
        ...         loss = net(images)[-1].square().mean()
        ...     loss.backward()
        ...     with step_slices(optimizer, net):
        ...         optimizer.step()
        ...     net.forget_slices()

    Raises:
        ValueError: A setting is unknown or not allowed.
    """

    def __init__(
        self,
        space: dict | SearchSpace,
        kernels: str = 'shared',
        sides: Sequence[str] = SIDES,
        **settings: Any,
    ) -> None:
        choice('kernels', kernels, KERNEL_SHARING)
        check_keys('SuperNet', settings, _SETTINGS)
        space = space if isinstance(space, SearchSpace) else SearchSpace.from_config(space)
        self.sides = checked_sides(sides)
        has_both = len(self.sides) == 2
        slots = space.slots(has_both)
        super().__init__(
            space.allocation if has_both else space.widest,
            make_block=_slot_maker(slots, separate=kernels == 'separate'),
            **settings,
        )
        self.space = space
        self.kernels = kernels
        self._slots = slots
        self.set_arch(space.largest(), self.sides[0])

    def _check(self, arch: Arch, side: str) -> None:
        """Raises ValueError if the Arch is no subnet of this super-supernet."""
        choice('side', side, self.sides)
        whole = self.arch
        problem = None
        if len(arch.stages) != len(whole.stages):
            problem = f'{len(arch.stages)} network stages, the space has {len(whole.stages)}'
        elif not self._fits_head(arch.head):
            problem = f'head {arch.head}, the space has {whole.head}'
        elif replace(arch.stem, out_channels=whole.stem.out_channels) != whole.stem:
            problem = f'stem {arch.stem}, the space has {whole.stem}'
        elif arch.stem.out_channels > whole.stem.out_channels:
            problem = f'stem wider than {whole.stem.out_channels}'
        else:
            for i, (stage, slots) in enumerate(zip(arch.stages, self._slots, strict=True)):
                if len(stage) > len(slots):
                    problem = f'{len(stage)} blocks in network stage {i}, of {len(slots)} slots'
                    break
                for j, block in enumerate(stage):
                    slot = slots[j].get(variant_of(block, slots[j]))
                    if slot is None or not slot.admits(block):
                        problem = f'block {j} of network stage {i}: {block}'
                        break
        if problem is not None:
            raise UsageError(f'arch {arch.digest[:10]} is not in this search space: {problem}')

    def _fits_head(self, head: Head) -> bool:
        """Whether a head differs from the whole one in smaller widths alone that are choices."""
        for key in ('channels', 'hidden_channels'):
            width, allocated = getattr(head, key), getattr(self.arch.head, key)
            is_choice = len(self.space.ends.choices[f'head_{key}']) > 1
            if not (0 < width <= allocated if is_choice else width == allocated):
                return False
        widths = dict(channels=head.channels, hidden_channels=head.hidden_channels)
        return replace(self.arch.head, **widths) == head

    def _make_layer(self, kind: str, part: Hashable) -> nn.Module:
        if kind == 'stem':
            return self._make_stem(part)
        if kind == 'stages':
            return ArchBlock(part, self.norm_cfg)
        if kind == 'conv_head':
            return self._make_conv_head(*part)
        if kind == 'neck':
            return self._make_neck(part)
        return _Methods(self._build_head(*part))

    def _templated_block(self, block: Block, *_: object) -> nn.Module:
        """A block without weights, for a network that is extracted."""
        return unshared(self._template('stages', block))

    def _block_name(self, stage: int, slot: int, block: Block) -> str:
        name = f'stages.{stage}.{slot}'
        variants = self._slots[stage][slot]
        if len(variants) > 1:
            name = f'{name}.{variant_of(block, variants)}'
        return name if self.kernels == 'shared' else f'{name}.kernel{block.kernel}'

    def set_arch(self, arch: Arch, side: str = 'left') -> None:
        """Chooses the subnet that :meth:`forward` runs.

        Raises:
            ValueError: The Arch is not in the space, or the side is unknown.
        """
        self._check(arch, side)
        self._active = arch, side

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Runs the active subnet on images (N, channels, H, W)."""
        arch, side = self._active
        if torch.jit.is_tracing():
            # A trace, as of MMEngine's analysis of cost, takes no layers but a module's own.
            return self.extract(arch, side).train(self.training)(x)
        needed: list[Needed] = [('stem', arch.stem)]
        last = self.out_indices[-1]
        names = [
            [self._block_name(i, j, block) for j, block in enumerate(stage)]
            for i, stage in enumerate(arch.stages[: last + 1])
        ]
        for stage, of_stage in zip(names, arch.stages):  # noqa: B905 - maps may end before
            needed += zip(stage, of_stage, strict=True)
        if last == len(arch.stages) and self.conv_head is not None:
            needed.append(('conv_head', (arch.widths[-1], arch.head)))
        if self.neck is not None:
            needed.append(('neck', self._channels_of(arch)))
        run = self._runs(needed, side)
        stages = [[run[name] for name in stage] for stage in names]
        return self._run(x, run['stem'], stages, run.get('conv_head'), run.get('neck'))

    # ---------------------------------------------------------------- the head after it

    def head_widths(self, arch: Arch) -> tuple[int | None, int]:
        """What a classifier's head has to fit of an Arch.

        Returns:
            Channels of the last feature map, None where a neck makes it; and the width of the
            hidden linear layer, 0 where there is none.
        """
        channels = None if self.neck is not None else self._channels_of(arch)[-1]
        return channels, arch.head.hidden_channels

    @property
    def head_varies(self) -> bool:
        """Whether the widths that a head has to fit differ between subnets."""
        return self.head_widths(self.space.allocation) != self.head_widths(self.space.widest)

    def share_head(self, head: nn.Module, build: Callable[[int | None, int], nn.Module]) -> None:
        """Lets subnets use parts of the head of the model around this network, too.

        Args:
            head: The head for the widths of :attr:`arch`; the model registers it.
            build: Makes the head for other widths, see :meth:`head_widths`.
        """
        self._followers['classifier'] = _Methods(head)
        self._build_head = build

    def call_head(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Calls a method of the active subnet's part of the head, see :meth:`share_head`."""
        arch, side = self._active
        if torch.jit.is_tracing():
            head = self.extract_head(arch, side)
            return getattr(head.train(self.training), method)(*args, **kwargs)
        needed = 'classifier', self.head_widths(arch)
        return self._runs([needed], side)['classifier'](method, *args, **kwargs)

    def extract_head(self, arch: Arch, side: str = 'left') -> nn.Module:
        """A stand-alone head with its own contiguous copy of a subnet's weights.

        Raises:
            ValueError: The Arch is not in the space, or the side is unknown.
        """
        self._check(arch, side)
        needed = 'classifier', self.head_widths(arch)
        with torch.device('meta'):
            layer = self._make_layer(*needed)
        self._copy_into(layer, 'classifier', side)
        return layer.head

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
        is_plain = self.is_synchronised or torch.jit.is_tracing()  # which takes no copies
        make_block = ArchBlock if is_plain else self._templated_block
        # Without weights at first: drawing some would cost time and random numbers.
        with torch.device('meta'):
            net = ArchNet(
                arch,
                out_indices=self.out_indices,
                neck=self.neck_cfg,
                norm_cfg=norm_cfg,
                channels_last=self.channels_last,
                make_block=make_block,
            )
        names = {
            name: name for name in ('stem', 'conv_head', 'neck') if getattr(net, name) is not None
        }
        for i, stage in enumerate(arch.stages):
            for j, block in enumerate(stage):
                names[f'stages.{i}.{j}'] = self._block_name(i, j, block)
        for name, own_name in names.items():
            self._copy_into(net.get_submodule(name), own_name, side)
        net.is_init = True
        return net
