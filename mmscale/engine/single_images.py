"""Batches of one image: BN layers cannot take statistics of it where its maps are 1 x 1."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from mmscale.arch import Arch, SearchSpace
from mmscale.errors import one_line

# As torch says it, of BN layers and of no others.
_SAID = 'more than 1 value per channel'


def refusal_of_one(net: nn.Module, channels: int, resolution: int) -> str:
    """What the BN layers of a network say to a batch of one image.

    Args:
        net: It is in training mode afterwards.
        channels: Channels of the image.
        resolution: Its side, in pixels.

    Returns:
        The error; nothing if they take it.
    """
    net.train()
    parameter = next(net.parameters())
    image = torch.zeros(1, channels, resolution, resolution, device=parameter.device)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            net(image)
    except ValueError as error:
        if _SAID in str(error):
            return f'{one_line(error):.100}'
    return ''


def archs_of_smallest_maps(space: SearchSpace) -> list[Arch]:
    """The networks of the fewest and of the most layers, at the smallest input there is."""
    stages = range(len(space.scaling_stages))
    smallest = min((space.smallest(j) for j in stages), key=lambda arch: arch.resolution)
    return [smallest, replace(space.largest(), resolution=smallest.resolution)]
