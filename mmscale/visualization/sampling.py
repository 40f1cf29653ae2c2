"""What hierarchical sampling draws, counted against what is to be expected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from mmscale.arch import HierarchicalSampler, SearchSpace
from mmscale.arch.genes import Genes, StageGenes
from mmscale.arch.options import BlockOptions
from mmscale.search.varied import BLOCK_WORDS, by_size, varied
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
    histograms = []
    if len(stages) > 1:
        names = [f'{j}' for j in range(len(stages))]
        histograms.append(
            Histogram(
                'Scaling stage',
                'scaling stage',
                'iterations',
                Counter(f'{draw.scaling_stage}' for draw in draws),
                dict(zip(names, stages.tolist(), strict=True)),
            )
        )
        for key in ('depth', 'width'):
            options = [getattr(choices, key) for choices in space.scaling_stages]
            drawn = [getattr(draw.scaling, key) for draw in draws]
            histograms.append(
                _numbers(key.capitalize(), 'multiplier', drawn, zip(options, stages, strict=True))
            )
    pixels = [_resolutions(space, j) for j in range(len(stages))]
    drawn = [draw.arch.resolution for draw in draws]
    histograms.append(_numbers('Resolution', 'side (px)', drawn, zip(pixels, stages, strict=True)))
    return histograms + _base_histograms(
        space, np.array([draw.genotype.genes for draw in draws], dtype=np.int64)
    )


def _resolutions(space: SearchSpace, scaling_stage: int) -> list[int]:
    """Resolutions of a scaling stage, each as likely: of all base models under all choices."""
    choices = space.scaling_stages[scaling_stage].resolution
    pairs = product(
        space.ends.choices['resolution'], choices if scaling_stage else (space.resolution,)
    )
    return [
        space.rounding.resolution(base, space.scaling(1, 1, pixels).resolution)
        for base, pixels in pairs
    ]


def _numbers(
    title: str,
    xlabel: str,
    drawn: Iterable[float],
    choices: Iterable[tuple[Sequence[float], float]],
) -> Histogram:
    """Counts of numbers, each of the choices of a scaling stage as often as any other."""
    expected: Counter[float] = Counter()
    for options, share in choices:
        for option in options:
            expected[option] += share / len(options)
    return Histogram(
        title,
        xlabel,
        'iterations',
        {f'{value:g}': count for value, count in Counter(drawn).items()},
        {f'{value:g}': expected[value] for value in sorted(expected)},
    )


# ---------------------------------------------------------------------- base models


def _base_histograms(space: SearchSpace, genes: Genes) -> list[Histogram]:
    """What base models are drawn: a panel per name of a gene, with a bar per network stage."""
    number, chosen = len(genes), varied(space)
    depths = space.depths(genes)
    blocks: Counter[str] = Counter()
    wanted: dict[str, float] = {}
    shares = [_depth_shares(stage) for stage in space.stage_genes]
    for i, (stage, own) in enumerate(zip(space.stages, shares, strict=True)):
        for depth, share in zip(stage.depths, own.tolist(), strict=True):
            blocks[f'{i + 1}:{depth}'] = int((depths[:, i] == depth).sum())
            wanted[f'{i + 1}:{depth}'] = number * share
    found = [Histogram('Base depth', 'network stage:blocks', 'iterations', blocks, wanted)]
    for name, (title, _) in BLOCK_WORDS.items():
        if name == 'kernel' or name in chosen:
            counts, expected = _block_counts(space, genes, shares, name)
            label = f'network stage:{name.replace("_", " ")}'
            found.append(
                Histogram(
                    f'{_capital(title)} of the base model', label, 'blocks', counts, expected
                )
            )
    for title, columns in _width_genes(space).items():
        counts, expected = Counter(), {}
        for column, prefix in columns:
            values = space.genes[column].values
            for value, count in zip(
                values, np.bincount(genes[:, column], minlength=len(values)).tolist(), strict=True
            ):
                counts[f'{prefix}{value}'] = count
                expected[f'{prefix}{value}'] = number / len(values)
        is_staged = title == 'channels'
        xlabel = 'network stage:channels' if is_staged else 'channels'
        found.append(Histogram(_capital(title), xlabel, 'iterations', counts, expected))
    return found


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _width_genes(space: SearchSpace) -> dict[str, list[tuple[int, str]]]:
    """Columns of genes of widths by their title, with what stands before their values."""
    found: dict[str, list[tuple[int, str]]] = {}
    titles = {'stem': 'stem', 'head_channels': 'head', 'head_hidden_channels': 'hidden head'}
    for column, gene in enumerate(space.genes):
        if gene.name == 'channels':
            found.setdefault('channels', []).append((column, f'{gene.stage + 1}:'))
        elif gene.name in titles:
            found[titles[gene.name]] = [(column, '')]
    return found


def _depth_shares(stage: StageGenes) -> NDArray[np.float64]:
    """How often each depth of a network stage is drawn."""
    if stage.choices.skips == 'anywhere':
        return stage.skip_shares
    return np.full(len(stage.choices.depths), 1 / len(stage.choices.depths))


def _block_counts(
    space: SearchSpace, genes: Genes, shares: Sequence[NDArray[np.float64]], name: str
) -> tuple[dict[str, float], dict[str, float]]:
    """How many blocks of the base models are which, and how many are expected."""
    counts: Counter[str] = Counter()
    expected: Counter[str] = Counter()
    for i, (stage, own) in enumerate(zip(space.stage_genes, shares, strict=True)):
        depths = stage.depths(genes)
        for slot in range(len(stage.columns)):
            used = genes[slot < depths]
            options = stage.options(slot)
            words = _words(options, name)
            drawn = words[(*stage.widths(used, slot), stage.option(used, slot))]
            for word, count in zip(*np.unique(drawn, return_counts=True), strict=True):
                counts[f'{i + 1}:{word}'] += int(count)
            # All widths and all choices of a block are as likely as any other.
            likely = len(genes) * own[np.array(stage.choices.depths) > slot].sum() / words.size
            for word, count in zip(*np.unique(words, return_counts=True), strict=True):
                expected[f'{i + 1}:{word}'] += float(likely * count)
    return dict(counts), {word: expected[word] for word in sorted(expected, key=_place)}


def _words(options: BlockOptions, name: str) -> NDArray[np.str_]:
    """What every option of a place is, shape (input widths, widths, options)."""
    word = BLOCK_WORDS[name][1]
    return np.array([word(block) for block in options.blocks]).reshape(options.shape)


def _place(label: str) -> tuple[int, tuple[float, str]]:
    """Orders labels by network stage, then by what was drawn."""
    stage, _, word = label.partition(':')
    return int(stage), by_size(word)
