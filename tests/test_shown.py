"""Text that may come from anybody."""

import io
import warnings
from types import SimpleNamespace

import pytest
import yaml
from rich.console import Console

from mmscale.apis.exports.card import model_card
from mmscale.apis.exports.source import Source
from mmscale.cost import Cost
from mmscale.errors import MMScaleError, UsageError, one_line
from mmscale.launch import steps
from mmscale.launch.command_line import ToolParser, set_environment
from mmscale.launch.log import ShortLogRunner
from mmscale.shown import visible, visible_lines, without_markup
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


def test_lines_and_tabs_may_stay():
    assert visible_lines(f'a\n\tb\r\n{HOSTILE}') == (
        'a\n\tb\\r\n' + VISIBLE.replace('\\r\\n', '\\r\n')
    )


def test_what_is_logged_is_visible(tmp_path, capsys):
    runner = ShortLogRunner.__new__(ShortLogRunner)
    runner._experiment_name, runner._timestamp = 'visible', 'now'
    runner._log_dir = str(tmp_path)
    logger = runner.build_logger()
    logger.warning('%s has no %d', HOSTILE.replace('\n', ''), 3)
    logger.info('two\nlines')
    for handler in logger.handlers:
        handler.flush()
    (log,) = tmp_path.rglob('*.log')
    for text in (log.read_text(), capsys.readouterr().out):
        assert VISIBLE.replace('\\n', '') + ' has no 3' in text and 'two\nlines' in text


def test_warnings_and_errors_of_arguments_are_visible(capsys, monkeypatch):
    with warnings.catch_warnings():
        set_environment()
        shown = warnings.formatwarning(UserWarning(HOSTILE), UserWarning, 'a.py', 3)
    assert 'a\\x1b[2J' in shown and not set(shown) & set('\x1b\x07\u202e\udcff')
    with pytest.raises(SystemExit):
        ToolParser('tool').parse_args([f'--{HOSTILE}'])
    assert f'unrecognized arguments: --{VISIBLE}' in capsys.readouterr().err


def test_headings_of_quickstarts_are_no_markup(monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(steps, 'console', Console(file=shown, width=200))
    steps.heading('1. [/x] [red]\x1b[2J', 0)
    assert '[/x] [red]\\x1b[2J' in shown.getvalue() and '\x1b' not in shown.getvalue()


EVIL = '</td><script>alert(1)</script>\n---\n&a [*x](http://y) `z` | w\x1b[2J\n# head'


def test_a_card_shows_what_others_wrote_as_text():
    source = Source(
        EVIL,
        None,
        (3, 8, 8),
        {'model': {'data_preprocessor': {'mean': [EVIL], 'std': EVIL}}, 'default_scope': EVIL},
        provenance={'config': EVIL, EVIL: EVIL * 100},
        score={'correct': 1, 'total': 2},
        notes=['a note'],
    )
    program = SimpleNamespace(is_classifier=True, outputs=['logits'], dtype='float32')
    card = model_card(source, Cost(1, 2, 3), 'mmscale', {}, {}, program, license_name=EVIL)
    front, body = card.removeprefix('---\n').split('\n---\n', 1)
    assert yaml.safe_load(front)['license'] == EVIL
    for markup in ('<', '`z', '](', '\x1b', '\n---', '\n# head', '&a ['):
        assert markup not in body, markup
    rows = [line for line in body.splitlines() if line.startswith('|')]
    assert {line.count('|') for line in rows} == {3, 4}  # that of the files has three columns
    assert max(map(len, rows)) < 1000
