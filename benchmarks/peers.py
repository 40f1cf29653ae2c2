#!/usr/bin/env python
"""Steps of weight-sharing networks over those of their own static networks, side by side.

    python benchmarks/peers.py [--ofa CHECKOUT] [--json]

- mmscale: the super-supernet of the paper's space, S0, as super_net_step.py measures it.
- Once-for-All: its super-supernet of MobileNetV3 (``OFAMobileNetV3``, arXiv 1908.09791) over the
  network that its own ``get_active_subnet`` makes. Needs the package ``ofa``, or a checkout of
  github.com/mit-han-lab/once-for-all; where neither is there it is left out, and a line says so.
- masked copies: convolutions and norms that copy what boolean masks choose out of whole weights in
  every forward pass, as those of MMRazor do; written here, on the paper's space with shared
  kernels.

All draw another network every step, of 4, and train on the same images of 224 px in batches of 8.
The peers' optimizers are plain SGD with Nesterov momentum and two parameter groups: they also move
what a step did not use, which mmscale's must not.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from paired import Ratio, arguments, paired, show
from super_net_step import CHANGING, Case, Comparison
from torch import nn
from torch.optim import SGD

from mmscale.arch import HierarchicalSampler, SearchSpace
from mmscale.launch.command_line import set_environment
from mmscale.models import ArchNet

CLASSES = 1000
Step = Callable[[], object]


def mask_of(whole: int, part: int) -> torch.Tensor:
    """Chooses the first of some channels."""
    return torch.arange(whole) < part


class MaskedConv2d(nn.Module):
    """Part of a convolution: the channels that masks choose, and the centre of its kernel.

    Args:
        whole: The convolution.
    """

    def __init__(self, whole: nn.Conv2d) -> None:
        super().__init__()
        self.whole = whole

    def fit(self, part: nn.Conv2d) -> None:
        """Chooses as much as another convolution has."""
        outputs, inputs, kernel = part.weight.shape[:3]
        self._outputs = mask_of(self.whole.out_channels, outputs).to(self.whole.weight.device)
        self._inputs = mask_of(self.whole.weight.shape[1], inputs).to(self.whole.weight.device)
        border = (self.whole.kernel_size[0] - kernel) // 2
        self._centre = slice(border, border + kernel)
        self._groups, self._padding = part.groups, kernel // 2

    def tensors(self) -> dict[str, torch.Tensor]:
        """Copies of what is chosen."""
        weight = self.whole.weight[self._outputs][:, self._inputs]
        found = {'weight': weight[:, :, self._centre, self._centre]}
        if self.whole.bias is not None:
            found['bias'] = self.whole.bias[self._outputs]
        return found

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chosen = self.tensors()
        return F.conv2d(
            x,
            chosen['weight'],
            chosen.get('bias'),
            self.whole.stride,
            self._padding,
            groups=self._groups,
        )


class MaskedBatchNorm2d(nn.Module):
    """Part of a norm layer, of which the statistics are written back.

    Args:
        whole: The norm layer.
    """

    def __init__(self, whole: nn.BatchNorm2d) -> None:
        super().__init__()
        self.whole = whole

    def fit(self, part: nn.BatchNorm2d) -> None:
        """Chooses as many channels as another norm layer has."""
        whole = self.whole
        self._channels = mask_of(whole.num_features, part.num_features).to(whole.weight.device)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Copies of what is chosen."""
        names = ('weight', 'bias', 'running_mean', 'running_var')
        return {name: getattr(self.whole, name)[self._channels] for name in names}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chosen = self.tensors()
        outputs = F.batch_norm(
            x,
            chosen['running_mean'],
            chosen['running_var'],
            chosen['weight'],
            chosen['bias'],
            True,
            self.whole.momentum,
            self.whole.eps,
        )
        self.whole.running_mean.masked_scatter_(self._channels, chosen['running_mean'])
        self.whole.running_var.masked_scatter_(self._channels, chosen['running_var'])
        return outputs


MASKED = {nn.Conv2d: MaskedConv2d, nn.BatchNorm2d: MaskedBatchNorm2d}


def mask_layers(module: nn.Module) -> None:
    """Puts masked layers around the convolutions and norms in a module."""
    for name, child in module.named_children():
        if type(child) in MASKED:
            setattr(module, name, MASKED[type(child)](child))
        else:
            mask_layers(child)


class MaskedNet(nn.Module):
    """The largest network of a space, which runs a smaller one by masks.

    Args:
        space: The search space.
    """

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self.whole = ArchNet(space.largest())
        mask_layers(self.whole)
        self._depths: list[int] = []

    def set_net(self, net: ArchNet) -> None:
        """Chooses what the next forward passes run: as much as a network has."""
        self._depths = [len(stage) for stage in net.stages]
        for masked, part in self._pairs(net):
            masked.fit(part)

    def copy_to(self, net: ArchNet) -> None:
        """Gives a network the weights that were chosen for it."""
        for masked, part in self._pairs(net):
            part.load_state_dict(masked.tensors(), strict=False)

    def _pairs(self, net: ArchNet) -> Iterator[tuple[MaskedConv2d | MaskedBatchNorm2d, nn.Module]]:
        masked = dict(self.whole.named_modules())
        for name, part in net.named_modules():
            if type(part) in MASKED:
                yield masked[name], part

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        x = self.whole.stem(x)
        for stage, depth in zip(self.whole.stages, self._depths, strict=True):
            for block in stage[:depth]:
                x = block(x)
        return (self.whole.conv_head(x),)


class Classifier(nn.Module):
    """A backbone with a linear head.

    Args:
        backbone: Maps images to a tuple of feature maps.
        head: Its linear layer.
    """

    def __init__(self, backbone: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(images)[-1].mean(dim=(2, 3)))


def training_step(net: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Step:
    """A plain training step, which returns the loss."""
    weights = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    groups = [dict(params=weights, weight_decay=8e-5), dict(params=others, weight_decay=0.0)]
    optimizer = SGD(groups, lr=1e-5, momentum=0.9, nesterov=True)

    def step() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def in_turns(
    choices: list[Callable[[], None]],
    shared: Step,
    statics: list[Step],
    rounds: int,
    device: str,
) -> Ratio:
    """Steps of shared weights, another choice every time, over those of static networks."""
    for choose, static in zip(choices, statics, strict=True):
        choose()
        own, other = shared(), static()
        if abs(own - other) > 1e-3 * abs(other):
            raise RuntimeError(f'losses {own} and {other} differ')
    chosen, step = cycle(choices), cycle(statics)

    def first() -> None:
        next(chosen)()
        shared()

    return paired(first, lambda: next(step)(), rounds, device, warmup=len(choices))


def masked_copies(images: torch.Tensor, labels: torch.Tensor, rounds: int, device: str) -> Ratio:
    """Of MaskedNet, on the paper's space."""
    from mmengine.config import Config
    from super_net_step import CONFIGS, SPACES

    space = SearchSpace(**Config.fromfile(CONFIGS / SPACES['scalenet'][0]).space)
    sampler = HierarchicalSampler(space, sides=('left',))
    draws = (sampler.draw(number) for number in range(10**6))
    archs = islice((draw.arch for draw in draws if draw.scaling_stage == 0), CHANGING)
    masked = MaskedNet(space).to(device)
    head = nn.Linear(1280, CLASSES)
    shared = training_step(Classifier(masked, head).to(device), images, labels)
    choices, statics = [], []
    for arch in archs:
        net = ArchNet(arch).to(device)
        masked.set_net(net)
        masked.copy_to(net)
        choices.append(lambda net=net: masked.set_net(net))
        own_head = nn.Linear(1280, CLASSES).to(device)
        own_head.load_state_dict(head.state_dict())
        statics.append(training_step(Classifier(net, own_head), images, labels))
    return in_turns(choices, shared, statics, rounds, device)


def once_for_all(images: torch.Tensor, labels: torch.Tensor, rounds: int, device: str) -> Ratio:
    """Of Once-for-All's own network, with the choices of its last phase of training."""
    networks: Any = import_module('ofa.imagenet_classification.elastic_nn.networks')
    net = networks.OFAMobileNetV3(
        dropout_rate=0.0, ks_list=[3, 5, 7], expand_ratio_list=[3, 4, 6], depth_list=[2, 3, 4]
    ).to(device)
    random.seed(0)
    choices, statics = [], []
    for _ in range(CHANGING):
        chosen = net.sample_active_subnet()
        choices.append(lambda chosen=chosen: net.set_active_subnet(**chosen))
        statics.append(training_step(net.get_active_subnet().to(device).train(), images, labels))
    return in_turns(choices, training_step(net.train(), images, labels), statics, rounds, device)


def main() -> None:
    parser = arguments(__doc__, rounds=10)
    parser.add_argument('--ofa', type=Path, help='folder that has the package `ofa`')
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--resolution', type=int, default=224)
    args = parser.parse_args()
    set_environment()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if args.ofa is not None:
        sys.path.append(str(args.ofa))
    images = torch.randn(args.batch, 3, args.resolution, args.resolution, device=args.device)
    labels = torch.randint(CLASSES, (args.batch,), device=args.device)
    case = Case('scalenet', 0, 'single', 'changing', args.resolution, args.batch)
    ratios = {'mmscale': Comparison('scalenet', args.device).measure(case, args.rounds)[0]['step']}
    ratios['masked copies'] = masked_copies(images, labels, args.rounds, args.device)
    if find_spec('ofa') is None:
        print('Once-for-All is left out: there is no package `ofa`, see --ofa', file=sys.stderr)
    else:
        ratios['Once-for-All'] = once_for_all(images, labels, args.rounds, args.device)
    size = dict(resolution=args.resolution, batch=args.batch)
    show([({'network': name, **size}, ratio) for name, ratio in ratios.items()], args)


if __name__ == '__main__':
    main()
