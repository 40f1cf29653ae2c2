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
    assert labels == ['w', 'd', 'r', 'Pareto front', 'base']
