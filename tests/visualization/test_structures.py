"""The picture of a search by gradient shows what its file says."""

import pytest

from mmscale.visualization import plot_structure

RECORDS = [
    {'iteration': 10, 'metric': 'flops', 'budget': 90.0, 'value': 95.0,
     'structure': {'backbone.stem': 8, 'backbone.stages.0': [1, 1]}},
    {'iteration': 20, 'metric': 'flops', 'budget': 50.0, 'value': 48.0,
     'structure': {'backbone.stem': 6, 'backbone.stages.0': [1, 0]}},
]  # fmt: skip


def test_rows_and_lines():
    records = [{**record, 'sizes': {'backbone.stem': 16}} for record in RECORDS]
    figure = plot_structure(records, 'a search')
    above, below = figure.axes[:2]
    assert [line.get_ydata().tolist() for line in above.lines] == [[90.0, 50.0], [95.0, 48.0]]
    labels = [label.get_text() for label in below.get_yticklabels()]
    assert labels == ['stem: 6 of 16', 'stages.0: 1 of 2']
    assert below.collections[0].get_array().ravel().tolist() == [0.5, 0.375, 1, 0.5]
    figure.canvas.draw()


def test_sizes_that_are_not_known_are_not_guessed():
    below = plot_structure(RECORDS).axes[1]
    labels = [label.get_text() for label in below.get_yticklabels()]
    assert labels == ['stem: 6', 'stages.0: 1 of 2']


def test_too_few_records():
    with pytest.raises(ValueError, match='1 records are too few'):
        plot_structure(RECORDS[:1])
