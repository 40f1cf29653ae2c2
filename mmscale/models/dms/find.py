"""Channel groups of any model: declared where they can be, traced where they cannot."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from mmpretrain.models import GlobalAveragePooling, LinearClsHead, VisionTransformerClsHead
from torch import nn

from mmscale.models.backbones import ArchNet, SuperNet
from mmscale.models.dms.arch_groups import arch_groups
from mmscale.models.dms.groups import ChannelGroups
from mmscale.models.dms.traced import traced_groups
from mmscale.models.dms.transformers import GROUPERS, Consumers, full_name

Grouper = Callable[[nn.Module, str, Consumers], ChannelGroups]


def declare_groups(network: type[nn.Module], grouper: Grouper) -> None:
    """Declares what networks of a class can lose, for those that tracing does not understand.

    Args:
        network: The class; those that inherit from it are meant too.
        grouper: Makes the groups from a model, the prefix of the network's names in the model
            (as ``backbone.``, empty for the network alone), and the names of the layers that use
            its output: empty if these are unknown, so that the output has to keep its width, and
            None if there is nothing behind the network.
    """
    GROUPERS[full_name(network)] = grouper


def channel_groups(model: nn.Module, inputs: Sequence[torch.Tensor]) -> ChannelGroups:
    """What of a model can go: channels, heads and so on, and residual blocks.

    Networks that declare their groups are ArchNet, SuperNet (those of :func:`static_model`), those
    of :mod:`mmscale.models.dms.transformers` and those of :func:`declare_groups`. All others are
    traced with Torch-Pruning's dependency graph.

    Args:
        model: The model; it is left as it is.
        inputs: Positional arguments of one forward pass.

    Raises:
        ValueError: The model cannot be traced.
    """
    for name, module in model.named_modules():
        consumers = _consumers(model, name)
        prefix = f'{name}.' if name else ''
        if isinstance(module, ArchNet):
            behind = None
            if name or module.neck is not None:
                behind = {index: () for index in module.out_indices}
                if module.neck is None:
                    behind[module.out_indices[-1]] = consumers or ()
                owner, start = (model, '') if module.neck is None else (module, prefix)
                behind |= _lateral_convolutions(owner, start, module.out_indices)
            arch = module.space.largest() if isinstance(module, SuperNet) else module.arch
            return arch_groups(arch, behind, prefix)
        for base in type(module).__mro__:
            if full_name(base) in GROUPERS:
                return GROUPERS[full_name(base)](model, prefix, consumers)
    return traced_groups(model, inputs)


def static_model(model: nn.Module) -> nn.Module:
    """The model with its SuperNet, if it has one, replaced by its largest subnet: an ArchNet."""
    for name, module in model.named_modules():
        if isinstance(module, SuperNet):
            largest = module.extract(module.space.largest()).train(module.training)
            if not name:
                return largest
            model.set_submodule(name, largest)
            break
    return model


def _consumers(model: nn.Module, name: str) -> Consumers:
    """Layers behind a network of that name, see `declare_groups`."""
    if not name:
        return None
    head, neck = getattr(model, 'head', None), getattr(model, 'neck', None)
    if name == 'backbone' and (neck is None or isinstance(neck, GlobalAveragePooling)):
        if type(head) is LinearClsHead:
            return ('head.fc',)
        if isinstance(head, VisionTransformerClsHead):
            if hasattr(head.layers, 'pre_logits'):
                return ('head.layers.pre_logits',)
            layers = ('head.layers.head', 'head.layers.head_dist')
            return tuple(
                layer
                for layer in layers
                if layer.split('.')[-1] in dict(head.layers.named_children())
            )
    return ()


def _lateral_convolutions(
    owner: nn.Module, prefix: str, indices: Sequence[int]
) -> dict[int, tuple[str, ...]]:
    """The layers of a feature pyramid that use the feature maps of these indices.

    Args:
        owner: Has the pyramid as its neck: the model, or the backbone.
        prefix: Of the owner's names in the model.
        indices: The backbone's ``out_indices``.
    """
    neck = getattr(owner, 'neck', None)
    start = getattr(neck, 'start_level', 0)
    laterals = getattr(neck, 'lateral_convs', ())
    if getattr(neck, 'add_extra_convs', False) == 'on_input':
        return {}
    return {
        index: (f'{prefix}neck.lateral_convs.{position - start}.conv',)
        for position, index in enumerate(indices)
        if 0 <= position - start < len(laterals)
    }
