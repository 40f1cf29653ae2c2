"""Pictures of searches show the values they were given, and leave no global state."""

import sys

import numpy as np
import pytest

from mmscale.arch import Scaling
from mmscale.visualization import (
    ChainPoint,
    FrontPoint,
    Histogram,
    PopulationPoint,
    plot_chain,
    plot_front,
    plot_histograms,
    plot_population,
)
from mmscale.visualization.style import short

STRATEGY = (Scaling(), Scaling(1.2, 1.1, 1.5))
CHAIN = [
    ChainPoint('initial strategy', 8, None, STRATEGY),
    ChainPoint('base evolution', 20, 0.5, STRATEGY),
    ChainPoint('scaling search', 25, 0.75, (Scaling(), Scaling(1.4, 1.0, 1.25))),
]


def line_of(axes, label):
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return [list(map(float, values)) for values in line.get_data()]


def band_labels(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_chain_shows_fitness_and_strategies():
    figure = plot_chain(CHAIN, 'title')
    state, *panels = figure.axes
    assert line_of(state, 'after base evolution') == [[20], [50]]
    assert line_of(state, 'after scaling search') == [[25], [75]]
    assert [text.get_text() for text in state.texts] == ['1', '2']
    assert [panel.get_title(loc='left') for panel in panels] == ['Depth', 'Width', 'Resolution']
    multipliers = [1.2, 1.2, 1.4], [1.1, 1.1, 1], [1.5, 1.5, 1.25]
    for panel, values in zip(panels, multipliers, strict=True):
        assert line_of(panel, '0') == [[0, 1, 2], [1, 1, 1]]
        assert line_of(panel, '1') == [[0, 1, 2], values]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ['0', '1']


def test_a_chain_without_a_base_model_says_so():
    state = plot_chain(CHAIN[:1], 'title').axes[0]
    assert [text.get_text() for text in state.texts] == ['no base model yet']


def test_a_long_chain_is_not_numbered():
    chain = [ChainPoint('random family', i, i / 100, STRATEGY) for i in range(60)]
    assert not plot_chain(chain, 'title').axes[0].texts


def test_population_shows_every_survivor():
    generations = [
        PopulationPoint('round 1', (0.25, 0.5, 0.75), (100, 110, 120)),
        PopulationPoint('round 1', (0.5, 0.5, 0.75), (100, 110, 90)),
        PopulationPoint('round 2', (0.5,), (130,)),
    ]
    fitness, cost = plot_population(generations, 'title', 'flops', (95, 125)).axes
    assert line_of(fitness, 'best') == [[1, 2, 3], [75, 75, 50]]
    assert line_of(fitness, 'median') == [[1, 2, 3], [50, 50, 50]]
    assert line_of(cost, 'median') == [[1, 2, 3], [110, 100, 130]]
    for axes, values in ((fitness, [25, 50, 75, 50, 50, 75, 50]), (cost, None)):
        (dots,) = axes.collections
        assert len(dots.get_offsets()) == 7
        if values:
            assert dots.get_offsets()[:, 1].tolist() == values
        # A generation's dots lie around its number and do not reach the next one's.
        assert np.round(dots.get_offsets()[:, 0]).tolist() == [1, 1, 1, 2, 2, 2, 3]
    labels = [text.get_text() for text in cost.figure.legends[0].get_texts()]
    assert labels == ['a survivor', 'median', 'best', 'allowed cost']
    assert [text.get_text() for text in fitness.texts] == ['round 1', 'round 2']
    assert cost.get_ylabel() == 'flops'


def test_front_shows_points_front_and_family():
    evaluated = [FrontPoint(10.0 * i, i / 10) for i in range(1, 6)]
    front = [FrontPoint(10, 0.2, 0), FrontPoint(40, 0.5, 2)]
    family = [FrontPoint(20, 0.3, 1)]
    figure = plot_front(evaluated, front, 'title', 'flops', family, [0.1, 0.2])
    axes, volume = figure.axes
    every, *stages = axes.collections
    assert every.get_offsets().tolist() == [[10 * i, 10 * i] for i in range(1, 6)]
    assert [points.get_offsets().tolist() for points in stages] == [[[10, 20]], [[40, 50]]]
    assert line_of(axes, 'not dominated (2)') == [[10, 40], [20, 50]]
    assert line_of(axes, 'the family found') == [[20], [30]]
    assert [text.get_text() for text in axes.texts] == ['S1']
    assert band_labels(axes)[:2] == ['evaluated (5)', 'not dominated (2)']
    assert list(volume.lines[0].get_ydata()) == [0.1, 0.2]
    assert axes.get_xscale() == 'log' and axes.get_xlabel() == 'flops'


@pytest.mark.parametrize('costs', [[5.0], [1e6, 1.0001e6], [0.2, 3.0], [1e3, 1e12]])
def test_cost_axes_have_few_ticks_whatever_the_range(costs):
    evaluated = [FrontPoint(cost, 0.5) for cost in costs]
    figure = plot_front(evaluated, evaluated[:1], 'title', 'flops')
    assert 1 <= len(figure.axes[0].get_xticks()) <= 12
    figure.canvas.draw()


def test_histograms_show_counts_and_expectations():
    histograms = [
        Histogram('A', 'a', 'n', {'2': 3, '1': 4}, {'1': 3.5, '2': 2.5, '3': 1}),
        Histogram('B', 'b', 'm', {'x': 1, 'y': 2}),
    ]
    figure = plot_histograms(histograms, 'title')
    first, second = figure.axes
    assert [bar.get_height() for bar in first.patches] == [4, 3, 0]
    assert list(first.lines[0].get_ydata()) == [3.5, 2.5, 1]
    assert [label.get_text() for label in first.get_xticklabels()] == ['1', '2', '3']
    assert [bar.get_height() for bar in second.patches] == [1, 2] and not second.lines
    assert (first.get_ylabel(), second.get_ylabel()) == ('n', 'm')
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ['drawn', 'expected']


def test_nothing_to_draw_is_an_error():
    for draw in (plot_chain, plot_population, plot_histograms):
        with pytest.raises(ValueError, match=r'there is no|no step'):
            draw([], 'title')
    with pytest.raises(ValueError, match='no network'):
        plot_front([], [], 'title', 'flops')


def test_costs_are_written_short():
    assert [short(v) for v in (0.5, 950, 1e3, 1.234e6, 2e9)] == [
        '0.5', '950', '1 k', '1.23 M', '2 G'
    ]  # fmt: skip


def test_pyplot_is_left_alone():
    def figures():
        pyplot = sys.modules.get('matplotlib.pyplot')
        return [] if pyplot is None else pyplot.get_fignums()

    before = figures()
    plot_chain(CHAIN, 'title').canvas.draw()
    assert figures() == before
