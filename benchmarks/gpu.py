#!/usr/bin/env python
"""Checks and times on a GPU what runs there, in less than 8 minutes.

    python benchmarks/gpu.py                         # a table
    python benchmarks/gpu.py --device cpu --quick    # the same code on a CPU, small

Every part is a process of its own, so that an error of one, which may leave the GPU unusable for
its process, ends no other. Ratios are as the other benchmarks print them: median of pairs and
quartiles. Without a GPU it says so and ends with exit code 2.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent
SECONDS, MOST_SECONDS_OF_PART = 470, 110
# Names of what a row of a benchmark measured, and what other keys hold.
OUTCOME = {'ratio', 'quartiles', 'seconds', 'rounds', 'environment'}
OUTCOME |= {'parts', 'update_bytes_written'}
HALF = ['--bf16', '--channels-last']

Rows = Iterator[tuple[str, str]]

# Other benchmarks by what they show: the script, its arguments, and those of a quick run.
# fmt: off
SCRIPTS: dict[str, tuple[str, list[str], list[str]]] = {
    "super-supernet's step, bfloat16, channels last (goal 1.10)": (
        'super_net_step.py',
        ['--space', 'scalenet', '--mode', 'single', 'forward', '--draws', 'changing', *HALF,
         '--rounds', '20'],
        ['--space', 'digits', '--scaling-stage', '0', '--draws', 'changing', *HALF,
         '--rounds', '1'],
    ),
    'evaluation of a candidate': (
        'evaluation.py', ['--rounds', '5'], ['--rounds', '1', '--stages', '0'],
    ),
    'step of differentiable scaling': (
        'dms_step_time.py', ['--rounds', '10', '--batch', '32'],
        ['--rounds', '1', '--batch', '2', '--networks', 'ResNet-18'],
    ),
    'step of ArchNet over timm': (
        'retraining_step.py', ['--rounds', '20', '--batch', '64'],
        ['--rounds', '1', '--batch', '2', '--resolution', '64'],
    ),
}
# fmt: on


def training_modes(device: str, is_quick: bool) -> Rows:
    """A few steps of every mode in half precision: losses stay finite."""
    from super_net_step import Case, Comparison

    wrappers = {'bfloat16': 'mmscale.BFloat16OptimWrapper'}
    if device == 'cuda':
        wrappers['float16 with a scaler'] = 'AmpOptimWrapper'
    for precision, wrapper in wrappers.items():
        for mode in ('single', 'both_sides', 'sandwich'):
            comparison = Comparison('digits', device, optim_wrapper=wrapper)
            case = Case('digits', 0, mode, 'changing', 24, 8 if is_quick else 96)
            comparison.measure(case, rounds=2)
            losses = [way.loss.item() for way in comparison.ways]
            is_finite = all(map(math.isfinite, losses))
            yield f'{mode}, {precision}', 'losses agree' if is_finite else f'FAILED: {losses}'


def same_numbers(device: str, is_quick: bool) -> Rows:
    """An extracted network computes on the device what it does on a CPU."""
    from super_net_step import Case, Comparison

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    space = 'digits' if is_quick else 'scalenet'
    comparison = Comparison(space)
    side = 32 if is_quick else 224
    draw = next(comparison.draws(Case(space, 0, 'single', 'new', side, 2)))
    net = comparison.model.extract(draw.arch, draw.side).eval()
    images = torch.randn(2, draw.arch.stem.in_channels, side, side)
    with torch.inference_mode():
        wanted = net(images)
        found = net.to(device)(images.to(device)).cpu()
    difference = ((found - wanted).abs().max() / wanted.abs().max()).item()
    told = f'logits differ by {difference:.1e} of the largest'
    yield 'float32, extracted network', told if difference < 1e-3 else f'FAILED: {told}'


def latency_model(device: str, is_quick: bool) -> Rows:
    """The fit of a runtime model to networks of three rules."""
    from mmscale.apis.cost import fit_latency
    from mmscale.arch import apply_scaling, get_arch, scaling_rule

    base = get_arch('ResNet-18' if is_quick else 'EfficientNet-B0')
    factors = (0.1, 0.2) if is_quick else (1.5, 2, 4)
    archs = {
        f'{rule} {factor}': apply_scaling(base, scaling_rule(rule).scaling(factor), 'pycls')
        for rule in ('d', 'w', 'r')
        for factor in factors
    }
    size = dict(batch=1, dtype='bfloat16') if is_quick else dict(batch=64, dtype='float16')
    repeats = dict(warmup=1, repeats=1) if is_quick else dict(warmup=3, repeats=10)
    model = fit_latency(archs, device, **size, **repeats)
    correlations = ', '.join(f'{key} {value:.3f}' for key, value in model.pearson.items())
    yield f'{len(archs)} networks, {size["dtype"]}', f'median error {model.error:.1%}'
    yield "time's correlation with", correlations


def detection_ops(device: str, is_quick: bool) -> Rows:
    """mmcv's ops over torchvision's, which must give the same."""
    from paired import paired
    from torchvision import ops as theirs

    try:
        from mmcv import ops as ours
    except ImportError as error:
        yield 'mmcv', f'not run: it has no compiled ops ({error})'
        return
    torch.manual_seed(0)
    count, side = (100, 32) if is_quick else (2000, 200)
    corners = torch.rand(count, 2, device=device) * 700
    boxes = torch.cat([corners, corners + 10 + torch.rand(count, 2, device=device) * 90], dim=1)
    scores = torch.rand(count, device=device)
    features = torch.randn(1, 64, side, side, device=device)
    rois = torch.cat([torch.zeros(count, 1, device=device), boxes], dim=1)
    scale = side / 800
    pairs: dict[str, tuple[Callable[[], torch.Tensor], Callable[[], torch.Tensor]]] = {
        'nms': (
            lambda: ours.nms(boxes, scores, 0.5)[1],
            lambda: theirs.nms(boxes, scores, 0.5),
        ),
        'roi_align': (
            lambda: ours.roi_align(features, rois, (7, 7), scale, 2, 'avg', True),
            lambda: theirs.roi_align(features, rois, (7, 7), scale, 2, True),
        ),
    }
    for name, (own, other) in pairs.items():
        found, wanted = own(), other()
        is_equal = found.shape == wanted.shape and torch.allclose(
            found.float(), wanted.float(), atol=1e-4
        )
        ratio = paired(own, other, 2 if is_quick else 20, device)
        yield f"{name} over torchvision's", str(ratio) if is_equal else 'FAILED: they differ'


def one_process(device: str, is_quick: bool) -> Rows:
    """SliceParallel's step over that without it: NCCL on a GPU, gloo on a CPU."""
    from paired import paired
    from super_net_step import Case, Comparison, random_batch
    from torch import distributed

    from mmscale.engine import SliceParallel

    backend = 'nccl' if device == 'cuda' else 'gloo'
    distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)
    case = Case('digits', 0, 'single', 'changing', 24, 8 if is_quick else 96)
    ways = [Comparison('digits', device) for _ in range(2)]
    trained = [SliceParallel(ways[0].model), ways[1].model]
    draws = list(islice(ways[0].draws(case), 4))
    data = random_batch(1, 10, case, device)
    turns = [0, 0]

    def step(way: int) -> None:
        ways[way].model.set_draw(draws[turns[way] % len(draws)], ways[way].model.warmup_iters)
        trained[way].train_step(data, ways[way].step.optim_wrapper)
        turns[way] += 1

    ratio = paired(lambda: step(0), lambda: step(1), 2 if is_quick else 20, device, len(draws))
    states = [way.model.state_dict().values() for way in ways]
    difference = max(
        (one.float() - other.float()).abs().max().item()
        for one, other in zip(*states, strict=True)
    )
    told = f'weights differ by {difference:.1e}'
    yield f'SliceParallel, {backend}', told if difference < 1e-3 else f'FAILED: {told}'
    yield f'its step over one without, {backend}', str(ratio)
    distributed.destroy_process_group()


OWN: dict[str, Callable[[str, bool], Rows]] = {
    'modes': training_modes,
    'numbers': same_numbers,
    'latency model': latency_model,
    'detection ops': detection_ops,
    'one process': one_process,
}


def row_of(measured: dict[str, Any]) -> tuple[str, str]:
    """The row of what another benchmark printed as JSON."""
    name = ', '.join(str(value) for key, value in measured.items() if key not in OUTCOME)
    low, high = measured['quartiles']
    return name, f'{measured["ratio"]:.3f} [{low:.3f} {high:.3f}]'


def run_part(part: str, args: argparse.Namespace, seconds: float) -> list[tuple[str, str]]:
    """The rows of a part, which another process runs."""
    options = ['--device', args.device]
    if part in OWN:
        command = [__file__, '--part', part, *options, *(['--quick'] if args.quick else [])]
    else:
        script, full, quick = SCRIPTS[part]
        command = [str(FOLDER / script), *(quick if args.quick else full), *options, '--json']
    if seconds <= 0:
        return [('', 'not run: no time is left')]
    try:
        done = subprocess.run(
            [sys.executable, *command],
            capture_output=True,
            text=True,
            timeout=min(seconds, MOST_SECONDS_OF_PART),
        )
    except subprocess.TimeoutExpired:
        return [('', 'FAILED: it takes too long')]
    if done.returncode:
        last = done.stderr.strip().rpartition('\n')[2]
        return [('', f'FAILED with exit code {done.returncode}: {last:.200}')]
    try:
        rows = json.loads(done.stdout)
        return rows if part in OWN else [row_of(row) for row in rows]
    except (ValueError, KeyError) as error:
        return [('', f'FAILED: it printed something else than rows ({error})')]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cuda')
    parser.add_argument('--quick', action='store_true', help='small, to see that it works')
    parser.add_argument('--part', choices=OWN, help='run this alone, and print it as JSON')
    args = parser.parse_args()
    if args.device == 'cuda' and not torch.cuda.is_available():
        print(
            'gpu.py: torch finds no GPU here; `--device cpu --quick` runs the same code on a CPU',
            file=sys.stderr,
        )
        return 2
    if args.part is not None:
        from mmscale.launch.command_line import set_environment

        set_environment()
        torch.set_num_threads(1)
        print(json.dumps(list(OWN[args.part](args.device, args.quick))))
        return 0
    from paired import environment

    begin = time.perf_counter()
    print(', '.join(f'{key} {value}' for key, value in environment(args.device).items()))
    failed = 0
    for part in (*SCRIPTS, *OWN):
        print(part, flush=True)
        for name, outcome in run_part(part, args, SECONDS - time.perf_counter() + begin):
            failed += outcome.startswith('FAILED')
            print(f'  {name:60} {outcome}', flush=True)
    print(f'{time.perf_counter() - begin:.0f} seconds, {failed} failed')
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
