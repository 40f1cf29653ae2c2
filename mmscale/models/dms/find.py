"""Channel groups of any model: declared where they can be, traced where they cannot."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from mmpretrain.models import (
    BaseClassifier,
    GlobalAveragePooling,
    LinearClsHead,
    VisionTransformerClsHead,
)
from torch import nn

from mmscale.errors import FOREIGN_ERRORS, UsageError, one_line
from mmscale.models.backbones import ArchNet, SuperNet
from mmscale.models.dms.arch_groups import arch_groups
from mmscale.models.dms.groups import ChannelGroups, Member, runs
from mmscale.models.dms.layers import replace_submodule
from mmscale.models.dms.masking import unmasked
from mmscale.models.dms.traced import traced_groups
from mmscale.models.dms.transformers import GROUPERS, Consumers, full_name
from mmscale.models.dms.trial import tried_groups
from mmscale.models.heads import DropoutClsHead
from mmscale.models.super_net_classifier import SuperNetClassifier

Grouper = Callable[[nn.Module, str, Consumers], ChannelGroups]


def declare_groups(network: type[nn.Module], grouper: Grouper) -> None:
    """Declares what networks of a class can lose, for those that tracing does not understand.

    Args:
        network: The class; those that inherit from it are meant too.
        grouper: Makes the groups from a model, the prefix of the network's names in the model
            (as ``backbone.``, empty for the network alone), and the names of the layers that use
            its output: empty if these are unknown, so that the output has to keep its width, and
            None if there is nothing after the network.
    """
    GROUPERS[full_name(network)] = grouper


def check_module(model: object, inputs: object) -> None:
    """Refuses what is no module, or no positional arguments of one.

    Raises:
        UsageError: It is.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f'model={model!r:.60} must be an nn.Module; mmscale.build makes one')
    if isinstance(inputs, torch.Tensor) or not isinstance(inputs, Sequence):
        raise UsageError(
            f'inputs must be a list of the arguments of one forward pass, not a '
            f'{type(inputs).__name__}: [images], say'
        )


def channel_groups(model: nn.Module, inputs: Sequence[torch.Tensor]) -> ChannelGroups:
    """What of a model can go: channels, heads and so on, and residual blocks.

    Networks that declare their groups are ArchNet, SuperNet (those of :func:`static_model`), those
    of :mod:`mmscale.models.dms.transformers` and those of :func:`declare_groups`. All others are
    traced: channels are followed through one forward pass. So is what lies after an ArchNet: its
    neck, and a detector's neck and head.

    Args:
        model: The model; it is left as it is, but that attention of a few kinds (TinyViT, BEiT,
            Swin V2) gets a class that computes the same, and can be pruned.
        inputs: Positional arguments of one forward pass.

    Raises:
        UsageError: The model cannot be traced.

    Example:
        >>> import torchvision
        >>> network = torchvision.models.resnet18()
        >>> groups = channel_groups(network, (torch.zeros(1, 3, 64, 64),))
        >>> len(groups), groups.elements
        (12, 2880)
    """
    check_module(model, inputs)
    # A block whose mask is shut would be the identity whatever its layers give.
    model = unmasked(model)
    for name, module in model.named_modules():
        prefix = f'{name}.' if name else ''
        if isinstance(module, SuperNet):
            return channel_groups(static_model(copy.deepcopy(model)), inputs)
        if isinstance(module, ArchNet):
            if is_described_by_arch(model, module):
                return arch_groups(module.arch, _classifier_inputs(model, name), prefix)
            return _traced_after(model, name, module, inputs)
        for base in type(module).__mro__:
            if full_name(base) in GROUPERS:
                try:
                    return _declared_groups(model, name, base, inputs)
                except FOREIGN_ERRORS as error:
                    warnings.warn(
                        f'{type(module).__name__} has not the form that is declared of '
                        f'{base.__name__} ({one_line(error):.200}), so it is traced',
                        stacklevel=2,
                    )
    return traced_groups(model, inputs)


def _declared_groups(
    model: nn.Module, name: str, base: type[nn.Module], inputs: Sequence[torch.Tensor]
) -> ChannelGroups:
    """Groups as declared of a class for a network of that name, which may be a relative of it."""
    grouper, prefix = GROUPERS[full_name(base)], f'{name}.' if name else ''
    consumers = _consumers(model, name)
    groups = grouper(model, prefix, consumers)
    # Language models are large, and take long to try.
    if type(model.get_submodule(name)) is base and not inputs[0].is_floating_point():
        return groups
    # What leaves the model gets narrower, which no trial takes for the same.
    inside = grouper(model, prefix, ()) if consumers is None else groups
    sound = tried_groups(model, inside, inputs)
    lost = inside.by_name.keys() - sound.by_name.keys()
    return ChannelGroups(
        tuple(group for group in groups.widths if group.name not in lost),
        tuple(group for group in groups.depths if group.name not in lost),
    )


def is_described_by_arch(model: nn.Module, net: ArchNet) -> bool:
    """Whether an Arch can say all that goes of the model around an ArchNet.

    So it is of the network alone and of a classifier, whose head keeps its hidden width; not of
    a network with a neck, and not of a detector.
    """
    return net.neck is None and (model is net or isinstance(model, BaseClassifier))


class _FeatureMaps(nn.Module):
    """Stands for an ArchNet: one convolution makes each feature map, and the neck is its own.

    Args:
        net: The network.
    """

    def __init__(self, net: ArchNet) -> None:
        super().__init__()
        strides = (*net.arch.strides, net.arch.strides[-1])
        images = net.arch.stem.in_channels
        self.maps = nn.ModuleList(
            nn.Conv2d(images, width, 1, strides[index])
            for index, width in zip(net.out_indices, net.out_channels, strict=True)
        )
        self.neck = net.neck

    def forward(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        maps = tuple(conv(x) for conv in self.maps)
        return maps if self.neck is None else self.neck(maps)


def _traced_after(
    model: nn.Module, name: str, net: ArchNet, inputs: Sequence[torch.Tensor]
) -> ChannelGroups:
    """Groups of an ArchNet as its Arch has them, and those found by tracing what is after it."""
    twin = copy.deepcopy(model)
    feature_maps = _FeatureMaps(twin.get_submodule(name))
    if name:
        replace_submodule(twin, name, feature_maps)
    else:
        twin = feature_maps
    found = traced_groups(twin, inputs)
    prefix = f'{name}.' if name else ''
    makers = {f'{prefix}maps.{i}': index for i, index in enumerate(net.out_indices)}
    # What tracing did not find leaves the model, or is used by a layer that has to stay.
    consumers: dict[int, list[Member]] = {index: [] for index in net.out_indices}
    others = []
    for group in found.widths:
        made = [member for member in group.members if member.module in makers]
        if not made:
            others.append(group)
        # Maps that are added to each other, or whose channels go by the dozen, stay.
        elif len(made) == 1 and made[0].indices.shape[1] == 1:
            order = made[0].indices[:, 0].argsort()
            consumers[makers[made[0].module]] = [
                replace(member, indices=member.indices[order])
                for member in group.members
                if member is not made[0]
            ]
    own = arch_groups(net.arch, consumers, prefix)
    return ChannelGroups((*own.widths, *others), (*own.depths, *found.depths))


def static_model(model: nn.Module) -> nn.Module:
    """The model with its SuperNet, if it has one, replaced by its largest subnet: an ArchNet."""
    for name, module in model.named_modules():
        # A classifier whose head is shared too is replaced as a whole.
        is_shared = isinstance(module, SuperNetClassifier) and module.shares_head
        if isinstance(module, SuperNet) or is_shared:
            net = module.backbone if is_shared else module
            largest = module.extract(net.space.largest(), net.sides[0]).train(module.training)
            if not name:
                return largest
            replace_submodule(model, name, largest)
            break
    return model


def _consumers(model: nn.Module, name: str) -> Consumers:
    """Layers after a network of that name, see `declare_groups`."""
    if not name:
        return None
    head, neck = getattr(model, 'head', None), getattr(model, 'neck', None)
    if name == 'backbone' and (neck is None or isinstance(neck, GlobalAveragePooling)):
        if type(head) in (LinearClsHead, DropoutClsHead):
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


def _classifier_inputs(model: nn.Module, name: str) -> dict[int, list[Member]] | None:
    """What uses the feature maps of a classifier's ArchNet; None if there is nothing after it."""
    consumers = _consumers(model, name)
    if consumers is None:
        return None
    net = model.get_submodule(name)
    inputs: dict[int, list[Member]] = {index: [] for index in net.out_indices}
    channels = runs(net.out_channels[-1])
    inputs[net.out_indices[-1]] = [Member(layer, 'in', channels) for layer in consumers]
    return inputs
