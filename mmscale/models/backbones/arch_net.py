"""ArchNet: the plain static network that one Arch describes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from types import NoneType

import torch
from mmpretrain.models.backbones.base_backbone import BaseBackbone
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmscale.arch import Arch, Block, Head, Scaling, Stem, apply_scaling, get_arch
from mmscale.arch.checks import check_keys, integer, number
from mmscale.config_parts import is_pretrained
from mmscale.cost.count import count
from mmscale.errors import UsageError
from mmscale.input_size import note_resolution
from mmscale.memory import check_memory
from mmscale.models.backbones.blocks import ArchBlock, checkpointed, conv_norm_act, freeze
from mmscale.models.checkpoints import read_part
from mmscale.registry import MODELS

Layer = Callable[[torch.Tensor], torch.Tensor]
Neck = Callable[[tuple[torch.Tensor, ...]], Sequence[torch.Tensor]]


def scaled_arch(arch: str | Path | dict | Arch, scaling: dict | None = None) -> Arch:
    """The Arch of a config's ``arch`` with ``scaling`` on top.

    Args:
        arch: See :func:`mmscale.arch.get_arch`.
        scaling: ``dict(depth=, width=, resolution=, group_width=, rule=)``, all optional; the rule
            is ``retraining`` by default, and a group width needs ``pycls``.

    Raises:
        ValueError: A key or a value is not allowed.
    """
    found = get_arch(arch)
    if scaling is None:
        return found
    allowed = ('depth', 'width', 'resolution', 'group_width', 'rule')
    multipliers = check_keys('scaling', scaling, allowed)
    rule = multipliers.pop('rule', 'retraining')
    return apply_scaling(found, Scaling(**multipliers), rule)


def check_weights_fit(arch: Arch) -> None:
    """Refuses a network whose weights do not fit into memory, where they are about to lie there.

    Raises:
        UsageError: There is not enough memory.
    """
    weight = torch.empty(0)
    if weight.device.type == 'cpu':
        params = count(arch).params
        check_memory(f'arch: a network of {params:,} parameters', params * weight.itemsize)


def _check_pretrained(init_cfg: dict) -> None:
    """Refuses what does not name a checkpoint.

    Raises:
        ValueError: A key or a value is not allowed.
    """
    check_keys('init_cfg', init_cfg, ('prefix', 'map_location'), ('type', 'checkpoint'))
    for key, allowed in (('checkpoint', (str,)), ('prefix', (str, NoneType))):
        value = init_cfg.get(key)
        if not isinstance(value, allowed):
            raise UsageError(f'init_cfg: {key}={value!r:.60} must be a string')


@MODELS.register_module()
class ArchNet(BaseBackbone):
    """The network of one Arch, as a backbone of mmpretrain, mmdet and whatever takes their kind.

    What lies after the last feature map that is returned is kept, so that one checkpoint fits
    every choice of maps, but is frozen and never computed.

    Args:
        arch: A preset's name (``scalenet-s0``), a JSON file, its content as a dict, or an Arch.
        scaling: Multipliers on top, ``dict(depth=, width=, resolution=, rule='retraining')``.
        out_indices: Which feature maps to return: i is the output of network stage i (from 0),
            the number of network stages is the head's 1x1 convolution (or, if the Arch has
            none, the last network stage again). Negative indexes count from the end.
        out_strides: Instead of `out_indices`, as in ``(4, 8, 16, 32)``: of each total stride the
            output of the last network stage that has it, whichever that is in the Arch.
        neck: Config of a neck that takes the feature maps, without ``in_channels``, which follow
            from the Arch: a config that changes `arch` alone stays right. The model around the
            backbone then has none (``neck=None``).
        frozen_stages: -1 freezes nothing, 0 the stem, k the stem and the first k network
            stages, one more than the network stages the head's convolution too.
        norm_eval: Whether BNs stay in eval mode while training, but for those of the neck.
        norm_cfg: Config of the norm layers; eps is the Arch's.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.
        zero_init_residual: Whether to begin with 0 for the weight of the last norm layer of every
            residual branch, so that blocks begin as the identity or their shortcut. It comes
            after what init_cfg says of layers; weights that are loaded win.
        channels_last: Whether to compute with channels as the innermost dimension in memory,
            which is often faster, on CPUs and on GPUs in half precision.
        init_cfg: MMEngine's initialisation config; by default Kaiming for convolutions.
            ``dict(type='Pretrained', checkpoint=, prefix='backbone.')`` loads the weights of a
            classifier; all keys must fit, but for those of a neck.
        with_cp: Whether the backward pass computes every block anew, to keep less in memory
            (gradient checkpointing); gradients and BN statistics are the same.
        make_block: Makes the layers of a block, given ``norm_cfg`` and its drop path rate too.

    Attributes:
        arch: The Arch, with the scaling applied.
        out_channels: Channels of each feature map, before the neck.
        resolution: Side of the input that the Arch is made for, in pixels.

    Raises:
        ValueError: The Arch, the scaling, an index or a key of init_cfg is not allowed; or the
            weights do not fit into memory.
    """

    def __init__(
        self,
        arch: str | Path | dict | Arch,
        scaling: dict | None = None,
        out_indices: int | Sequence[int] = -1,
        out_strides: Sequence[int] | None = None,
        neck: dict | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        norm_cfg: dict | None = None,
        drop_path_rate: float = 0.0,
        channels_last: bool = False,
        init_cfg: dict | list | None = None,
        with_cp: bool = False,
        zero_init_residual: bool = False,
        make_block: Callable[[Block, dict, float], nn.Module] = ArchBlock,
    ) -> None:
        if init_cfg is None:
            init_cfg = [
                dict(type='Kaiming', layer='Conv2d'),
                dict(type='Constant', layer=['_BatchNorm', 'GroupNorm'], val=1),
            ]
        configs = [init_cfg] if isinstance(init_cfg, dict) else list(init_cfg)
        self._pretrained = [part for part in configs if is_pretrained(part)]
        for part in self._pretrained:
            _check_pretrained(part)
        super().__init__([part for part in configs if part not in self._pretrained])
        self.arch = scaled_arch(arch, scaling)
        check_weights_fit(self.arch)
        self.resolution = self.arch.resolution
        # For the pipelines of tools that build a network, and then read images for it.
        note_resolution(self.resolution)
        self.norm_eval = norm_eval
        self.channels_last = channels_last
        self.with_cp = with_cp
        self.zero_init_residual = zero_init_residual
        self.norm_cfg = dict(type='BN') if norm_cfg is None else dict(norm_cfg)
        if out_strides is not None:
            out_indices = self._indices_of_strides(out_indices, out_strides)
        self.out_indices = self._checked_indices(out_indices)
        self.out_channels = self._channels_of(self.arch)
        outputs = len(self.arch.stages) + 1
        self.frozen_stages = integer('frozen_stages', frozen_stages, -1, outputs)
        number('drop_path_rate', drop_path_rate, least=0, below=1)

        self.stem = self._make_stem(self.arch.stem)
        self.max_pool = nn.MaxPool2d(3, 2, 1) if self.arch.stem.max_pool else None
        last = max(1, len(self.arch.blocks) - 1)
        position = 0
        self.stages = nn.ModuleList()
        for stage in self.arch.stages:
            blocks = nn.ModuleList()
            for block in stage:
                blocks.append(make_block(block, self.norm_cfg, drop_path_rate * position / last))
                position += 1
            self.stages.append(blocks)
        self.conv_head = None
        if self.arch.head.channels:
            self.conv_head = self._make_conv_head(self.arch.widths[-1], self.arch.head)
        self.neck_cfg = neck
        self.neck = None if neck is None else self._make_neck(self.out_channels)
        # Before anything that looks at requires_grad is built around the network.
        self._freeze_stages()

    def _make_stem(self, stem: Stem) -> nn.Module:
        return conv_norm_act(
            stem.in_channels,
            stem.out_channels,
            stem.kernel,
            self.norm_cfg,
            stem.eps,
            stem.act,
            stride=stem.stride,
            padding=stem.padding,
        )

    def _make_conv_head(self, in_channels: int, head: Head) -> nn.Module:
        return conv_norm_act(in_channels, head.channels, 1, self.norm_cfg, head.eps, head.act)

    def _make_neck(self, channels: tuple[int, ...]) -> nn.Module:
        if 'in_channels' in self.neck_cfg:
            raise UsageError(
                f'neck.in_channels={self.neck_cfg["in_channels"]!r:.60}: leave it out, it follows '
                'from the Arch'
            )
        return MODELS.build({**self.neck_cfg, 'in_channels': list(channels)})

    def _channels_of(self, arch: Arch) -> tuple[int, ...]:
        """Channels of the feature maps of an Arch that is like this network's."""
        channels = (*arch.widths, arch.feature_channels)
        return tuple(channels[index] for index in self.out_indices)

    def _indices_of_strides(
        self, out_indices: int | Sequence[int], out_strides: Sequence[int]
    ) -> tuple[int, ...]:
        if out_indices != -1:
            raise UsageError(
                f'out_indices={out_indices!r:.60} and out_strides={out_strides!r:.60}: give one '
                'of them'
            )
        last = {stride: index for index, stride in enumerate(self.arch.strides)}
        for stride in out_strides:
            if stride not in last:
                raise UsageError(
                    f'out_strides={out_strides!r:.60}: {stride} is none of the strides of the '
                    f"Arch's network stages, {', '.join(map(str, last))}"
                )
        return tuple(last[stride] for stride in out_strides)

    def _checked_indices(self, out_indices: int | Sequence[int]) -> tuple[int, ...]:
        indices = out_indices if isinstance(out_indices, (list, tuple, range)) else (out_indices,)
        outputs = len(self.arch.stages) + 1
        if not indices:
            raise UsageError('out_indices=() must name at least one feature map')
        for index in indices:
            if not isinstance(index, int) or not -outputs <= index < outputs:
                raise UsageError(
                    f'out_indices={out_indices!r:.60}: {index!r:.60} must lie in '
                    f'{-outputs}..{outputs - 1}'
                )
        found = sorted(index % outputs for index in indices)
        for index in found:
            if found.count(index) > 1:
                raise UsageError(
                    f'out_indices={out_indices!r:.60}: the output of index {index} comes twice'
                )
        return tuple(found)

    def init_weights(self) -> None:
        """Initialises the weights, then freezes what has to be frozen.

        Raises:
            ValueError: A checkpoint of init_cfg does not fit; the message names keys.
        """
        is_new = not self.is_init
        super().init_weights()
        if is_new:
            if self.zero_init_residual:
                for module in self.stages.modules():
                    if isinstance(module, ArchBlock):
                        module.zero_residual()
            for state in self.read_pretrained():
                self.load_state_dict(state, strict=False)
        self._freeze_stages()

    def read_pretrained(self) -> list[dict[str, torch.Tensor]]:
        """The weights that init_cfg names, compared with the network key by key.

        Raises:
            ValueError: A checkpoint does not fit; the message names keys.
            FileNotFoundError: There is no such file.
        """
        return [
            read_part(part['checkpoint'], part.get('prefix'), self.state_dict(), 'neck.')
            for part in self._pretrained
        ]

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Maps images (N, channels, H, W) to the feature maps, or to what the neck makes of them.

        A map of stride s has ceil(H / s) x ceil(W / s) positions.
        """
        stages = self.stages
        if self._recomputes:
            stages = [
                [checkpointed(block, block, dict(block.named_buffers())) for block in stage]
                for stage in stages
            ]
        return self._run(x, self.stem, stages, self.conv_head, self.neck)

    @property
    def _recomputes(self) -> bool:
        """Whether a forward pass now leaves its blocks to be computed anew."""
        return self.with_cp and self.training and torch.is_grad_enabled()

    def _run(
        self,
        x: torch.Tensor,
        stem: Layer,
        stages: Iterable[Iterable[Layer]],
        conv_head: Layer | None,
        neck: Neck | None,
    ) -> tuple[torch.Tensor, ...]:
        if self.channels_last:
            # Not contiguous(): the layout of one-channel images is ambiguous to it.
            x = x.to(memory_format=torch.channels_last)
        x = stem(x)
        if self.max_pool is not None:
            x = self.max_pool(x)
        outputs = []
        for index, stage in enumerate(islice(stages, self.out_indices[-1] + 1)):
            for block in stage:
                x = block(x)
            if index in self.out_indices:
                outputs.append(x)
        if len(self.stages) in self.out_indices:
            outputs.append(x if conv_head is None else conv_head(x))
        return tuple(outputs if neck is None else neck(tuple(outputs)))

    def _parts(self) -> list[nn.Module]:
        """All layers but the neck's, in the order in which they run."""
        parts = [self.stem, *self.stages]
        return parts if self.conv_head is None else [*parts, self.conv_head]

    def _freeze_stages(self) -> None:
        parts = self._parts()
        unused = parts[self.out_indices[-1] + 2 :]
        for part in (*parts[: self.frozen_stages + 1], *unused):
            freeze(part)

    def train(self, mode: bool = True) -> ArchNet:
        """Sets the mode; frozen stages, and with ``norm_eval`` all BNs, stay in eval mode."""
        nn.Module.train(self, mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            for part in self._parts():
                for module in part.modules():
                    if isinstance(module, _BatchNorm):
                        module.eval()
        return self
