"""SuperNet: the weight-sharing network that contains every Arch of a search space."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from mmengine.logging import print_log
from torch import nn
from torch.func import functional_call

from mmscale.arch import Arch, Block, Head, SearchSpace, Stem
from mmscale.arch.checks import check_keys, choice
from mmscale.arch.sampling import SIDES, checked_sides
from mmscale.config_parts import type_name
from mmscale.errors import UsageError
from mmscale.models.backbones.arch_net import ArchNet, Layer
from mmscale.models.backbones.blocks import ArchBlock, checkpointed
from mmscale.models.backbones.slices import (
    Region,
    SubnetLayer,
    WeightSlice,
    index_of,
    set_tensor,
    slice_region,
    unshared,
)
from mmscale.registry import MODELS

KERNEL_SHARING = ('shared', 'separate')
# What of an ArchNet's settings a SuperNet has too.
_SETTINGS = (
    *('out_indices', 'out_strides', 'neck', 'frozen_stages', 'norm_eval', 'norm_cfg'),
    *('channels_last', 'init_cfg', 'with_cp'),
)

# Layers of subnets that are kept; a space of the paper's size has fewer.
_MOST_LAYERS = 20_000

# What a layer is made from: the head's convolution from its input's width too, a neck from the
# channels of the feature maps.
Part = Stem | Block | tuple[int, Head] | tuple[int, ...]


def _tensors_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


@lru_cache(maxsize=4096)
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
    slots = zip(space.stages, space.widest.stages, strict=True)
    choices = iter([stage.kernels for stage, blocks in slots for _ in blocks])

    def make_block(block: Block, norm_cfg: dict, _: float) -> nn.ModuleDict:
        return nn.ModuleDict(
            {f'kernel{k}': ArchBlock(replace(block, kernel=k), norm_cfg) for k in next(choices)}
        )

    return make_block


@MODELS.register_module()
class SuperNet(ArchNet):
    """Holds one set of weights for all Archs of a space; a forward pass uses one subnet of them.

    The weights are those of an ArchNet of the space's :attr:`~SearchSpace.allocation`, or with one
    side of :attr:`~SearchSpace.widest`. The subnet is a function of (Arch, side) alone:
    :func:`slice_region` says which part of every tensor it uses, and the forward pass runs the
    very layers of the Arch's own ArchNet on those parts, so that the super-supernet and an
    extracted subnet cannot differ. Network stage i, block j of an Arch always uses the weights of
    slot (i, j).

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
            ``init_cfg`` and ``with_cp``.

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
        space = space if isinstance(space, SearchSpace) else SearchSpace(**space)
        make_block = ArchBlock if kernels == 'shared' else _separate_kernels(space)
        self.sides = checked_sides(sides)
        whole = space.allocation if len(self.sides) == 2 else space.widest
        super().__init__(whole, make_block=make_block, **settings)
        self.space = space
        self.kernels = kernels
        self._templates: dict[Part, nn.Module] = {}
        self._layers: dict[tuple[str, Part, str], SubnetLayer] = {}
        self._slices: dict[tuple[str, Region], WeightSlice] = {}
        # In the order of their first use; keys alone matter.
        self._used: dict[SubnetLayer, None] = {}
        self._has_leaves = False
        self._own_parameters: set[nn.Parameter] = set()
        self.set_arch(space.largest(), self.sides[0])

    def _check(self, arch: Arch, side: str) -> None:
        """Raises ValueError if the Arch is no subnet of this super-supernet."""
        choice('side', side, self.sides)
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
            # Kept for forward passes that train, wherever it was needed first.
            with torch.inference_mode(False), torch.device('meta'):
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

    def _templated_block(self, block: Block, *_: object) -> nn.Module:
        """A block without weights, for a network that is extracted."""
        return unshared(self._template(block))

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

    def _regions(
        self, name: str, template: nn.Module, side: str
    ) -> Iterator[tuple[str, torch.Tensor, Region | None]]:
        """Name in the template, the whole tensor and the used part, of a layer's every tensor.

        There is no region where the whole is used.
        """
        allocated = _tensors_of(self.get_submodule(name))
        for key, wanted in _tensors_of(template).items():
            tensor = allocated[key]
            if tensor.shape == wanted.shape:
                yield key, tensor, None
            else:
                yield key, tensor, slice_region(tensor.shape, wanted.shape, side)

    def _slice(self, name: str, parameter: nn.Parameter, region: Region | None) -> WeightSlice:
        """The one slice of a region of a parameter."""
        region = tuple((0, size) for size in parameter.shape) if region is None else region
        if (name, region) not in self._slices:
            self._slices[name, region] = WeightSlice.of(name, parameter, region)
        return self._slices[name, region]

    def _build_layer(self, name: str, needed: Part, side: str) -> SubnetLayer:
        template = self._template(needed)
        # A neck of any kind may know its layers by other ways than as submodules.
        module = copy.deepcopy(template) if name == 'neck' else unshared(template)
        own = self.get_submodule(name)
        slices = {}
        for key, tensor, region in self._regions(name, module, side):
            if isinstance(tensor, nn.Parameter):
                slices[key] = self._slice(f'{name}.{key}', tensor, region)
                part = slices[key].leaf
            else:
                part = tensor if region is None else tensor[index_of(region)]
            set_tensor(module, key, part)
        return SubnetLayer(
            module=module,
            slices=slices,
            owners=list(zip(module.modules(), own.modules(), strict=True)),
            memory=[
                (tensors, key, tensor, tensor.data_ptr())
                for holder in own.modules()
                for tensors in (holder._parameters, holder._buffers)
                for key, tensor in tensors.items()
                if tensor is not None
            ],
            recomputed=isinstance(needed, Block),
        )

    def _layer(self, name: str, part: Part, side: str) -> SubnetLayer:
        """The layer of that name, cut to what a subnet's part needs."""
        key = name, part, side
        if key not in self._layers:
            with torch.inference_mode(False):
                self._layers[key] = self._build_layer(name, part, side)
        return self._layers[key]

    def _functional(self, name: str, part: Part, side: str) -> Layer:
        """The layer of that name, with gradients that flow to whole parameters of any kind."""
        template = self._template(part)
        own = self.get_submodule(name)
        tensors = {
            key: tensor if region is None else tensor[index_of(region)]
            for key, tensor, region in self._regions(name, template, side)
        }

        def run(x: torch.Tensor) -> torch.Tensor:
            # What is frozen, or in eval mode, is so in this network's own modules.
            for module, owner in zip(template.modules(), own.modules(), strict=True):
                module.training = owner.training
            return functional_call(template, tensors, (x,))

        is_block = isinstance(part, Block)
        return checkpointed(run, template, tensors) if is_block and self._recomputes else run

    def _runs(self, parts: list[tuple[str, Part]], side: str) -> dict[str, Layer]:
        """What runs the layers of some names now: on leaves, which it remembers, or on views."""
        if len(self._layers) > _MOST_LAYERS:
            self._clear_caches()
        layers = [self._layer(*part, side) for part in parts]
        if not all(layer.is_current() for layer in layers):
            self._forget_layers()
            layers = [self._layer(*part, side) for part in parts]
        runs: dict[str, Layer] = {}
        for (name, _), layer in zip(parts, layers, strict=True):
            layer.follow_owners()
            runs[name] = layer.module
            if torch.is_grad_enabled():
                self._used[layer] = None
                if layer.recomputed and self._recomputes:
                    buffers = dict(layer.module.named_buffers())
                    runs[name] = checkpointed(layer.module, layer.module, buffers)
        return runs

    @property
    def _has_memory(self) -> bool:
        """Whether tensors have memory to look at; not while torch exports or vectorises."""
        if torch.compiler.is_compiling():
            return False
        try:
            return self.stem.conv.weight.data_ptr() >= 0
        except RuntimeError:
            return False

    def _forget_layers(self) -> None:
        """Forgets views of memory that is replaced."""
        used = [part for parts in self.used_slices.values() for part in parts]
        if any(part.leaf is not part.owner and part.leaf.grad is not None for part in used):
            print_log(
                'the memory of a super-supernet is replaced before gradients are stepped: those '
                'of its slices are lost',
                'current',
                logging.WARNING,
            )
        self._used.clear()
        self._clear_caches()

    def _clear_caches(self) -> None:
        self._layers.clear()
        self._slices.clear()
        self._own_parameters.clear()

    def _apply(self, *args: Any, **kwargs: Any) -> SuperNet:
        # Views would keep what a conversion replaces alive.
        self._forget_layers()
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        # A copy has memory of its own.
        return {
            **self.__dict__,
            '_layers': {},
            '_slices': {},
            '_used': {},
            '_own_parameters': set(),
        }

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Runs the active subnet on images (N, channels, H, W)."""
        arch, side = self._active
        if torch.jit.is_tracing():
            # A trace, as of MMEngine's analysis of cost, takes no layers but a module's own.
            return self.extract(arch, side).train(self.training)(x)
        parts: list[tuple[str, Part]] = [('stem', arch.stem)]
        last = self.out_indices[-1]
        for i, stage in enumerate(arch.stages[: last + 1]):
            parts += [(self._block_name(i, j, block), block) for j, block in enumerate(stage)]
        if last == len(arch.stages) and self.conv_head is not None:
            parts.append(('conv_head', (arch.widths[-1], arch.head)))
        if self.neck is not None:
            parts.append(('neck', self._channels_of(arch)))
        trains_leaves = self._has_leaves and self.training
        if not trains_leaves and (torch.is_grad_enabled() or not self._has_memory):
            run = {name: self._functional(name, part, side) for name, part in parts}
        else:
            run = self._runs(parts, side)
        stages = [
            [run[self._block_name(i, j, block)] for j, block in enumerate(stage)]
            for i, stage in enumerate(arch.stages[: last + 1])
        ]
        return self._run(x, run['stem'], stages, run.get('conv_head'), run.get('neck'))

    @contextmanager
    def slices(self) -> Iterator[None]:
        """Forward passes in training mode use leaves; what they use is remembered."""
        before, self._has_leaves = self._has_leaves, True
        try:
            yield
        finally:
            self._has_leaves = before

    @property
    def used_slices(self) -> dict[str, list[WeightSlice]]:
        """Parameter name to its slices that were used since :meth:`forget_slices`.

        Frozen parameters are not among them.
        """
        found: dict[str, dict[WeightSlice, None]] = {}
        for layer in self._used:
            for part in layer.slices.values():
                if part.leaf.requires_grad:
                    found.setdefault(part.name, {})[part] = None
        return {name: list(parts) for name, parts in found.items()}

    def owns(self, parameter: nn.Parameter) -> bool:
        """Whether a parameter is one of this network's."""
        if not self._own_parameters:
            self._own_parameters.update(self.parameters())
        return parameter in self._own_parameters

    def piece(self, part: WeightSlice, region: Region) -> WeightSlice:
        """The slice of a region of a slice's parameter; both in the parameter's coordinates."""
        return self._slice(part.name, part.owner, region)

    def forget_slices(self) -> None:
        """Clears the gradients of the used slices, and starts a new record of what is used."""
        for layer in self._used:
            for part in layer.slices.values():
                part.leaf.grad = None
        self._used.clear()

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
            layer = net.get_submodule(name)
            for key, tensor, region in self._regions(own_name, layer, side):
                part = tensor.detach() if region is None else tensor.detach()[index_of(region)]
                part = part.clone(memory_format=torch.contiguous_format)
                if isinstance(tensor, nn.Parameter):
                    part = nn.Parameter(part, layer.get_parameter(key).requires_grad)
                set_tensor(layer, key, part)
        net.is_init = True
        return net
