"""What hierarchical sampling draws, counted against what is to be expected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from mmscale.arch import HierarchicalSampler
from mmscale.visualization.histograms import Histogram


def sampling_histograms(
    sampler: HierarchicalSampler, iterations: Sequence[int]
) -> list[Histogram]:
    """What a sampler draws in these iterations, and what is to be expected of it.

    Args:
        sampler: Its draws are a pure function of its seed and the iteration.
        iterations: The iterations to draw again.
    """
    space = sampler.space
    draws = [sampler.draw(iteration) for iteration in iterations]
    warmup = sum(iteration < sampler.warmup_iters for iteration in iterations)
    stages = sampler.probabilities * (len(draws) - warmup)
    stages[sampler.warmup_scaling_stage] += warmup
    names = [f'{j}' for j in range(len(stages))]
    histograms = [
        Histogram(
            'Scaling stage',
            'scaling stage',
            'iterations',
            Counter(f'{draw.scaling_stage}' for draw in draws),
            dict(zip(names, stages.tolist(), strict=True)),
        )
    ]
    drawn = {
        'depth': [draw.scaling.depth for draw in draws],
        'width': [draw.scaling.width for draw in draws],
        'resolution': [draw.arch.resolution for draw in draws],
    }
    labels = {'depth': 'multiplier', 'width': 'multiplier', 'resolution': 'side (px)'}
    for key, values in drawn.items():
        expected: Counter[float] = Counter()
        for choices, share in zip(space.scaling_stages, stages, strict=True):
            options = getattr(choices, key)
            for option in options:
                expected[option] += share / len(options)
        histograms.append(
            Histogram(
                key.capitalize(),
                labels[key],
                'iterations',
                {f'{value:g}': count for value, count in Counter(values).items()},
                {f'{value:g}': expected[value] for value in sorted(expected)},
            )
        )
    genes = np.array([draw.genotype.genes for draw in draws])
    depths = space.depths(genes)
    blocks: Counter[str] = Counter()
    wanted: dict[str, float] = {}
    kernels: Counter[int] = Counter()
    likely: Counter[int] = Counter()
    for i, choices in enumerate(space.stages):
        for depth in choices.depths:
            blocks[f'{i + 1}:{depth}'] = int((depths[:, i] == depth).sum())
            wanted[f'{i + 1}:{depth}'] = len(draws) / len(choices.depths)
        live = (space.gene_stage == i) & (space.gene_slot >= 0)
        live = live & (space.gene_slot < depths[:, i : i + 1])
        found = np.bincount(genes[live], minlength=len(choices.kernels))
        for kernel, number in zip(choices.kernels, found.tolist(), strict=True):
            kernels[kernel] += number
            blocks_drawn = len(draws) * float(np.mean(choices.depths))
            likely[kernel] += blocks_drawn / len(choices.kernels)
    histograms.append(
        Histogram('Base depth', 'network stage:blocks', 'iterations', blocks, wanted)
    )
    histograms.append(
        Histogram(
            'Kernels of the base model',
            'kernel',
            'blocks',
            {f'{kernel}': kernels[kernel] for kernel in sorted(kernels)},
            {f'{kernel}': likely[kernel] for kernel in sorted(likely)},
        )
    )
    return histograms
