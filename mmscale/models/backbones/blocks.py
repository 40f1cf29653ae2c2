"""The layers one Block describes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import torch
from mmcv.cnn import ConvModule, build_activation_layer
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule
from mmpretrain.models.utils import SELayer
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mmscale.arch import Block

# Names of activations and gates: mmcv's of them, and torch's layers, which timm builds.
LAYERS = {
    'relu': ('ReLU', nn.ReLU),
    'relu6': ('ReLU6', nn.ReLU6),
    'hswish': ('HSwish', nn.Hardswish),
    'silu': ('SiLU', nn.SiLU),
    'sigmoid': ('Sigmoid', nn.Sigmoid),
    'hsigmoid': ('HSigmoid', nn.Hardsigmoid),
}


def activation_cfg(name: str | None) -> dict | None:
    """The mmcv config of an activation that an Arch names."""
    return None if name is None else dict(type=LAYERS[name][0])


class ConvNormAct(ConvModule):
    """mmcv's ConvModule in its usual order, with less to do for the same numbers.

    It does not ask for the order, as calls are what a GPU waits for where images are small. And
    SiLU works in place in eval mode alone: its backward pass needs its input, which torch would
    copy, and that costs more than new memory for the output.
    """

    def train(self, mode: bool = True) -> ConvNormAct:
        """Sets the mode, of the activation too."""
        super().train(mode)
        if self.with_activation and isinstance(self.activate, nn.SiLU):
            self.activate.inplace = not mode
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (N, in, H, W) to (N, out, H', W') by convolution, norm and, if any, activation."""
        x = self.norm(self.conv(x))
        return self.activate(x) if self.with_activation else x


def conv_norm_act(
    in_channels: int,
    out_channels: int,
    kernel: int,
    norm_cfg: dict,
    eps: float,
    act: str | None,
    stride: int = 1,
    groups: int = 1,
    padding: str = 'half',
) -> ConvNormAct:
    """A convolution without bias, its norm layer and an optional activation."""
    same = padding == 'same'
    layer = ConvNormAct(
        in_channels,
        out_channels,
        kernel,
        stride=stride,
        padding=0 if same else kernel // 2,
        groups=groups,
        conv_cfg=dict(type='Conv2dAdaptivePadding') if same else None,
        norm_cfg=dict(norm_cfg, eps=eps),
        act_cfg=activation_cfg(act),
    )
    return layer.train()


class ArchBlock(BaseModule):
    """One block of an Arch: ``expand``, ``spatial``, ``se``, ``project``, ``shortcut``.

    A conv has ``spatial`` alone, and a ``shortcut`` if that is a projection.

    Args:
        block: What to build.
        norm_cfg: Config of the norm layers, without eps.
        drop_path_rate: Probability of dropping the residual branch of a sample.
    """

    def __init__(self, block: Block, norm_cfg: dict, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        self.block = block
        common = dict(norm_cfg=norm_cfg, eps=block.eps)
        hidden = block.hidden_channels
        is_conv = block.kind == 'conv'
        self.expand = None
        if block.kind in ('mbconv', 'bottleneck'):
            self.expand = conv_norm_act(block.in_channels, hidden, 1, act=block.act, **common)
        spatial_in, spatial_out = block.grouped_widths
        self.spatial = conv_norm_act(
            spatial_in,
            spatial_out,
            block.kernel,
            act=None if is_conv else block.act,
            stride=block.stride,
            groups=block.groups,
            padding=block.padding,
            **common,
        )
        self.se = None
        if block.se is not None:
            self.se = SELayer(
                spatial_out,
                squeeze_channels=block.se.channels,
                act_cfg=(activation_cfg(block.se.act), activation_cfg(block.se.gate)),
            )
        self.project = None
        if not is_conv:
            self.project = conv_norm_act(
                spatial_out,
                block.out_channels,
                block.kernel if block.kind == 'basic' else 1,
                act=None,
                padding=block.padding,
                **common,
            )
        self.shortcut = None
        if block.residual == 'projection':
            self.shortcut = conv_norm_act(
                block.in_channels,
                block.out_channels,
                1,
                act=None,
                stride=block.stride,
                padding=block.padding,
                **common,
            )
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate else None
        self.last_act = None
        if block.kind in ('bottleneck', 'basic'):
            self.last_act = build_activation_layer(activation_cfg(block.act))

    def zero_residual(self) -> None:
        """Sets the weight of the residual branch's last norm layer to 0; no residual, nothing."""
        last = self.spatial if self.project is None else self.project
        if self.block.residual != 'none' and getattr(last.norm, 'weight', None) is not None:
            nn.init.zeros_(last.norm.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (N, in, H, W) to (N, out, ceil(H / stride), ceil(W / stride))."""
        out = x if self.expand is None else self.expand(x)
        out = self.spatial(out)
        if self.se is not None:
            out = self.se(out)
        if self.project is not None:
            out = self.project(out)
        if self.block.residual != 'none':
            if self.drop_path is not None:
                out = self.drop_path(out)
            out = out + (x if self.shortcut is None else self.shortcut(x))
        return out if self.last_act is None else self.last_act(out)


@contextmanager
def _uncounted(norms: Sequence[_BatchNorm], counters: Sequence[torch.Tensor]) -> Iterator[None]:
    """Lets BNs normalise a batch again that their statistics have counted already."""
    momenta = [norm.momentum for norm in norms]
    counts = [counter.clone() for counter in counters]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for counter, count in zip(counters, counts, strict=True):
            counter.copy_(count)


def checkpointed(
    layer: Callable[[torch.Tensor], torch.Tensor],
    module: nn.Module,
    tensors: Mapping[str, torch.Tensor],
) -> Callable[[torch.Tensor], torch.Tensor]:
    """A layer that is computed anew in the backward pass, and keeps nothing but its input for it.

    Args:
        layer: What is computed; any dropping at random is repeated.
        module: Has the norm layers that the layer runs.
        tensors: Has the buffers that it runs them with, by name.
    """
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    counters = [part for key, part in tensors.items() if key.endswith('num_batches_tracked')]

    def run(x: torch.Tensor) -> torch.Tensor:
        return checkpoint(
            layer,
            x,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), _uncounted(norms, counters)),
        )

    return run


def freeze(module: nn.Module) -> None:
    """Puts a module into eval mode and stops its gradients."""
    module.eval()
    for parameter in module.parameters():
        parameter.requires_grad = False
