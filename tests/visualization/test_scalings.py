"""The picture of scaling strategies, and its Pareto front against the definition."""

from hypothesis import given
from hypothesis import strategies as st

from mmscale.visualization.scalings import ScalingPoint, pareto_front, plot_scalings

points = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=20)


@given(points)
def test_the_front_holds_what_no_other_point_beats(found):
    front = pareto_front(found)
    on_it = {found[i] for i in front}
    for flops, price in found:
        beaten = any((f >= flops and p <= price) and (f, p) != (flops, price) for f, p in found)
        assert ((flops, price) in on_it) is not beaten
    assert [found[i] for i in front] == sorted(on_it)


def test_times_are_a_second_panel_where_all_are_known():
    base = ScalingPoint('base', 1e8, 1e6, 5.0)
    scaled = [ScalingPoint('w', 2e8, 1.4e6, 7.0), ScalingPoint('d', 2e8, 2e6, 9.0)]
    assert len(plot_scalings(base, scaled, 'title', 'batch 1').axes) == 2
    untimed = [*scaled, ScalingPoint('r', 2e8, 2e6)]
    figure = plot_scalings(base, untimed, 'title')
    assert len(figure.axes) == 1
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ['w', 'd', 'r', 'Pareto front', 'base']
