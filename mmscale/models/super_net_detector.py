"""SuperNetDetector: trains a SuperNet under any detector of mmdet."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from mmengine.model import BaseModel

from mmscale.arch import Arch, Head
from mmscale.cost import Cost, count_module, count_parts
from mmscale.errors import UsageError
from mmscale.models.backbones import SuperNet
from mmscale.models.super_net_training import SuperNetTraining, halved
from mmscale.registry import MODELS


@MODELS.register_module()
class SuperNetDetector(SuperNetTraining, BaseModel):
    """A detector whose backbone is a :class:`SuperNet` that owns the neck.

    All subnets share what lies after the feature maps; of a neck's layers that take them, a
    subnet uses the part that fits its widths.

    Args:
        detector: Config of a detector of mmdet; its backbone is a SuperNet with a ``neck``.
        data_preprocessor: Config of the data preprocessor where the detector's has none.
        mode: What one iteration trains. ``single``: the drawn subnet. ``both_sides``: the drawn
            subnet on both sides, half the loss each. ``sandwich``: the largest subnet and the
            drawn one, half the loss each. All learn from the labels.
        **settings: ``warmup_iters``, ``warmup_scaling_stage``, ``warmup_subnet`` and ``teacher``,
            as for :class:`SuperNetClassifier`.

    Raises:
        ValueError: A setting is not allowed.
        TypeError: A setting is unknown, or the backbone is not a SuperNet.
    """

    def __init__(
        self,
        detector: dict,
        data_preprocessor: dict | None = None,
        mode: str = 'single',
        **settings: Any,
    ) -> None:
        detector = dict(detector)
        super().__init__(detector.pop('data_preprocessor', data_preprocessor))
        self.detector = MODELS.build(detector)
        self.set_training(mode, **settings)
        backbone = self.backbone
        if max(backbone.out_indices) < len(backbone.arch.stages) - 1:
            raise UsageError(
                f'detector.backbone: of out_indices={backbone.out_indices} the last must be of '
                f'the last network stage, {len(backbone.arch.stages) - 1}: subnets are costed '
                'with all of them'
            )
        choices = backbone.space.ends.choices
        is_used = max(backbone.out_indices) == len(backbone.arch.stages)
        for key, used in (('channels', is_used), ('hidden_channels', False)):
            if len(choices[f'head_{key}']) > 1 and not used:
                raise UsageError(
                    f'detector.backbone.space.head.{key}={list(choices[f"head_{key}"])} is a '
                    'choice of what the detector does not use'
                )
        self._costs: dict[tuple[tuple[int, ...], Head, int], Cost] = {}

    @property
    def backbone(self) -> SuperNet:
        """The detector's backbone."""
        return self.detector.backbone

    def forward(
        self, inputs: torch.Tensor, data_samples: list | None = None, mode: str = 'tensor'
    ) -> dict | list | tuple | torch.Tensor:
        """Runs the detector on the subnet that was chosen last; see mmdet's detectors."""
        return self.detector(inputs, data_samples, mode)

    def loss(self, inputs: torch.Tensor, data_samples: list) -> dict:
        """Losses of the subnet that was chosen last, on the labels."""
        return self.detector.loss(inputs, data_samples)

    def sandwich_losses(self, inputs: torch.Tensor, data_samples: list) -> dict:
        """Half the losses of the largest subnet and half of the drawn one's."""
        draw, batch = self.draw, (inputs, data_samples)
        return {
            **halved('largest', self.losses_of(self.largest(), draw.side, *batch)),
            **halved('subnet', self.losses_of(draw.arch, draw.side, *batch)),
        }

    def extract(self, arch: Arch, side: str = 'left') -> BaseModel:
        """A stand-alone detector with its own copy of a subnet's weights, ArchNet and neck.

        Raises:
            ValueError: The Arch is not in the space, or the side is unknown.
        """
        # The copy's backbone is the subnet; the super-supernet itself is not copied.
        detector = deepcopy(self.detector, {id(self.backbone): self.backbone.extract(arch, side)})
        detector.data_preprocessor = deepcopy(self.data_preprocessor)
        # A runner that trains it must not draw new weights.
        detector.is_init = True
        return detector

    def cost_after_stages(self, arch: Arch) -> Cost:
        """Cost of what follows the network stages, which decide it by widths and resolution."""
        key = arch.widths, arch.head, arch.resolution
        if key not in self._costs:
            shape = (arch.stem.in_channels, arch.resolution, arch.resolution)
            alone = self.extract(arch, self.backbone.sides[0])
            whole = count_module(alone, shape, memory=False).cost
            stages = sum((part.cost for part in count_parts(arch)[:-1]), Cost())
            self._costs[key] = Cost(
                whole.flops - stages.flops,
                whole.params - stages.params,
                whole.acts - stages.acts,
            )
        return self._costs[key]
