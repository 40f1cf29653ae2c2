"""The picture of scaling strategies."""

from mmscale.visualization.scalings import ScalingPoint, plot_scalings


def test_times_are_a_second_panel_where_all_are_known():
    base = ScalingPoint('base', 1e8, 1e6, 5.0)
    scaled = [ScalingPoint('w', 2e8, 1.4e6, 7.0), ScalingPoint('d', 2e8, 2e6, 9.0)]
    assert len(plot_scalings(base, scaled, 'title', 'batch 1').axes) == 2
    untimed = [*scaled, ScalingPoint('r', 2e8, 2e6)]
    figure = plot_scalings(base, untimed, 'title')
    assert len(figure.axes) == 1
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ['w', 'd', 'r', 'base']


def test_what_was_asked_for_is_marked_and_nothing_else():
    base = ScalingPoint('base', 1e8, 1e6, 5.0)
    sweep = [ScalingPoint('w', 2e8, 1.4e6, 7.0), ScalingPoint('d', 9e8, 2e6, 9.0)]
    asked = [ScalingPoint('dWr', 3.9e8, 1.6e6, 8.0, 4), ScalingPoint('r', 2e8, 2e6, 9.5, 2)]
    figure = plot_scalings(base, sweep, 'title', 'batch 1', asked)
    for axes, key in zip(figure.axes, ('acts', 'milliseconds'), strict=True):
        marked = {line.get_label(): line for line in axes.lines}
        assert set(marked) == {'w', 'd', 'base', 'asked for'}
        drawn = list(zip(*marked['asked for'].get_data(), strict=True))
        assert drawn == [(point.flops, getattr(point, key)) for point in asked]
        assert [text.get_text() for text in axes.texts] == ['dWr 4x', 'r 2x']
