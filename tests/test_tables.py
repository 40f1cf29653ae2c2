"""What prints itself: text as it is, whatever is in it."""

import pytest

from mmscale.tables import Printed, make_table


class Shown(Printed):
    def renderables(self):
        return [
            make_table('[bold]title', ('', 'n'), [('[/x]', 1), None, ('é', None)]),
            '[red]line',
        ]


def test_brackets_are_text():
    shown = str(Shown())
    for text in ('[bold]title', '[/x]', '[red]line', 'é'):
        assert text in shown


def test_a_long_line_stays_whole():
    class Long(Printed):
        def renderables(self):
            return ['a/' * 200]

    assert str(Long()) == 'a/' * 200


def test_notebooks_escape_html():
    class Hostile(Printed):
        def renderables(self):
            return [make_table('<script>', ('<b>',), [('<img onerror=x>',)]), '<i>']

    html = Hostile()._repr_html_()
    for tag in ('<script>', '<b>', '<img', '<i>'):
        assert tag not in html


def test_what_prints_nothing_says_so():
    with pytest.raises(NotImplementedError):
        str(Printed())
