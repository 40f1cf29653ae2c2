"""A small search problem with an analytic score, and a command that searches it.

The command is what the kill-and-resume tests start, kill and start again:
``python analytic_problem.py WORK_DIR [--ranks N] [--surrogate] [--kill MOMENT:NUMBER]``.
"""

import argparse
import functools
import json
import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from mmscale.arch import SearchSpace
from mmscale.cost import CostTable
from mmscale.search import MCEA, Archive, FamilyFitness, Feasibility, Score, Scorer

BUDGET = 600_000
TOLERANCE = 0.1
TOTAL = 100_000


@functools.cache
def small_space():
    """1,176 base models, three scaling stages."""
    return SearchSpace(
        stages=[
            dict(channels=8, stride=1, expand=1, depths=[1, 2], kernels=[3, 5]),
            dict(channels=12, stride=2, expand=4, depths=[1, 2, 3], kernels=[3, 5]),
            dict(channels=24, stride=2, expand=4, depths=[1, 2, 3], kernels=[3, 5]),
        ],
        scaling_stages=[
            dict(depth=[1], width=[1], resolution=[32]),
            dict(depth=[1, 1.2, 1.4, 1.5], width=[1, 1.1, 1.2, 1.3], resolution=[32, 36, 40, 44]),
            dict(depth=[1.4, 1.5, 2], width=[1.1, 1.2, 1.3, 1.5], resolution=[40, 44, 48, 52]),
        ],
        stem=dict(channels=8),
        head=dict(channels=32),
        num_classes=10,
        in_channels=1,
    )


@functools.cache
def small_feasibility():
    return Feasibility(CostTable(small_space()), BUDGET, tolerance=TOLERANCE)


def all_genotypes(space):
    """Every canonical genotype, shape (space.size, genes)."""
    grids = np.meshgrid(*[np.arange(n) for n in space.num_choices], indexing='ij')
    raw = np.stack([grid.ravel() for grid in grids], axis=1)
    return np.unique(space.canonicalise(raw), axis=0)


def analytic_score(arch):
    """Rewards a mix of kernels, depth late, and a balance of depth, width and resolution."""
    kernels = [block.kernel for block in arch.blocks]
    mix = min(kernels.count(3), kernels.count(5))
    late = sum(len(stage) * (i + 1) for i, stage in enumerate(arch.stages))
    depth, width = len(kernels), sum(arch.widths)
    balance = min(depth * 10, width, arch.resolution * 2)
    return Score(20_000 + 2_500 * mix + 600 * late + 150 * balance + 7 * arch.resolution, TOTAL)


class AnalyticEvaluator:
    """Scores by formula, and remembers what it was asked for."""

    fingerprint = {'evaluator': {'name': 'analytic', 'total': TOTAL}}

    def __init__(self):
        self.digests = []

    def evaluate(self, arch):
        self.digests.append(arch.digest)
        return analytic_score(arch)


def make_family(weights=None):
    return FamilyFitness(small_feasibility(), weights)


def make_scorer(directory, evaluator=None, communicator=None, progress=None):
    evaluator = evaluator or AnalyticEvaluator()
    rank = communicator.rank if communicator else 0
    archive = Archive(directory, evaluator.fingerprint, rank)
    return Scorer(archive, evaluator, communicator, progress)


@functools.cache
def optimum():
    """The best fitness of any (base, strategy): brute force, stage by stage per base model."""
    space, feasibility = small_space(), small_feasibility()
    genotypes = all_genotypes(space)
    genotypes = genotypes[feasibility.base_feasible(genotypes)]
    best = {}
    for j in (1, 2):
        for scaling in space.scalings(j):
            for i in np.flatnonzero(feasibility.scaled_feasible(genotypes, j, scaling)):
                value = analytic_score(space.decode(genotypes[i], scaling)).value
                best[i, j] = max(value, best.get((i, j), 0))
    return max(
        (value + best[i, 2]) / 2 for (i, j), value in best.items() if j == 1 and (i, 2) in best
    )


class ThreadCommunicator:
    """Ranks that are threads of one process."""

    def __init__(self, rank, board, barrier):
        self.rank, self.board, self.barrier = rank, board, barrier
        self.world_size = len(board)

    @classmethod
    def world(cls, size):
        board, barrier = [None] * size, threading.Barrier(size, timeout=60)
        return [cls(rank, board, barrier) for rank in range(size)]

    def gather(self, items):
        self.board[self.rank] = items
        self.barrier.wait()
        gathered = list(self.board)
        self.barrier.wait()
        return gathered


def run_ranks(size, work):
    """Runs work(communicator) in a thread per rank and returns what each rank returned."""

    def guarded(communicator):
        failed = True
        try:
            result = work(communicator)
            failed = False
            return result
        finally:
            if failed:
                communicator.barrier.abort()

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(guarded, ThreadCommunicator.world(size)))


class PipeCommunicator:
    """Ranks that are processes, each joined by a pipe to rank 0, which has one to every other."""

    def __init__(self, rank, pipes, world_size):
        self.rank, self.pipes, self.world_size = rank, pipes, world_size

    def gather(self, items):
        if self.rank:
            self.pipes[0].send(items)
            return self.pipes[0].recv()
        everything = [items, *(pipe.recv() for pipe in self.pipes)]
        for pipe in self.pipes:
            pipe.send(everything)
        return everything


class KillingEvaluator(AnalyticEvaluator):
    """Logs every evaluation on disk, and is killed inside the one of a given number."""

    def __init__(self, log, number):
        super().__init__()
        self.log, self.number = log, number

    def evaluate(self, arch):
        with self.log.open('a') as file:
            file.write(arch.digest + '\n')
        if len(self.digests) + 1 == self.number:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().evaluate(arch)


def kill_in_append(number, part):
    """Kills this process when the given write to the archive is as far as `part` of it."""
    write, calls = os.write, iter(range(1, sys.maxsize))

    def killing_write(descriptor, data):
        if next(calls) != number:
            return write(descriptor, data)
        write(descriptor, data[: int(len(data) * part)])
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    os.write = killing_write


def search(work_dir, communicator=None, kill=None, seed=0, surrogate=False):
    moment, number = kill or (None, 0)
    if moment in ('append', 'appended'):
        kill_in_append(number, 0.5 if moment == 'append' else 1)
    rank = communicator.rank if communicator else 0
    log = work_dir / f'evaluated{rank}.txt'
    evaluator = KillingEvaluator(log, number if moment == 'evaluation' else 0)
    scorer = make_scorer(work_dir / 'archive', evaluator, communicator)
    found = MCEA(make_family(), 8, 5, rounds=2, num_base_models=4, seed=seed)
    if surrogate:
        found = MCEA(make_family(), evaluations=90, seed=seed)
    result = found.run(scorer)
    if rank == 0:
        (work_dir / 'result.json').write_text(json.dumps(result.to_json(), indent=1))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('work_dir', type=Path)
    parser.add_argument('--ranks', type=int, default=1)
    parser.add_argument('--surrogate', action='store_true')
    parser.add_argument('--kill', help='evaluation:N, append:N or appended:N')
    args = parser.parse_args()
    kill = None
    if args.kill:
        moment, _, number = args.kill.partition(':')
        kill = moment, int(number)
    if args.ranks == 1:
        search(args.work_dir, kill=kill, surrogate=args.surrogate)
        return
    pipes, children = [], []
    for rank in range(1, args.ranks):
        mine, theirs = multiprocessing.Pipe()
        pid = os.fork()
        if pid == 0:
            for pipe in [mine, *pipes]:
                pipe.close()
            communicator = PipeCommunicator(rank, [theirs], args.ranks)
            own_kill = kill if rank == args.ranks - 1 else None
            try:
                search(args.work_dir, communicator, own_kill, surrogate=args.surrogate)
            finally:
                os._exit(0)
        theirs.close()
        pipes.append(mine)
        children.append(pid)
    try:
        communicator = PipeCommunicator(0, pipes, args.ranks)
        search(args.work_dir, communicator, surrogate=args.surrogate)
    finally:
        for pipe in pipes:
            pipe.close()
        for pid in children:
            os.waitpid(pid, 0)


if __name__ == '__main__':
    main()
