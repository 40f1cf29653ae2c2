"""Text that may come from anybody."""

import io

import pytest
from rich.console import Console

from mmscale.errors import MMScaleError, UsageError, one_line
from mmscale.shown import visible, without_markup
from mmscale.tables import Printed, make_table

HOSTILE = 'a\x1b[2J\x07\r\n\u202eb\udcff[/x]'
VISIBLE = 'a\\x1b[2J\\x07\\r\\n\\u202eb\\udcff[/x]'


@pytest.mark.parametrize('text', ['', 'scale/größe-日本 [1]', 'a\\b'])
def test_ordinary_text_is_left_as_it_is(text):
    assert visible(text) == text


def test_nothing_acts_on_a_terminal():
    assert visible(HOSTILE) == VISIBLE
    assert str(UsageError(f'{HOSTILE} is no file')) == f'{VISIBLE} is no file'
    assert str(MMScaleError()) == ''
    assert not set(one_line(RuntimeError(HOSTILE))) & set('\x1b\x07\r\n\u202e\udcff')
    assert without_markup('a\nb  `c` | <d> {{e}} \x1b[0m') == 'a b _c_ _ _d_ __e__ __0m'
    assert without_markup(HOSTILE) == 'a__2J_ _b__/x_'


class Shown(Printed):
    def renderables(self):
        return [make_table(HOSTILE, ('', 'x'), [(HOSTILE, 1)], (HOSTILE, 2)), f'{HOSTILE}\nnext']


def test_what_objects_print_is_visible():
    printed = io.StringIO()
    Console(file=printed, width=100, force_terminal=True).print(Shown())
    texts = [printed.getvalue(), str(Shown()), Shown()._repr_html_()]
    for text in texts:
        assert not set(text) & set('\x07\r\u202e\udcff')
        assert '\x1b[2J' not in text and text.count('\\u202eb') == 4
    assert 'next' in str(Shown()).splitlines()[-1]
