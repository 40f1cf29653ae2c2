#!/usr/bin/env python
"""Time of a training step of a super-supernet over that of the static networks it stands for.

    python benchmarks/super_net_step.py [--space digits] [--mode sandwich] [--json]

Both ways train the same Archs on the same batch with the config's own optimizer, in turns. Modes:
``single`` against the drawn ArchNet; ``both_sides`` against two ArchNets, of the left and of the
right side, half the loss each; ``sandwich`` against the largest ArchNet and the drawn one, which
learns from it; ``forward``, the forward pass of a step on 2 images of 32 px, whose arithmetic is
little; ``host``, in which the super-supernet only makes the subnet ready and runs no layer: what
that adds to the static network's pass is the host's work, for which a GPU waits.

Draws are the sampler's, past the warm-up: ``repeated`` trains one again and again, ``changing``
takes turns between several, as a training does once it has run for a while; ``new`` has never seen
any before. Static networks are built before they are timed. Both ways' first losses must agree.
On a GPU the step is waited for, its parts are not: they are the host's times.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from paired import Ratio, arguments, now, paired, ratio_of, show
from torch import nn
from traffic import FIELDS, Traffic

import mmscale.models
from mmscale.apis.networks import quiet_log
from mmscale.arch import HierarchicalSampler, SubnetDraw
from mmscale.arch.sampling import SIDES
from mmscale.launch.command_line import set_environment

CONFIGS = Path(__file__).parents[1] / 'configs' / 'scalenet'
# Config of the super-supernet, images of a batch, their side: of the scaling stage where None.
SPACES = {
    'scalenet': ('supernet_32xb8_in1k.py', 8, 224),
    'digits': ('supernet_digits.py', 96, None),
}
MODES = ('single', 'both_sides', 'sandwich', 'forward', 'host')
# What `forward` and `host` are measured on.
HOST_BATCH, HOST_RESOLUTION = 2, 32
PARTS = ('step', 'forward', 'backward', 'update')
DRAWS = ('repeated', 'changing', 'new')
CHANGING = 4
# Times do not depend on it, and weights stay finite on random images.
LEARNING_RATE = 1e-5


class Static(BaseModel):
    """The static networks that one step trains, with one head, as stock mmpretrain trains one.

    Args:
        model: The super-supernet's model, of which neck, head and preprocessor are copied.
        mode: Of the super-supernet.
        backbones: ArchNets: one, or the two of the mode.
    """

    def __init__(self, model: BaseModel, mode: str, backbones: Sequence[nn.Module]) -> None:
        super().__init__()
        whole = model.extract(model.draw.arch)
        self.data_preprocessor = whole.data_preprocessor
        self.neck, self.head = whole.neck, whole.head
        self.backbones = nn.ModuleList(backbones)
        self.mode = mode

    def forward(self, inputs: torch.Tensor, data_samples: list, mode: str = 'loss') -> dict:
        """Losses of all networks on a batch."""
        first, *others = (self.neck(backbone(inputs)) for backbone in self.backbones)
        losses = self.head.loss(first, data_samples)
        if not others:
            return losses
        if self.mode == 'both_sides':
            right = self.head.loss(others[0], data_samples)
            return {'left.loss': losses['loss'] / 2, 'right.loss': right['loss'] / 2}
        target = self.head(first).detach().softmax(dim=1)
        logits = self.head(others[0]).log_softmax(dim=1)
        distill_loss = F.kl_div(logits, target, reduction='batchmean')
        return {'largest.loss': losses['loss'], 'subnet.distill_loss': distill_loss}


class Step:
    """A model's training step, whose passes are timed apart.

    Args:
        model: Has MMEngine's ``train_step``.
        optim_wrapper: Of it.
        device: ``cpu`` or ``cuda``.
        prepare: What a hook does before the step; part of the forward pass.
    """

    def __init__(
        self,
        model: BaseModel,
        optim_wrapper: OptimWrapper,
        device: str,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        self.model, self.optim_wrapper = model, optim_wrapper
        self.device, self.prepare = device, prepare
        self._backward = optim_wrapper.backward
        optim_wrapper.backward = self._timed_backward
        self._mark: Callable[[bool], None] = lambda _: None
        self.loss = torch.tensor(float('nan'))

    def _timed_backward(self, loss: torch.Tensor, **kwargs: Any) -> None:
        # A GPU is not waited for, as a training does not wait: parts are the host's.
        self._mark(False)
        self._backward(loss, **kwargs)
        self._mark(False)

    def _run(self, data: dict, mark: Callable[[bool], Any]) -> list:
        """What `mark` returns at the beginning and after every part of a step.

        It is told whether the step begins or ends there.
        """
        marks: list = []
        self._mark = lambda is_end: marks.append(mark(is_end))
        self._mark(True)
        self.prepare()
        self.loss = self.model.train_step(data, self.optim_wrapper)['loss']
        self._mark(True)
        return marks

    def __call__(self, data: dict) -> list[float]:
        """Takes a step; returns the seconds of :data:`PARTS`."""
        marks = self._run(data, lambda is_end: now(self.device, is_end))
        return [marks[-1] - marks[0], *np.diff(marks)]

    def traffic(
        self, data: dict, least_seconds: Callable[[int, int], float] = lambda *_: 0.0
    ) -> dict[str, dict[str, float]]:
        """What :class:`Traffic` counts in every part of a step."""
        with Traffic(least_seconds) as counted:
            marks = self._run(data, lambda _: counted.totals.copy())
        parts = [marks[-1] - marks[0], *np.diff(marks, axis=0)]
        return {
            name: dict(zip(FIELDS, part.tolist(), strict=True))
            for name, part in zip(PARTS, parts, strict=True)
        }


@dataclass(frozen=True)
class Case:
    """What is measured."""

    space: str
    scaling_stage: int
    mode: str
    draws: str
    resolution: int
    batch: int


def optim_wrapper_of(model: nn.Module, config: dict) -> OptimWrapper:
    """The config's optimizer, at a rate that leaves weights nearly as they are."""
    config = dict(config, optimizer=dict(config['optimizer'], lr=LEARNING_RATE))
    with DefaultScope.overwrite_default_scope('mmpretrain'), quiet_log():
        return build_optim_wrapper(model, config)


def random_batch(channels: int, classes: int, case: Case, device: str) -> dict[str, Any]:
    """A batch as data loaders give it, but on the device already."""
    from mmpretrain.structures import DataSample  # after mmscale has kept its import quiet

    shape = (case.batch, channels, case.resolution, case.resolution)
    images = torch.randint(256, shape, dtype=torch.uint8, device=device)
    labels = torch.randint(classes, (case.batch,)).tolist()
    return dict(inputs=images, data_samples=[DataSample().set_gt_label(n) for n in labels])


class Comparison:
    """A super-supernet, and the static networks of its draws.

    Args:
        space: Name in :data:`SPACES`.
        device: ``cpu`` or ``cuda``.
        seed: Of weights, images and draws.
        channels_last: Whether both ways compute with channels innermost; by default the config's.
        optim_wrapper: Its class; the config's may compute in half precision.
    """

    def __init__(
        self,
        space: str,
        device: str = 'cpu',
        seed: int = 0,
        channels_last: bool | None = None,
        optim_wrapper: str = 'OptimWrapper',
    ) -> None:
        config = Config.fromfile(CONFIGS / SPACES[space][0])
        if channels_last is not None:
            config.model.backbone.channels_last = channels_last
        torch.manual_seed(seed)
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            model = {**config.model, 'data_preprocessor': config.data_preprocessor}
            self.model = MODELS.build(model).to(device).train()
        self.space, self.device = space, device
        self.config = dict(config.optim_wrapper, type=optim_wrapper)
        self.tolerance = 1e-3 if optim_wrapper == 'OptimWrapper' else 5e-2
        hook = config.custom_hooks[0]
        self.sampler = HierarchicalSampler(
            self.model.backbone.space, seed, hook.distribution, hook.sides
        )
        self.step = Step(self.model, optim_wrapper_of(self.model, self.config), device)
        if hasattr(mmscale.models, 'SliceUpdate'):
            # Versions before there were leaves kept the optimizer off by hooks.
            mmscale.models.SliceUpdate(self.step.optim_wrapper.optimizer, self.model.backbone)

    def draws(self, case: Case) -> Iterator[SubnetDraw]:
        """What the sampler draws in a scaling stage, at the resolution of the case."""
        for number in count():
            draw = self.sampler.draw(number)
            if draw.scaling_stage == case.scaling_stage:
                yield replace(draw, arch=replace(draw.arch, resolution=case.resolution))

    def static_step(self, mode: str, draw: SubnetDraw) -> Step:
        """The static networks of what the super-supernet trains now."""
        model, backbone = self.model, self.model.backbone
        pairs = {
            'single': [(draw.arch, draw.side)],
            'both_sides': [(draw.arch, side) for side in SIDES],
        }
        chosen = pairs.get(mode) or [(model.largest(), draw.side), (draw.arch, draw.side)]
        static = Static(model, mode, [backbone.extract(*pair) for pair in chosen])
        static.to(self.device).train()
        return Step(static, optim_wrapper_of(static, self.config), self.device)

    def measure_host(self, case: Case, rounds: int) -> Ratio:
        """A static forward pass and making the subnet ready, over the static pass alone."""
        draws = list(islice(self.draws(case), 1 if case.draws == 'repeated' else CHANGING))
        backbone = copy.deepcopy(self.model.backbone)
        statics = [backbone.extract(draw.arch, draw.side).train() for draw in draws]
        channels = draws[0].arch.stem.in_channels
        images = torch.randn(case.batch, channels, case.resolution, case.resolution)
        images = images.to(self.device)
        backbone._run = lambda images, *_: (images,)

        def ready() -> None:
            for draw in draws:
                backbone.set_arch(draw.arch, draw.side)
                with backbone.slices():
                    backbone(images)
                backbone.forget_slices()

        def static() -> None:
            for net in statics:
                net(images)

        added = paired(ready, static, rounds, self.device)
        return replace(
            added,
            ratio=1 + added.ratio,
            quartiles=tuple(1 + quartile for quartile in added.quartiles),
            seconds=(sum(added.seconds), added.seconds[1]),
        )

    def measure(self, case: Case, rounds: int) -> tuple[dict[str, Ratio], list[int]]:
        """The ratio of every part of a step, and the bytes that both ways' optimizers write.

        The bytes are of the first draw, which :attr:`ways` go on with.

        Raises:
            RuntimeError: Both ways have different losses.
        """
        mode = self.model.mode = 'single' if case.mode == 'forward' else case.mode
        warmup = CHANGING + 1
        number = {'repeated': 1, 'changing': CHANGING, 'new': warmup + rounds}[case.draws]
        draws = list(islice(self.draws(case), number))
        self.data = data = random_batch(
            draws[0].arch.stem.in_channels, draws[0].arch.head.num_classes, case, self.device
        )
        statics: dict[int, Step] = {}
        times = []
        for turn in range(warmup + rounds):
            index = turn % number
            draw = draws[index]

            def prepare(draw: SubnetDraw = draw) -> None:
                self.model.set_draw(draw, self.model.warmup_iters)

            self.step.prepare = prepare
            is_first = index not in statics
            if is_first:
                if case.draws == 'new':
                    statics.clear()
                prepare()
                statics[index] = self.static_step(mode, draw)
                statics[index](data)
                wanted = statics[index].loss
            pair = [[], []]
            order = [(0, self.step), (1, statics[index])]
            for way, step in order if turn % 2 else order[::-1]:
                pair[way] = step(data)
            if is_first and not torch.allclose(self.step.loss, wanted, rtol=self.tolerance):
                raise RuntimeError(f'{case}: losses {self.step.loss} and {wanted} differ')
            times.append(pair)
        kept = np.array(times[warmup:])
        ratios = {part: ratio_of(kept[:, :, i]) for i, part in enumerate(PARTS)}
        # Of the first draw, whatever the number of rounds.
        index = min(statics)
        self.step.prepare = lambda: self.model.set_draw(draws[index], self.model.warmup_iters)
        self.ways = self.step, statics[index]
        updates = [way.traffic(data)['update'] for way in self.ways]
        return ratios, [round(update['bytes_written']) for update in updates]


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """What the options ask for, as far as a space has it."""
    for space in args.space:
        file, batch, side = SPACES[space]
        stages = Config.fromfile(CONFIGS / file).space.scaling_stages
        for scaling_stage in args.scaling_stage:
            if scaling_stage >= len(stages):
                continue
            resolutions = stages[scaling_stage].resolution
            size = side or resolutions[len(resolutions) // 2], batch
            for mode in args.mode:
                for draws in args.draws:
                    used = (HOST_RESOLUTION, HOST_BATCH) if mode in ('forward', 'host') else size
                    yield Case(space, scaling_stage, mode, draws, *used)


def rows_of(
    case: Case, ratios: dict[str, Ratio], written: list[int], as_json: bool
) -> Iterator[tuple[dict[str, Any], Ratio]]:
    """What is shown: in JSON one object, else a line per part."""
    shown = ('forward',) if case.mode in ('forward', 'host') else PARTS
    if as_json:
        parts = {
            name: {
                'ratio': round(ratio.ratio, 4),
                'quartiles': np.round(ratio.quartiles, 4).tolist(),
            }
            for name, ratio in ratios.items()
        }
        yield {**asdict(case), 'parts': parts, 'update_bytes_written': written}, ratios[shown[0]]
        return
    stage = f'{case.space} S{case.scaling_stage}'
    size = f'{case.batch} x {case.resolution} px'
    for name in shown:
        part = name
        if name == 'update':
            own, static = (value / 1e6 for value in written)
            part = f'update ({own:.0f} / {static:.0f} MB)'
        what = dict(stage=stage, mode=case.mode, draws=case.draws, size=size, part=part)
        yield what, ratios[name]


def main() -> None:
    parser = arguments(__doc__, rounds=10)
    parser.add_argument('--space', nargs='+', choices=SPACES, default=list(SPACES))
    parser.add_argument('--scaling-stage', nargs='+', type=int, choices=range(5), default=[0, 2])
    parser.add_argument('--mode', nargs='+', choices=MODES, default=['single', 'forward', 'host'])
    parser.add_argument(
        '--channels-last', action=argparse.BooleanOptionalAction, help="default: the config's"
    )
    parser.add_argument('--bf16', action='store_true', help='bfloat16 autocast, not float32')
    # What has seen several draws comes before what repeats one.
    parser.add_argument('--draws', nargs='+', choices=DRAWS, default=['changing', 'repeated'])
    args = parser.parse_args()
    set_environment()
    torch.set_num_threads(1)
    rows = []
    comparison = None
    for case in cases(args):
        if comparison is None or comparison.space != case.space:
            comparison = None  # One super-supernet in memory at a time.
            wrapper = 'mmscale.BFloat16OptimWrapper' if args.bf16 else 'OptimWrapper'
            comparison = Comparison(
                case.space, args.device, channels_last=args.channels_last, optim_wrapper=wrapper
            )
        if case.mode != 'host':
            measured = comparison.measure(case, args.rounds)
        elif case.draws == 'new':
            continue
        else:
            measured = {'forward': comparison.measure_host(case, 2 * args.rounds)}, [0, 0]
        rows += rows_of(case, *measured, args.json)
    show(rows, args)


if __name__ == '__main__':
    main()
