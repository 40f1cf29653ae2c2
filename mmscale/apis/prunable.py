"""What of a model can go: looked at before a search by gradient, without weights."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmscale.apis.model_cost import samples_of
from mmscale.apis.networks import find_network, quiet_log
from mmscale.arch import Arch
from mmscale.errors import UsageError
from mmscale.quiet import quiet_imports
from mmscale.tables import Printed, make_table, size_text

if TYPE_CHECKING:
    from mmengine.config import Config
    from rich.table import Table
    from torch import nn

    from mmscale.models.dms import ChannelGroups

# Largest side of the images that a detector is traced with, and how many boxes it proposes there:
# what it can lose is the same.
_LARGEST_SIDE = 320
_FEW_BOXES = 8


@dataclass(frozen=True, repr=False)
class Prunable(Printed):
    """What of a model can go; prints its table.

    Attributes:
        name: Of the model.
        shape: Of the images that it was traced with, channels first; or the length of a text.
        groups: What can go.
    """

    name: str
    shape: tuple[int, ...]
    groups: ChannelGroups

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain JSON data."""
        widths = [
            {'name': group.name, 'kind': group.kind, 'size': group.size, 'layers': group.layers}
            for group in self.groups.widths
        ]
        depths = [{'name': group.name, 'blocks': group.blocks} for group in self.groups.depths]
        return {
            'name': self.name,
            'shape': list(self.shape),
            'elements': self.groups.elements,
            'widths': widths,
            'depths': depths,
        }

    def renderables(self) -> list[Table | str]:
        """A row per group."""
        rows = [
            *(
                (group.name, group.kind, group.size, len(group.layers))
                for group in self.groups.widths
            ),
            *((group.name, 'blocks', group.size, None) for group in self.groups.depths),
        ]
        size = size_text(self.shape[-2:])
        title = f'{self.name}: what can go, traced at {size}'
        blocks = sum(group.size for group in self.groups.depths)
        widths = f'{len(self.groups.widths)} widths with {self.groups.elements:,} elements'
        return [
            make_table(title, ('group', 'kind', 'elements', 'layers'), rows),
            f'{widths}, and {blocks} residual blocks can go.',
        ]


def find_prunable(
    source: str | Path | Mapping | Arch | Config | nn.Module, options: Sequence[str] = ()
) -> Prunable:
    """Finds what of a model could go in a search by gradient.

    Args:
        source: See :func:`mmscale.apis.networks.find_network`; of a config whose model is a
            ``mmscale.DMSModel``, what that searches.
        options: Overrides of a config, ``KEY=VALUE`` each.

    Raises:
        UsageError: There is no such network, it cannot be built or traced, or nothing can go.
    """
    with quiet_imports():
        import torch

        from mmscale.models.dms import DMSModel, channel_groups
    with quiet_log(), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        network = find_network(source, options)
        model, shape = network.build(), network.image_shape
        if isinstance(model, DMSModel):
            return Prunable(network.name, tuple(model.example_inputs[0].shape[1:]), model.groups)
        samples = samples_of(model, shape)
        if samples is not None:
            shape = (shape[0], *(min(side, _LARGEST_SIDE) for side in shape[1:]))
            samples = samples_of(model, shape)
            for part in model.modules():
                settings = getattr(part, 'test_cfg', None)
                if isinstance(settings, dict) and 'max_per_img' in settings:
                    settings['max_per_img'] = _FEW_BOXES
            # Tracing knows positional arguments that are tensors.
            model.forward = functools.partial(model.forward, **samples(1))
        model.eval()
        kind = torch.long if len(shape) == 1 else torch.float32
        groups = channel_groups(model, [torch.zeros(1, *shape, dtype=kind)])
    if not (groups.widths or groups.depths):
        raise UsageError(f'{network.name}: nothing of the model can go')
    return Prunable(network.name, tuple(shape), groups)
