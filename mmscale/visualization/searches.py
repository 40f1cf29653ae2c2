"""Pictures of a search: its chain of states, its populations, its front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mmscale.arch import Scaling
from mmscale.errors import UsageError
from mmscale.visualization.style import (
    BLUE,
    GREEN,
    GREY,
    LIGHT_GREY,
    ORANGE,
    PURPLE,
    VERMILION,
    cost_axis,
    headline,
    literal,
    new_figure,
    short,
    stage_colours,
    tidy,
)

_MOST_NUMBERS = 24
_MOST_LEVEL = 8
_MOST_PARTS = 200
# What is named: kinds of chain steps, parts of a search, scaling stages.
_MOST_NAMED = 12
# More dots than these are pixels in an SVG too: it would have megabytes.
_MOST_SHAPES = 3000
_MARKERS = {
    'base evolution': ('o', BLUE),
    'scaling search': ('s', VERMILION),
    'random family': ('^', GREEN),
    'random network': ('^', GREEN),
}


@dataclass(frozen=True)
class ChainPoint:
    """A state of a search.

    Attributes:
        kind: What led to it, for example ``base evolution``.
        evaluations: Distinct networks scored until then.
        fitness: Its fitness, or None before there is a base model.
        strategy: One Scaling per scaling stage.
    """

    kind: str
    evaluations: int
    fitness: float | None
    strategy: tuple[Scaling, ...]


@dataclass(frozen=True)
class PopulationPoint:
    """The survivors of a generation.

    Attributes:
        part: What the generation belongs to, for example ``round 1``.
        fitness: Fitness of every survivor.
        costs: Cost of every survivor.
    """

    part: str
    fitness: tuple[float, ...]
    costs: tuple[float, ...]


@dataclass(frozen=True)
class FrontPoint:
    """A scored network.

    Attributes:
        cost: Its cost.
        score: Its score, between 0 and 1.
        scaling_stage: Its scaling stage, or None if that is not known.
    """

    cost: float
    score: float
    scaling_stage: int | None = None


def plot_chain(chain: Sequence[ChainPoint], title: str) -> Figure:
    """Draws the fitness of every chain step, and below it the multipliers of every scaling stage.

    Where there is no scaling stage but the base model's, there is nothing below it.

    Args:
        chain: The steps, in order.
        title: Title of the picture.

    Raises:
        ValueError: The chain has no step.
    """
    if not chain:
        raise UsageError('the chain has no step to draw')
    stages = min(max(len(point.strategy) for point in chain), _MOST_NAMED)
    figure = new_figure(9, 6.2 if stages > 1 else 3.6)
    grid = figure.add_gridspec(2, 3, height_ratios=[1.1, 1]) if stages > 1 else None
    axes = figure.subplots() if grid is None else figure.add_subplot(grid[0, :])
    scored = [point for point in chain if point.fitness is not None]
    evaluations = [point.evaluations for point in scored]
    fitness = [100 * point.fitness for point in scored]
    axes.step(evaluations, fitness, where='post', color=GREY, linewidth=1.2)
    for kind in islice(dict.fromkeys(point.kind for point in scored), _MOST_NAMED):
        marker, colour = _MARKERS.get(kind, ('D', PURPLE))
        points = [point for point in scored if point.kind == kind]
        axes.plot(
            [point.evaluations for point in points],
            [100 * point.fitness for point in points],
            marker=marker,
            linestyle='none',
            color=colour,
            label=f'after {literal(kind)}',
        )
    _number(axes, chain)
    tidy(
        axes,
        'distinct networks evaluated',
        'fitness (%)',
        'Fitness of the state, by number of chain step',
    )
    axes.margins(y=0.15)
    if scored:
        axes.legend(fontsize=8, loc='lower right')
    else:
        axes.text(0.5, 0.5, 'no base model yet', transform=axes.transAxes, ha='center')
    headline(figure, title)
    if grid is None:
        return figure
    for column, key in enumerate(('depth', 'width', 'resolution')):
        _strategy_panel(figure.add_subplot(grid[1, column]), chain, key, stages)
    handles, labels = figure.axes[-1].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc='outside lower center',
        ncols=min(len(labels), 6),
        fontsize=8,
        frameon=False,
        title='scaling stage',
        title_fontsize=8,
    )
    return figure


def _number(axes: Axes, chain: Sequence[ChainPoint]) -> None:
    """Writes beside the marks which chain steps they are; many are not numbered."""
    steps: dict[tuple[int, float], list[int]] = {}
    for step, point in enumerate(chain):
        if point.fitness is not None:
            steps.setdefault((point.evaluations, 100 * point.fitness), []).append(step)
    if len(steps) > _MOST_NUMBERS:
        return
    for place, numbers in steps.items():
        axes.annotate(
            ', '.join(map(str, numbers)),
            place,
            xytext=(0, 7),
            textcoords='offset points',
            ha='center',
            fontsize=8,
        )


def _strategy_panel(axes: Axes, chain: Sequence[ChainPoint], key: str, stages: int) -> None:
    steps = list(range(len(chain)))
    for j, colour in enumerate(stage_colours(stages)):
        values = [
            getattr(point.strategy[j], key) if j < len(point.strategy) else float('nan')
            for point in chain
        ]
        axes.plot(steps, values, marker='.', color=colour, label=str(j))
    tidy(axes, 'chain step', 'multiplier', key.capitalize())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.margins(y=0.1)


def plot_population(
    generations: Sequence[PopulationPoint],
    title: str,
    cost_name: str = 'cost',
    budget: tuple[float, float] | None = None,
) -> Figure:
    """Draws fitness and cost of the survivors over the generations.

    Args:
        generations: In order.
        title: Title of the picture.
        cost_name: Name and unit of the cost.
        budget: Smallest and largest cost that is allowed, drawn as a band.

    Raises:
        ValueError: There is no generation.
    """
    if not generations:
        raise UsageError('there is no generation to draw')
    figure = new_figure(9, 6)
    above, below = panels = figure.subplots(2, 1, sharex=True)
    numbers = list(range(1, len(generations) + 1))
    fitness = [[100 * value for value in g.fitness] for g in generations]
    costs = [g.costs for g in generations]
    for axes, columns in ((above, fitness), (below, costs)):
        _dots(axes, columns, 'a survivor')
        axes.plot(numbers, list(map(median, columns)), color=ORANGE, marker='.', label='median')
    above.plot(numbers, list(map(max, fitness)), color=BLUE, marker='.', label='best')
    tidy(above, '', 'fitness (%)', 'Fitness of the survivors')
    flat = [value for values in costs for value in values]
    if budget is not None:
        below.axhspan(*budget, color=GREEN, alpha=0.12, label='allowed cost', linewidth=0)
    if max(flat) > 3 * min(flat):
        cost_axis(below, flat, 'y')
    else:
        below.yaxis.set_major_formatter(lambda value, _: short(value))
    tidy(below, 'generation', cost_name, 'Cost of the survivors')
    for axes in panels:
        axes.set_xlim(0.5, len(generations) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        _parts(axes, [generation.part for generation in generations], named=axes is above)
    named = {
        label: handle
        for axes in panels
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        named.values(),
        named.keys(),
        loc='outside lower center',
        ncols=len(named),
        fontsize=8,
        frameon=False,
    )
    headline(figure, title)
    return figure


def _dots(axes: Axes, columns: Sequence[Sequence[float]], label: str) -> None:
    """All values of every generation, beside each other so that equal ones can be counted."""
    x, y = [], []
    for number, values in enumerate(columns, start=1):
        for place, value in enumerate(sorted(values)):
            x.append(number + 0.5 * ((place + 0.5) / len(values) - 0.5))
            y.append(value)
    axes.scatter(
        x,
        y,
        s=12,
        color=LIGHT_GREY,
        edgecolors='0.35',
        linewidths=0.5,
        label=label,
        rasterized=len(x) > _MOST_SHAPES,
    )


def _parts(axes: Axes, parts: Sequence[str], named: bool) -> None:
    """Lines between the parts of a search, in one of the panels with their names."""
    starts = [i for i in range(len(parts)) if i == 0 or parts[i] != parts[i - 1]]
    if len(starts) > _MOST_PARTS:
        return
    for i in starts[1:]:
        axes.axvline(i + 0.5, color=GREY, linewidth=0.8, linestyle=':')
    if len(starts) < 2 or not named:
        return
    many = len(starts) > _MOST_LEVEL
    # Room for the names above the data.
    axes.margins(y=0.6 if many else 0.15)
    for i in starts:
        axes.annotate(
            literal(parts[i], 40),
            (i + 0.5, 1),
            xycoords=('data', 'axes fraction'),
            xytext=(4, -2),
            textcoords='offset points',
            fontsize=7.5,
            color='0.35',
            va='top',
            rotation=90 if many else 0,
        )


def plot_front(
    evaluated: Sequence[FrontPoint],
    front: Sequence[FrontPoint],
    title: str,
    cost_name: str,
    family: Sequence[FrontPoint] = (),
    hypervolume: Sequence[float] = (),
) -> Figure:
    """Draws scores against costs: all that was evaluated, and what nothing dominates.

    Args:
        evaluated: All scored networks.
        front: Those that no other dominates, by rising cost.
        title: Title of the picture.
        cost_name: Name and unit of the cost.
        family: The networks that the search chose, marked with their scaling stages; without any
            it is a network alone.
        hypervolume: Of all that was scored until each generation; drawn beside it if given.

    Raises:
        ValueError: No network was evaluated yet.
    """
    if not evaluated:
        raise UsageError('no network was evaluated yet')
    figure = new_figure(11 if hypervolume else 7.5, 4.6)
    if hypervolume:
        axes, beside = figure.subplots(1, 2, gridspec_kw=dict(width_ratios=[2.2, 1]))
        numbers = list(range(1, len(hypervolume) + 1))
        beside.plot(numbers, hypervolume, color=BLUE, marker='.')
        tidy(beside, 'generation', 'hypervolume', 'Mean best score over all budgets')
        beside.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    else:
        axes = figure.subplots()
    axes.scatter(
        [point.cost for point in evaluated],
        [100 * point.score for point in evaluated],
        s=12,
        color=LIGHT_GREY,
        edgecolors=GREY,
        linewidths=0.5,
        label=f'evaluated ({len(evaluated)})',
        rasterized=len(evaluated) > _MOST_SHAPES,
    )
    axes.step(
        [point.cost for point in front],
        [100 * point.score for point in front],
        where='post',
        color=GREY if any(p.scaling_stage is not None for p in front) else BLUE,
        linewidth=1.3,
        marker=None if any(p.scaling_stage is not None for p in front) else '.',
        label=f'not dominated ({len(front)})',
        zorder=3,
    )
    stages = sorted({point.scaling_stage for point in front if point.scaling_stage is not None})
    colours = stage_colours(max(stages, default=0) + 1)
    for j in stages[:_MOST_NAMED]:
        points = [point for point in front if point.scaling_stage == j]
        axes.scatter(
            [point.cost for point in points],
            [100 * point.score for point in points],
            s=34,
            color=[colours[j]],
            edgecolors='black',
            linewidths=0.5,
            label=f'scaling stage {j}',
            zorder=4,
        )
    if family:
        staged = [point for point in family if point.scaling_stage is not None]
        axes.plot(
            [point.cost for point in family],
            [100 * point.score for point in family],
            linestyle='none',
            marker='*',
            markersize=12,
            color=VERMILION,
            markeredgecolor='black',
            markeredgewidth=0.5,
            label='the family found' if staged else 'the network found',
            zorder=5,
        )
        for point in staged[:_MOST_NAMED]:
            axes.annotate(
                f'S{point.scaling_stage}',
                (point.cost, 100 * point.score),
                xytext=(0, 9),
                textcoords='offset points',
                ha='center',
                fontsize=8,
            )
    cost_axis(axes, [point.cost for point in evaluated])
    tidy(axes, cost_name, 'score (%)')
    axes.legend(fontsize=8, loc='lower right')
    headline(figure, title)
    return figure
