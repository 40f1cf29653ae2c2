import json

import pytest

from mmscale import scale
from mmscale.apis.scaling.rule_files import read_rules
from mmscale.arch import ScalingRule

DEEP, WIDE = ScalingRule('deep', 0.6, 0.2, 0), ScalingRule('wide-2', 0, 0.5, 0, 0.25)
PYTHON = '"""Mine."""\n\n# Of the paper.\ndeep = dict(depth=0.6, width=0.2)\nx = {"width": 0.5}\n'


def test_rules_of_a_file_scale_like_others(tmp_path):
    path = tmp_path / 'mine.json'
    data = {'deep': {'depth': 0.6, 'width': 0.2}, 'wide-2': {'width': 0.5, 'group_width': 0.25}}
    path.write_text(json.dumps(data))
    assert read_rules(path) == [DEEP, WIDE]
    made = scale('RegNetY-400MF', ['dWr', str(path)], 2)
    assert [network.strategy for network in made] == ['dWr', 'deep', 'wide-2']
    assert made[1].arch == scale('RegNetY-400MF', DEEP, 2)[0].arch
    assert made[1].arch == scale('RegNetY-400MF', 'depth=.6,width=.2', 2)[0].arch
    python = tmp_path / 'mine.py'
    python.write_text(PYTHON)
    assert read_rules(python) == [DEEP, ScalingRule('x', 0, 0.5, 0)]


@pytest.mark.parametrize(
    ('name', 'text', 'message'),
    [
        ('a.py', 'import os\ndeep = dict(depth=0.6)\n', 'line 1 is no rule of plain numbers'),
        ('a.py', 'deep = dict(depth=open("x"))\n', 'line 1 is no rule of plain numbers'),
        ('a.py', 'deep = dict(depth=1 / 3)\n', 'line 1 is no rule of plain numbers'),
        ('a.py', 'print(1)\n', 'line 1 is no rule of plain numbers'),
        ('a.py', 'deep = (\n', r'data: not Python \(SyntaxError'),
        ('a.py', '# nothing\n', 'has no scaling rules'),
        ('a.json', '{}', 'has no scaling rules'),
        ('a.json', '[1]', 'expected an object, got list'),
        ('a.json', '{"depth": 1}', 'depth: expected an object, got int 1'),
        ('a.json', '{"deep": {"depht": 1}}', 'deep: unknown key depht; allowed are depth, width'),
        ('a.json', '{"deep": {"depth": "x"}}', "deep: depth='x' must be a number"),
        ('a.json', '{"deep": {}}', 'deep: no exponent is given'),
        ('a.json', '{"a/b": {"depth": 1}}', 'a/b: a name is of letters'),
    ],
)
def test_files_that_are_no_rules_are_refused(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        scale('RegNetY-400MF', str(path), 2)


def test_a_file_has_to_be_there(tmp_path):
    with pytest.raises(ValueError, match=r'none\.py is not a file'):
        scale('RegNetY-400MF', str(tmp_path / 'none.py'), 2)
