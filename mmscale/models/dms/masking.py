"""Masks of gates on the layers of a network, without changing the network's own code."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from mmscale.errors import UsageError
from mmscale.models.backbones import SuperNet
from mmscale.models.dms.folding import fed_alone
from mmscale.models.dms.groups import ChannelGroup, ChannelGroups
from mmscale.models.dms.layers import (
    input_channels,
    input_dimension,
    masked_norm,
    output_dimension,
    takes_channels_first,
)
from mmscale.models.dms.topk import DifferentiableTopK, TopKStack


class _Term(NamedTuple):
    """Where a mask acts on a layer.

    Attributes:
        key: Of the group.
        owners: The element of each channel (None where channels are the elements), or the block
            that the layer ends.
        has_others: Whether there are channels that no element owns.
    """

    key: str
    owners: torch.Tensor | int | None
    has_others: bool = False


@dataclass
class _Acting:
    """Masks of a layer's inputs and outputs, and of the channels that a norm layer is of.

    Attributes:
        folded: Whether those of a norm multiply its output, too.
    """

    inputs: list[_Term]
    outputs: list[_Term]
    norm: list[_Term]
    folded: bool


class Masks:
    """The masks of gates, acting on a network's layers.

    A mask multiplies the inputs of the layers that consume its channels, and what the residual
    branches of a block add (DMS, section 3.2). These layers are linear, so that it amounts to the
    same where it is done, and costs least on the smallest: on what the layer maps; on its weight,
    for which a masked copy stands in while the layer runs; or on the weight of the layer norm
    that feeds it, and nothing else. Layer norms take their statistics over the channels that the
    mask keeps, so that masks of 0 and 1 give what a pruned network gives.

    One mask per group is computed for each forward pass of the network. Those that took part in
    one with gradients are kept until :meth:`collect`.

    ``torch.compile`` leaves the masks out: what lies between masked layers is compiled.

    Layers are known by their names: where a wrapper puts another in the place of one (as
    ``convert_sync_batchnorm`` does), the masks act on it from the next pass on. Copies, pickled
    ones too, have masks of their own.

    Args:
        model: The network; it gets hooks.
        groups: What can go.
        gates: Gates by the groups' ``key``; groups without a gate stay whole.
        inputs: Positional arguments of a forward pass that shows what norm layers feed; without
            them none of these masks for others.

    Attributes:
        hard: Whether masks are 0 and 1, as an export at this moment would have them.
        stack: All gates, in their order.
        packed: Soft masks of all gates of the last pass, one after the other, in the order of
            the gates; their gradient is none of the network's masks.

    Raises:
        ValueError: A gate is of no group, or of another size than its group; the model is or
            has a SuperNet, whose layers do not run themselves; or a layer has no weight of its
            own. The latter in a forward pass, too, if a wrapper has taken it.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: ChannelGroups,
        gates: Mapping[str, DifferentiableTopK],
        inputs: Sequence[torch.Tensor] | None = None,
    ) -> None:
        sizes = {group.key: group.size for group in groups.all}
        for key, gate in gates.items():
            if sizes.get(key) != gate.n:
                raise UsageError(f'gate {key}: n={gate.n}, but its group has {sizes.get(key)}')
        if any(isinstance(module, SuperNet) for module in model.modules()):
            raise UsageError('a SuperNet cannot be masked: make an ArchNet of it (static_model)')
        self.hard = False
        self.packed: torch.Tensor | None = None
        self._gates = gates
        self.stack = TopKStack(gates.values())
        self._masks: dict[str, torch.Tensor] = {}
        self._blocks: dict[str, tuple[torch.Tensor, ...]] = {}
        self._recorded: dict[str, list[torch.Tensor]] = defaultdict(list)
        consumers: dict[str, list[_Term]] = defaultdict(list)
        outputs: dict[str, list[_Term]] = defaultdict(list)
        norms: dict[str, list[_Term]] = defaultdict(list)
        layers = dict(model.named_modules())
        for group, member in groups.members:
            if group.key not in gates:
                continue
            targets = {'in': consumers, 'norm': norms}.get(member.role)
            if member.masks_output:
                targets = outputs
            if targets is None:
                continue
            layer = layers[member.module]
            dimension = input_dimension if member.role == 'in' else output_dimension
            owners = _owners(member.indices, dimension(layer)[1], group.size)
            has_others = owners is not None and bool((owners == group.size).any())
            targets[member.module].append(_Term(group.key, owners, has_others))
        depths = [depth for depth in groups.depths if depth.key in gates]
        self._depths = [depth.key for depth in depths]
        for depth in depths:
            for position, ends in enumerate(depth.branch_ends):
                for end in ends:
                    output_dimension(layers[end])
                    outputs[end].append(_Term(depth.key, position))
        folded = set()
        if inputs is not None and norms:
            for name, fed in fed_alone(model, inputs, norms, consumers).items():
                if all(_are_same(consumers[consumer], norms[name]) for consumer in fed):
                    folded.add(name)
                    for consumer in fed:
                        del consumers[consumer]
        self._acting = {
            name: _Acting(
                consumers.get(name, []), outputs.get(name, []), norms.get(name, []), name in folded
            )
            for name in {**consumers, **outputs, **norms}
        }
        self._layers: dict[str, nn.Module] = {}
        self._handles: dict[str, list[RemovableHandle]] = {}
        self._start = model.register_forward_pre_hook(self._begin)
        for name in self._acting:
            self._attach(name, layers[name])

    def _attach(self, name: str, layer: nn.Module) -> None:
        """Has masks act on a layer."""
        acting = self._acting[name]
        self._layers[name] = layer
        self._handles[name] = []
        if acting.inputs or acting.outputs:
            _weight_of(layer, name)
            self._handles[name] = [
                layer.register_forward_pre_hook(partial(self._scale, name)),
                layer.register_forward_hook(_restore, always_call=True),
            ]
        if acting.norm:
            # Hooks run beside a layer's own forward pass; that of a norm would be for nothing.
            channels_first = takes_channels_first(layer)
            layer.__dict__['forward'] = partial(self._norm, name, layer, channels_first)

    def _detach(self, name: str) -> None:
        """Takes the masks off a layer."""
        for handle in self._handles.pop(name):
            handle.remove()
        if self._acting[name].norm:
            self._layers[name].__dict__.pop('forward', None)

    def _follow(self, model: nn.Module) -> None:
        """Moves masks to layers that have taken the place of others."""
        replaced = {
            name: layer for name, layer in self._layers.items() if _at(model, name) is not layer
        }
        if not replaced:
            return
        present = set(model.modules())  # under another name, where something wraps them
        for name, layer in replaced.items():
            if layer in present:
                continue
            self._detach(name)
            successor = _at(model, name)
            if successor is None:
                raise UsageError(
                    f'{name} is masked, but {type(model).__name__} has no such layer any more'
                )
            self._attach(name, successor)

    def __getstate__(self) -> dict[str, Any]:
        # Masks of a pass belong to its graph, which copies do not share.
        of_a_pass = {'packed': None, '_masks': {}, '_blocks': {}}
        of_a_pass['_recorded'] = defaultdict(list)
        return {**self.__dict__, **of_a_pass}

    def collect(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Mask and gradient by key, of all backward passes since the last call.

        Gradients are the sums over these passes, as those of weights are, and carry the loss
        scale of AMP.
        """
        found = {}
        for key, masks in self._recorded.items():
            gradients = [mask.grad for mask in masks if mask.grad is not None]
            if gradients:
                found[key] = masks[-1].detach(), sum(gradients[1:], gradients[0])
        self._recorded.clear()
        return found

    def forget(self) -> None:
        """Forgets the masks of the pass before, for callers of parts of the network."""
        self.packed = None
        self._masks = {}
        self._blocks = {}

    def remove(self) -> None:
        """Takes the hooks off the network."""
        for name in list(self._layers):
            self._detach(name)
        self._layers.clear()
        self._start.remove()
        self.forget()

    @torch.compiler.disable
    def _begin(self, model: nn.Module, *_: Any) -> None:
        self._follow(model)
        self.forget()
        # All of them at once: layers that are run again in the backward pass (activation
        # checkpoints) have to find them as they were.
        self._make_masks()

    def _make_masks(self) -> None:
        if self.hard or not self._gates:
            self._masks = {k: g.keep_mask().to(g.importance) for k, g in self._gates.items()}
        else:
            self._make_soft_masks()
        self._blocks = {key: self._masks[key].split(1) for key in self._depths}

    def _make_soft_masks(self) -> None:
        self.packed = self.stack()
        parts = self.packed.split(self.stack.sizes)
        self._masks = dict(zip(self._gates, parts, strict=True))
        if self.packed.requires_grad:
            for key, mask in self._masks.items():
                mask.retain_grad()
                self._recorded[key].append(mask)

    def _mask(self, key: str) -> torch.Tensor:
        if key not in self._masks:
            self._make_masks()
        return self._masks[key]

    def _channels(self, terms: list[_Term], like: torch.Tensor) -> torch.Tensor:
        """Product of masks for each channel; one number where only blocks are masked."""
        product = None
        for number, (key, owners, has_others) in enumerate(terms):
            mask = self._mask(key)
            if isinstance(owners, int):
                mask = self._blocks[key][owners]
            elif owners is not None:
                if owners.device != like.device:
                    owners = owners.to(like.device)
                    terms[number] = _Term(key, owners, has_others)
                if has_others:
                    mask = torch.cat([mask, mask.new_ones(1)])
                mask = mask.index_select(0, owners)
            product = mask if product is None else product * mask
        return product.to(like.dtype)

    @torch.compiler.disable
    def _scale(self, name: str, layer: nn.Module, args: tuple) -> tuple | None:
        weight = _weight_of(layer, name)
        acting = self._acting[name]
        inner = self._channels(acting.inputs, weight) if acting.inputs else None
        outer = self._channels(acting.outputs, weight) if acting.outputs else None
        if outer is not None:
            if layer._parameters.get('bias') is not None:
                layer.__dict__['bias'] = layer._parameters['bias'] * outer
            if inner is not None and outer.numel() == 1:
                inner, outer = inner * outer, None  # of a block: one pass is enough
        if inner is not None and _is_cheaper_on(args, weight):
            x, *others = args
            shape = [1] * x.dim()
            shape[input_channels(layer)] = -1
            args = (x * inner.view(shape), *others)
            inner = None
        if inner is not None or outer is not None:
            # Found before the parameter of the same name, which stays what it is.
            layer.__dict__['weight'] = _masked(layer, weight, outer, inner)
        return args

    @torch.compiler.disable
    def _norm(
        self,
        name: str,
        layer: nn.Module,
        channels_first: bool,
        x: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        acting = self._acting[name]
        mask = self._channels(acting.norm, x)
        kwargs |= {'masks_output': acting.folded, 'channels_first': channels_first}
        return masked_norm(layer, x, mask, *args, **kwargs)


def remove_masks(model: nn.Module) -> None:
    """Takes the masks off a network that has some."""
    for hook in list(model._forward_pre_hooks.values()):
        masks = getattr(hook, '__self__', None)
        if isinstance(masks, Masks):
            masks.remove()


def _at(model: nn.Module, name: str) -> nn.Module | None:
    """The module of that dotted name, if there is one."""
    for part in name.split('.') if name else ():
        if model is None:
            break
        model = model._modules.get(part)
    return model


def _weight_of(layer: nn.Module, name: str) -> nn.Parameter:
    """The weight of a layer that masks act on."""
    weight = layer._parameters.get('weight')
    if weight is None:
        raise UsageError(
            f'{name} cannot be masked: its weight is no parameter of its own, as under FSDP and '
            'parametrizations'
        )
    return weight


def _is_cheaper_on(args: tuple, weight: torch.Tensor) -> bool:
    """Whether what a layer maps is smaller than its weight, and as precise."""
    return len(args) > 0 and args[0].numel() < weight.numel() and args[0].dtype == weight.dtype


def _masked(
    layer: nn.Module,
    weight: torch.Tensor,
    outer: torch.Tensor | None,
    inner: torch.Tensor | None,
) -> torch.Tensor:
    """The weight of a layer times masks of its output and input channels."""
    if inner is not None:
        dimension, _size, parts = input_dimension(layer)
        shape = [1] * weight.dim()
        shape[dimension] = -1
        if parts == 1:
            weight = weight * inner.view(shape)
        else:  # row blocks of a grouped convolution see their own part of the inputs
            rows = weight.unflatten(0, (parts, -1))
            weight = (rows * inner.view(parts, *shape)).view(weight.shape)
    if outer is not None:
        shape = [1] * weight.dim()
        shape[output_dimension(layer)[0]] = -1
        weight = weight * outer.view(shape)
    return weight


@torch.compiler.disable
def _restore(layer: nn.Module, *_: Any) -> None:
    layer.__dict__.pop('weight', None)
    layer.__dict__.pop('bias', None)


def _owners(indices: np.ndarray, channels: int, size: int) -> torch.Tensor | None:
    """The element that owns each channel; `size` for channels that none owns.

    None where the channels are the elements.
    """
    owners = np.full(channels, size)
    owners[indices] = np.arange(size)[:, None]
    return None if np.array_equal(owners, np.arange(size)) else torch.from_numpy(owners)


def _are_same(terms: list[_Term], others: list[_Term]) -> bool:
    """Whether they mask the same channels."""
    if [term.key for term in terms] != [other.key for other in others]:
        return False
    pairs = zip((term.owners for term in terms), (one.owners for one in others), strict=True)
    return all(
        own is other or (None not in (own, other) and torch.equal(own, other))
        for own, other in pairs
    )


def weight_importance(model: nn.Module, group: ChannelGroup) -> torch.Tensor:
    """L1 norm of the weights that make each element of a group, shape (size,)."""
    total = torch.zeros(group.size)
    layers = dict(model.named_modules())
    for member in group.members:
        if member.role == 'out' and member.module in layers:
            layer = layers[member.module]
            # Outputs first, then everything that makes one.
            weight = layer.weight.detach().movedim(output_dimension(layer)[0], 0)
            norms = weight.flatten(1).abs().sum(dim=1).cpu()
            total += norms[torch.from_numpy(member.indices.copy())].sum(dim=1)
    return total
