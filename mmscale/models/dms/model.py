"""DMSModel: any model of MMEngine with learnable widths and depths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from mmengine.model import BaseModel
from mmengine.registry import OPTIMIZERS
from torch import distributed, nn

from mmscale.arch.checks import check_keys, choice, integer, number
from mmscale.cost import Cost, LatencyModel
from mmscale.errors import UsageError, one_line
from mmscale.models.backbones import ArchNet
from mmscale.models.checkpoints import load_checkpoint, weights_of
from mmscale.models.dms.cost import MaskedCost
from mmscale.models.dms.find import channel_groups
from mmscale.models.dms.groups import GROUP_KINDS, ChannelGroups, DepthGroup
from mmscale.models.dms.masking import Masks, weight_importance
from mmscale.models.dms.projection import Projection, Projector
from mmscale.models.dms.slopes import SlopeSums
from mmscale.models.dms.topk import DifferentiableTopK
from mmscale.registry import MODELS

# Of Adam: slopes of the resource loss come and go with the budget; their scale is soon forgotten.
_BETAS = (0.9, 0.99)
METRICS = ('flops', 'params', 'acts', 'latency')
PIPELINES = ('np', 'p', 'p-')
SEARCHES = ('width', 'depth')


_LARGEST_SIDE = 2**16
# Settings of gates that are not those of heads and blocks.
_OF_WIDTHS = ('divisor', 'minimum')
# So few elements take masks as hard as those of heads: their last one would be half off at first.
_FEW = 16


def _is_part(value: object, allowed: Sequence[str]) -> bool:
    return isinstance(value, (list, tuple)) and all(part in allowed for part in value)


def _check_input_shape(shape: object) -> None:
    whole = isinstance(shape, (list, tuple)) and all(type(side) is int for side in shape)
    if not whole or len(shape) not in (1, 3) or not all(0 < n <= _LARGEST_SIDE for n in shape):
        raise UsageError(
            f'input_shape={shape!r:.60} must be (channels, height, width) of images, or (length,) '
            f'of tokens: integers in 1..{_LARGEST_SIDE}'
        )


@MODELS.register_module()
class DMSModel(BaseModel):
    """Learns how wide and deep a model should be, by gradient, while the model trains.

    Differentiable model scaling: every group of channels, heads or residual blocks has one
    :class:`DifferentiableTopK`. To the loss of the task comes ``weight * log(cost / budget)``
    where the cost is above the budget of the moment (Eq. 5-6). For widths the cost is that of
    the network which an export at this moment would give (hard counts, with the gradient of the
    soft masks): the budget then holds for what is exported, and not for an expectation that
    rounding moves. Blocks are few and expensive, and would switch the resource loss on and off by
    jumps: theirs is the expected cost (soft masks), until the choice of blocks is frozen.

    The DMSHook of :mod:`mmscale.engine` sets the budget, and has the structure step once per
    optimizer step, with an optimizer of its own that no scheduler, weight decay or clipping
    touches. In eval mode all masks are hard: what is evaluated is what would be exported.

    Args:
        model: Config of the model to scale, or the model. Its mode ``tensor`` takes
            images, or tokens.
        target: The budget, as a share of the whole model's cost or absolute: ``0.5``, or
            ``dict(flops=4e8)``, ``dict(latency=3.5)`` (milliseconds).
        metric: With a share: of ``flops``, ``params``, ``acts`` or ``latency``.
        input_shape: Shape of the images that the cost is counted for; of tokens ``(length,)``.
        search: What is searched, ``width``, ``depth`` or both.
        width_kinds: Which widths are searched: ``width`` (of channels, and inside MLPs),
            ``heads``, ``qk_size`` and ``v_size`` (places of queries and keys, and of values, in
            heads), ``head_size`` (where a network ties these), ``embedding``; all by default.
        pipeline: ``np`` trains from random weights (the default), ``p`` from those of
            `pretrained`, ``p-`` keeps these as they are and trains the structure alone.
        pretrained: Checkpoint of the model, of the pipelines ``p`` and ``p-``.
        latency_model: File of a :class:`mmscale.cost.LatencyModel`, for ``latency``.
        weight: Weight of the resource loss.
        structure_optimizer: Config of the structure's optimizer, with a learning rate of its own.
            By default Adam with :attr:`travel` over the number of the search's steps: its steps
            are the same for every group, however much of the cost the group has.
        travel: How far a ratio could move over the whole search, were all of its steps in one
            direction; of the default optimizer.
        gates: Further arguments of every :class:`DifferentiableTopK`, such as ``importance``;
            ``divisor`` and ``minimum`` are those of widths. ``hardness_per_element`` is lambda as
            a multiple of the number of elements, of all groups: by default 1, and 4 for heads,
            blocks and whatever has 16 elements or less. ``by_kind`` has settings for one kind
            alone, such as ``dict(heads=dict(minimum=2), width=dict(divisor=8))``; ``blocks`` is a
            kind, too.
        data_preprocessor: As of the model, which it is handed to.

    Attributes:
        example_inputs: What the cost is counted for: one image or sequence, on the CPU.

    Raises:
        ValueError: A setting is not allowed, the model has nothing of what is searched, or the
            target is out of reach.
    """

    def __init__(
        self,
        model: dict | nn.Module,
        target: float | dict,
        metric: str = 'flops',
        input_shape: Sequence[int] = (3, 224, 224),
        search: Sequence[str] = SEARCHES,
        width_kinds: Sequence[str] = GROUP_KINDS,
        pipeline: str = 'np',
        pretrained: str | None = None,
        latency_model: str | None = None,
        weight: float = 1.0,
        structure_optimizer: dict | None = None,
        travel: float = 2.0,
        gates: dict | None = None,
        data_preprocessor: dict | None = None,
    ) -> None:
        self._check_settings(search, width_kinds, pipeline, pretrained, weight, travel)
        for key, value in (('structure_optimizer', structure_optimizer), ('gates', gates)):
            if value is not None and not isinstance(value, dict):
                raise UsageError(f'{key}={value!r:.60} must be a dict')
        for key, value in (('pretrained', pretrained), ('latency_model', latency_model)):
            if value is not None and not isinstance(value, (str, Path)):
                raise UsageError(f'{key}={value!r:.60} must be a path')
        _check_input_shape(input_shape)
        if isinstance(model, dict):
            model = dict(model)
            if data_preprocessor is not None:
                model.setdefault('data_preprocessor', data_preprocessor)
            model = MODELS.build(model)
        super().__init__(data_preprocessor=getattr(model, 'data_preprocessor', None))
        self.model = model
        self.pretrained = pretrained
        self.weight = weight
        is_text = len(input_shape) == 1
        self.example_inputs = [
            torch.zeros(1, *input_shape, dtype=torch.long if is_text else torch.float32)
        ]
        groups = channel_groups(model, self.example_inputs)
        self.groups = self._searched(groups, search, width_kinds)
        self.cost = MaskedCost(model, self.groups, self.example_inputs)
        try:
            self.gates = nn.ModuleDict(_gates(self.groups, dict(gates or {})))
        except (TypeError, ValueError) as error:
            raise UsageError(f'gates: {error}') from error
        segments = self._segments()
        self._num_counts = segments[-1] + 1
        is_block = torch.tensor(segments) >= len(self.groups.widths)
        self.register_buffer('_is_block', is_block, persistent=False)
        self.register_buffer('_segment', torch.tensor(segments), persistent=False)
        self.masks = Masks(model, self.groups, self.gates, self.example_inputs)
        try:
            self.latency = None if latency_model is None else LatencyModel.load(latency_model)
        except (OSError, ValueError) as error:
            raise UsageError(f'latency_model: {one_line(error)}') from error
        self.metric, self.goal = self._resolved(target, metric)
        if pipeline == 'p-':
            model.requires_grad_(False)
        try:
            self.structure_optimizer = OPTIMIZERS.build(
                {
                    **(structure_optimizer or dict(type='Adam', lr=travel, betas=_BETAS)),
                    'params': [gate.pruning_ratio for gate in self.gates.values()],
                }
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f'structure_optimizer: {error}') from error
        self.pipeline = pipeline
        self.travel = None if structure_optimizer else travel
        self.slopes = SlopeSums(len(self.gates))
        self._budget: float | None = None

    @staticmethod
    def _check_settings(
        search: Sequence[str],
        width_kinds: Sequence[str],
        pipeline: str,
        pretrained: str | None,
        weight: float,
        travel: float,
    ) -> None:
        if not search or not _is_part(search, SEARCHES):
            raise UsageError(f'search={search!r:.60} must hold {" or ".join(SEARCHES)}, or both')
        if not width_kinds or not _is_part(width_kinds, GROUP_KINDS):
            raise UsageError(f'width_kinds={width_kinds!r:.60} must hold some of {GROUP_KINDS}')
        choice('pipeline', pipeline, PIPELINES)
        if (pipeline == 'np') != (pretrained is None):
            raise UsageError(
                f'pipeline={pipeline!r:.60} with pretrained={pretrained!r:.200}: np starts from '
                'random weights, p and p- need a checkpoint'
            )
        number('weight', weight, above=0)
        number('travel', travel, above=0)

    @staticmethod
    def _searched(
        groups: ChannelGroups, search: Sequence[str], width_kinds: Sequence[str]
    ) -> ChannelGroups:
        """The groups of what is searched."""
        widths = tuple(group for group in groups.widths if group.kind in width_kinds)
        for part, found in (('width', widths), ('depth', groups.depths)):
            if part in search and not found:
                others = [other for other in SEARCHES if other != part]
                what = 'width' if part == 'width' else 'residual block'
                raise UsageError(
                    f'search={tuple(search)!r:.60}: the model has no {what} that can go; '
                    f'search={others!r:.60} leaves {part} as it is'
                )
        return ChannelGroups(
            widths if 'width' in search else (),
            groups.depths if 'depth' in search else (),
        )

    def _resolved(self, target: float | dict, metric: str) -> tuple[str, float]:
        """The metric, and its budget as an absolute number."""
        relative = not isinstance(target, dict)
        if not relative:
            if len(target) != 1:
                raise UsageError(f'target={target!r:.60} must have exactly one metric')
            ((metric, target),) = check_keys('target', target, METRICS).items()
        choice('metric', metric, METRICS)
        if (metric == 'latency') != (self.latency is not None):
            raise UsageError(
                'latency_model is needed for the metric latency, and for no other; '
                f'metric={metric!r:.60}'
            )
        number('target', target)
        self.metric = metric
        full = self.value(self.cost.full)
        goal = target * full if relative else target
        smallest = self.value(self._smallest())
        if not smallest <= goal < full:
            raise UsageError(
                f'target: {metric} of {goal:.6g} are out of reach: the whole model has '
                f'{full:.6g}, the smallest that can be left of it {smallest:.6g}'
            )
        return metric, float(goal)

    @torch.no_grad()
    def _smallest(self) -> Cost:
        ratios = [gate.pruning_ratio.clone() for gate in self.gates.values()]
        for gate in self.gates.values():
            gate.pruning_ratio.fill_(1)
            gate.clamp()
        smallest = self.current_cost()
        for gate, ratio in zip(self.gates.values(), ratios, strict=True):
            gate.pruning_ratio.copy_(ratio)
        return smallest

    @property
    def backbone(self) -> nn.Module:
        """The backbone of the model, which hooks look for."""
        return self.model.backbone

    def value(self, cost: Cost) -> float:
        """What a cost is in the metric of the budget."""
        if self.metric == 'latency':
            return float(self.latency.predict(cost))
        return float(getattr(cost, self.metric))

    @torch.no_grad()
    def current_cost(self) -> Cost:
        """Exact cost of the network that an export at this moment would give."""
        kept = torch.cat([gate.keep_mask() for gate in self.gates.values()])
        return self.cost.count(self._counts(kept).tolist())

    def init_weights(self) -> None:
        """Initialises the model, or loads what it starts from.

        Raises:
            ValueError: The checkpoint does not fit the model.
        """
        for module in self.model.modules():
            if isinstance(module, ArchNet):
                # What a branch of 0 hands on says nothing of the channels inside it.
                module.zero_init_residual = False
        super().init_weights()
        if self.pretrained is None:
            return
        found = load_checkpoint(self.pretrained)
        try:
            self.model.load_state_dict(weights_of(self.pretrained, found))
        except RuntimeError as error:
            raise UsageError(f'pretrained={self.pretrained}: {one_line(error):.300}') from None

    def set_search_length(self, steps: int) -> None:
        """Sets the default optimizer's learning rate: the travel over the number of steps."""
        if self.travel is not None:
            for group in self.structure_optimizer.param_groups:
                group['lr'] = self.travel / steps

    def set_budget(self, budget: float) -> None:
        """Sets what the cost is to fall to at this moment."""
        self._budget = budget

    def forward(
        self, inputs: torch.Tensor, data_samples: list | None = None, mode: str = 'tensor'
    ) -> object:
        """The model's own forward under the masks; to its losses comes ``resource_loss``.

        Raises:
            RuntimeError: Losses are asked for, and the DMSHook is missing.
        """
        searching = self.training and mode == 'loss'
        if searching and self._budget is None:
            raise RuntimeError(
                "DMSModel has no budget: add dict(type='mmscale.DMSHook') to custom_hooks"
            )
        self.masks.hard = not searching
        result = self.model(inputs, data_samples, mode=mode)
        if not searching:
            return result
        # Importance is of the task's gradient alone, which the packed masks do not see.
        loss = self.weight * self._resource_loss(self.masks.packed)
        return {**result, 'resource_loss': loss}

    def _resource_loss(self, masks: torch.Tensor) -> torch.Tensor:
        with torch.autocast(masks.device.type, enabled=False):
            hard = (masks >= 0.5).to(masks.dtype)
            exported = torch.where(self._is_block, masks, hard + masks - masks.detach())
            cost = Cost(*self.cost(self._counts(exported)))
            if self.metric == 'latency':
                value = self.latency.predict(cost)
            else:
                value = getattr(cost, self.metric)
            return (value / self._budget).log().clamp(min=0).float()

    def _counts(self, masks: torch.Tensor) -> torch.Tensor:
        """What the masks of all gates keep of each group, and of each block."""
        counts = masks.new_zeros(self._num_counts, dtype=torch.float64)
        return counts.index_add(0, self._segment, masks.double())

    def _segments(self) -> list[int]:
        """For each element of all masks, which count it is of: a width's, or a block's own."""
        segments = []
        for group in self.groups.all:
            next_one = segments[-1] + 1 if segments else 0
            is_depth = isinstance(group, DepthGroup)
            segments += [next_one + i * is_depth for i in range(group.size)]
        return segments

    @torch.no_grad()
    def step_structure(self, loss_scale: float = 1.0, moves: bool = True) -> None:
        """One step of the structure: importance first, then the pruning ratios.

        Gradients that are not finite (AMP tries its loss scale out) change nothing.

        Args:
            loss_scale: What the loss was multiplied with before the backward pass.
            moves: Whether the ratios take a step; if not importance is all that is learned.
        """
        found = self.masks.collect()
        gradients = [
            found[key][1] if key in found else torch.zeros_like(gate.importance)
            for key, gate in self.gates.items()
        ]
        packed = torch.cat(gradients) / loss_scale
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(packed)
            packed /= distributed.get_world_size()
        masks = [
            found[key][0] if key in found else gate.importance for key, gate in self.gates.items()
        ]
        taken = [key in found for key in self.gates]
        masks = torch.cat(masks)
        self.masks.stack.update_importance(packed, masks, taken)
        of_task = self.masks.stack.slopes(packed, masks)
        for group in self.groups.widths:
            gate = self.gates[group.key]
            if gate.kind == 'l1':
                gate.set_importance(weight_importance(self.model, group).to(gate.importance))
        ratios = [gate.pruning_ratio for gate in self.gates.values()]
        slopes = torch.stack([ratio.grad for ratio in ratios]) / loss_scale
        # Where one is not finite none is taken; a comparison in Python would wait for the GPU.
        slopes = torch.where(torch.isfinite(slopes).all(), slopes, 0)
        if not moves:
            self.structure_optimizer.zero_grad()
            return
        self.slopes.add(of_task, slopes)
        torch._foreach_copy_([ratio.grad for ratio in ratios], list(slopes.unbind()))
        self.structure_optimizer.step()
        self.structure_optimizer.zero_grad()
        self.masks.stack.clamp()

    @property
    def _projector(self) -> Projector:
        """What moves the gates onto the budget."""
        pairs = list(zip(self.groups.all, self.gates.values(), strict=True))
        return Projector(
            [gate for group, gate in pairs if not isinstance(group, DepthGroup)],
            [gate for group, gate in pairs if isinstance(group, DepthGroup)],
            lambda: self.value(self.current_cost()),
            self.goal,
        )

    @torch.no_grad()
    def freeze_blocks(self) -> None:
        """Freezes which blocks stay, as of now, such that the widths can meet the budget."""
        if not self._is_depth_frozen:
            self._projector.choose_blocks()

    @property
    def _is_depth_frozen(self) -> bool:
        return all(bool(self.gates[group.key].hard) for group in self.groups.depths)

    @torch.no_grad()
    def project(self) -> Projection:
        """Moves the network onto the budget, see :class:`Projector`, and freezes it.

        Blocks only go or come back where the widths cannot meet the budget otherwise.
        """
        before = self.value(self.current_cost())
        projector = self._projector
        blocks = projector.choose_blocks()
        shift = projector.fit_widths()
        for gate in self.gates.values():
            gate.harden()
        after = self.value(self.current_cost())
        return Projection(self.metric, self.goal, before, after, shift, blocks)

    @torch.no_grad()
    def pulls(self) -> dict[str, dict[str, object]]:
        """What a line of a search's record says of the ratios: these, and what pulled at them."""
        names = [group.name for group in self.groups.all]
        ratios = torch.stack([gate.pruning_ratio for gate in self.gates.values()]).tolist()
        return {
            'ratios': dict(zip(names, ratios, strict=True)),
            'slopes': dict(zip(names, self.slopes.take_recent(), strict=True)),
            'task_shares': self.task_shares(),
        }

    def task_shares(self) -> dict[str, float]:
        """The task's share of what pulled at each group's ratio, 0 to 1, by name."""
        shares = zip(self.groups.all, self.gates.values(), self.slopes.shares(), strict=True)
        return {group.name: share for group, gate, share in shares if gate.minimum < gate.elements}

    @torch.no_grad()
    def structure(self) -> dict[str, int | list[int]]:
        """How many elements each width keeps, and which blocks each depth keeps, by name."""
        return {
            group.name: gate.keep_mask().int().tolist()
            if isinstance(group, DepthGroup)
            else gate.keep_count
            for group, gate in zip(self.groups.all, self.gates.values(), strict=True)
        }


def _gates(groups: ChannelGroups, options: dict) -> Iterator[tuple[str, DifferentiableTopK]]:
    """One operator for each group, under its key; few elements take harder masks."""
    by_kind = check_keys('by_kind', options.pop('by_kind', {}), (*GROUP_KINDS, 'blocks'))
    for kind, settings in by_kind.items():
        check_keys(f'by_kind.{kind}', settings, None)
    for group in groups.all:
        is_depth = isinstance(group, DepthGroup)
        kind = 'blocks' if is_depth else group.kind
        is_few = kind in ('heads', 'blocks')
        common = {key: options[key] for key in options if not is_few or key not in _OF_WIDTHS}
        settings = {**common, **by_kind.get(kind, {})}
        divisor = integer(f'divisor of {kind}', settings.get('divisor', 1))
        elements = -(-group.size // divisor)
        is_few |= elements <= _FEW
        multiple = settings.pop('hardness_per_element', 4.0 if is_few else 1.0)
        settings.setdefault('hardness', number('hardness_per_element', multiple) * elements)
        settings.setdefault('midpoint', is_few)
        minimum = integer(f'minimum of {kind}', settings.get('minimum', 0 if is_depth else 1), 0)
        settings['minimum'] = min(group.size, minimum)
        yield group.key, DifferentiableTopK(group.size, **settings)
