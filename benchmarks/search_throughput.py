#!/usr/bin/env python
"""Candidates per second of a search on two processes against one, and what the split leaves idle.

``python benchmarks/search_throughput.py configs/scalenet/search-mcea_digits.py --rounds 5``

Two processes with one thread each evaluate a batch of candidates as a search does: in turn the
first alone and both together, so that both ways meet the same machine. It needs two idle cores to
mean anything. Then the measured processor times are split over more ranks, longest first by flops
as a search does, to see what these would leave idle.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

RANKS = (2, 8, 64)
# A generation of the published schedule: 64 base models in 4 scaling stages.
GENERATION = 256


def parse_args() -> argparse.Namespace:
    """Parses the command line."""
    from mmscale.launch.command_line import add_common_arguments

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_common_arguments(parser)
    parser.add_argument('--rounds', type=int, default=5, help='of both ways each (default: 5)')
    parser.add_argument('--candidates', type=int, default=24, help='of a batch (default: 24)')
    args = parser.parse_args()
    if args.rounds < 1 or args.candidates < 2:
        parser.error('--rounds must be 1 or more, --candidates 2 or more')
    return args


def start_two() -> int:
    """Starts this script on two processes."""
    command = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', __file__]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'MKL_NUM_THREADS': '1'}
    arguments = [*sys.argv[1:], '--launcher', 'pytorch']
    return subprocess.run([sys.executable, *command, *arguments], env=environment).returncode


def idle(costs: list[float], seconds: list[float], ranks: int) -> float:
    """Share of the ranks' time that is waited, if a batch is split by costs and takes seconds."""
    from mmscale.search.scoring import split_by_cost

    shares = split_by_cost(costs, ranks)
    longest = max(sum(seconds[i] for i in share) for share in shares)
    return 1 - sum(seconds) / (ranks * longest)


def print_idle(flops: list[int], seconds: list[float]) -> None:
    """Prints what is left idle at more ranks."""
    import numpy as np

    print(f'correlation of flops and seconds: {np.corrcoef(flops, seconds)[0, 1]:.3f}')
    chosen = np.random.default_rng(0).integers(0, len(flops), GENERATION)
    batches = {
        f'{len(flops)} as measured': range(len(flops)),
        f'{GENERATION} drawn from them': chosen.tolist(),
    }
    print('idle ranks, split by flops (and if the seconds were known beforehand):')
    for title, indices in batches.items():
        own = [seconds[i] for i in indices]
        by_flops = [flops[i] for i in indices]
        known = [round(1e6 * s) for s in own]
        shares = (
            f'{ranks} ranks {idle(by_flops, own, ranks):.1%} ({idle(known, own, ranks):.1%})'
            for ranks in RANKS
        )
        print(f'  {title}: {", ".join(shares)}')


def measure(args: argparse.Namespace) -> None:
    """Measures as one of the two processes; the first prints."""
    from mmscale.launch.command_line import load_config
    from mmscale.launch.runner import build_runner
    from mmscale.search import Archive, Scorer, SingleProcess

    config = load_config(args)
    with tempfile.TemporaryDirectory() as config.work_dir:
        config.log_level = 'ERROR'
        runner = build_runner(config, 'test')
        runner.load_or_resume()
        loop = runner.test_loop
        from mmscale.engine.distributed import Ranks

        ranks, evaluator = Ranks(), loop.evaluator
        (folder,), _ = ranks.gather([config.work_dir])
        batch = max(loop.forecast().batches, key=len)[: args.candidates]
        archs = [candidate.arch for candidate in batch]
        for resolution in sorted({arch.resolution for arch in archs}):
            evaluator.prepare(resolution)
        evaluator.evaluate(archs[0])
        fingerprint = evaluator.fingerprint
        seconds: dict[str, list[float]] = defaultdict(list)
        clock = time.process_time()

        def note(arch: object, *_: object) -> None:
            nonlocal clock
            seconds[arch.digest].append(time.process_time() - clock)
            clock = time.process_time()

        def run(name: str, communicator: object) -> float:
            nonlocal clock
            ranks.gather([])
            start, clock = time.perf_counter(), time.process_time()
            if communicator.world_size == 2 or ranks.rank == 0:
                directory = Path(folder) / name
                with Archive(directory, fingerprint, communicator.rank) as archive:
                    Scorer(archive, evaluator, communicator, on_evaluated=note).score(archs)
            ranks.gather([])
            return len(archs) / (time.perf_counter() - start)

        ratios = []
        for number in range(args.rounds):
            ways = {'one': SingleProcess(), 'two': ranks}
            order = list(ways) if number % 2 == 0 else list(ways)[::-1]
            rates = {way: run(f'{way}{number}', ways[way]) for way in order}
            ratios.append(rates['two'] / rates['one'])
            if ranks.rank == 0:
                print(
                    f'round {number + 1}: one process {rates["one"]:.3f}, two {rates["two"]:.3f} '
                    f'candidates a second, {ratios[-1]:.3f} x',
                    flush=True,
                )
        if ranks.rank == 0:
            print(f'median of {args.rounds} rounds: {statistics.median(ratios):.3f} x')
            flops = [candidate.cost.flops for candidate in batch]
            print_idle(flops, [statistics.median(seconds[arch.digest]) for arch in archs])


def main() -> None:
    """Starts two processes, or is one of them."""
    from mmscale.launch.runner import run_tool

    args = parse_args()
    if 'RANK' not in os.environ:
        sys.exit(start_two())
    run_tool(lambda: measure(args))


if __name__ == '__main__':
    main()
