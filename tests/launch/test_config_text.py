"""What is written as a config is read as the same settings, whatever names there are in it."""

import json
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.config.lazy import LazyObject
from torch import nn

from mmscale.errors import UsageError
from mmscale.launch.command_line import read_config
from mmscale.launch.config_text import (
    BesideConfig,
    base_of,
    check_config_folder,
    child_of,
    read_config_text,
    settings_text,
)

NAMES = [
    "o'neil",
    'say "it"',
    '\'"',
    '"""',
    "'''",
    'a\\b',
    'end\\',
    'two\nlines',
    'tab\tbell\x07\r',
    '{{ fileDirname }}',
    '{{{ fileBasename }}}',
    '{{ _base_.x }}',
    "{{$HOME:x}}{{ '$HOME:' }}",
    '{x} %s %(y)s #z',
    'größe 网络 \u2028 \N{GRINNING FACE}',
    'a b, c=[1]',
    '$HOME ~ `id`',
]
# MMEngine itself cannot fill in these.
NOT_FILLED_IN = ['a\\b', 'end\\', '"""', 'tab\tbell\x07\r', *(n for n in NAMES if '{{' in n)]


def read(path):
    return Config.fromfile(path).to_dict()


def test_any_text_is_written_as_itself(tmp_path):
    settings = dict(
        texts=NAMES,
        keys={name: [name, {name: (name,)}] for name in NAMES},
        nested=dict(a=dict(zip('bcdefgh', NAMES * 2, strict=False))),
    )
    path = tmp_path / 'a.py'
    path.write_text(settings_text(settings, 'A comment\nof two lines'), encoding='utf-8')
    assert read(path) == settings
    assert read_config_text(path.read_text(encoding='utf-8')) == settings


def test_plain_values_keep_their_kind(tmp_path):
    values = [None, True, 1, -2.5, 1e-12, float('inf'), (), (1,), [], {}, [[(1, 2)], {}], b'a']
    settings = dict(values=values, words={'class': 1, 'a-b': 2, 3: 4, None: 5}, empty={}, none=())
    path = tmp_path / 'a.py'
    path.write_text(settings_text(settings))
    found = read(path)
    assert found == settings
    assert json.dumps(found['values'][1:6]) == json.dumps(values[1:6])
    assert [type(value) for value in found['values']] == [type(value) for value in values]


def test_types_become_the_names_that_mmengine_finds(tmp_path):
    lazy = LazyObject('torch.nn', 'Linear')
    path = tmp_path / 'a.py'
    path.write_text(settings_text(dict(a=nn.Linear, b=lazy, c=[lazy], d=Path("o'neil"))))
    found = read(path)
    assert found == dict(
        a='torch.nn.modules.linear.Linear', b='torch.nn.Linear', c=['torch.nn.Linear'], d="o'neil"
    )


def test_long_values_are_laid_out_one_by_line():
    settings = dict(model=dict(type='A' * 50, parts=[dict(type='B' * 30), dict(type='C' * 50)]))
    text = settings_text(settings)
    assert text.splitlines()[:3] == ['model = dict(', f"    type='{'A' * 50}',", '    parts=[']
    assert max(map(len, text.splitlines())) < 100
    assert read_config_text(text) == settings


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('a = ' + '(' * 1000, 'not Python (SyntaxError: too many nested'),
        ('a = ' + '-' * 100_000 + '1', 'not Python ('),
        ('a = 1' + '+1' * 100_000, 'not Python (RecursionError'),
        ('a = \x00', 'not Python ('),
        ('a = 1\n' * 100_000, '600,000 characters are more than the 524,288 of a config'),
    ],
    ids=['brackets', 'signs', 'sum', 'NUL', 'long'],
)
def test_what_is_no_config_is_one_error(text, message):
    with pytest.raises(UsageError) as error:
        read_config_text(text)
    assert str(error.value).startswith(message) and len(str(error.value)) < 150


@pytest.mark.filterwarnings('error')
def test_odd_texts_warn_of_nothing():
    assert read_config_text(r'a = "\d"' + '\nb = 0 is 0\n') == {'a': r'\d'}


@pytest.mark.parametrize('value', [object(), nn.Linear(1, 1), {1, 2}, lambda: 0])
def test_what_is_no_setting_is_named(value):
    with pytest.raises(UsageError, match=r'model\.a\[1\]: .* is no setting of a config'):
        settings_text(dict(model=dict(a=[0, value])))
    with pytest.raises(UsageError, match="'a b' is no name of a setting"):
        settings_text({'a b': 1})


@pytest.mark.parametrize('name', NAMES)
def test_configs_in_any_folder_find_what_lies_beside_them(name, tmp_path):
    folder = tmp_path / name
    folder.mkdir()
    path = folder / 'a.py'
    path.write_text(settings_text(dict(found=[BesideConfig(one) for one in ['x.json', *NAMES]])))
    if name in NOT_FILLED_IN:
        with pytest.raises(UsageError, match='MMEngine cannot read configs') as error:
            check_config_folder(folder)
        assert '\n' not in str(error.value)
    else:
        check_config_folder(folder)
        assert read(path)['found'] == [f'{folder}/{one}' for one in ['x.json', *NAMES]]


@pytest.mark.parametrize(
    'name', ['a\\b', '"""', '\r', '{{ fileBasename }}', '{{$HOME:x}}', '{{ _base_.x }}']
)
def test_what_is_said_not_to_be_filled_in_is_not(name, tmp_path):
    (tmp_path / name).mkdir()
    path = tmp_path / name / 'a.py'
    path.write_text(settings_text(dict(found=BesideConfig('x.json'))))
    try:
        found = read(path)['found']
    except Exception as error:  # noqa: BLE001 - of any kind
        found = error
    assert found != f'{path.parent}/x.json'


@pytest.mark.parametrize('name', NAMES)
def test_a_base_in_any_folder_is_found(name, tmp_path):
    base, child = tmp_path / name / 'base.py', tmp_path / f'{name} child' / 'child.py'
    for path in (base, child):
        path.parent.mkdir()
    base.write_text('a = 1\n')
    child.write_text(
        settings_text(dict(_base_=base_of(base, child.parent), b=2)), encoding='utf-8'
    )
    assert read(child) == dict(a=1, b=2)


def test_a_config_into_whose_text_a_quote_is_pasted_is_one_line(tmp_path):
    path = tmp_path / "o'neil" / 'a.py'
    path.parent.mkdir()
    path.write_text("arch = '{{ fileDirname }}/a.json'\n")
    with pytest.raises(UsageError, match='put that in three double quotes') as error:
        read_config(path)
    assert '\n' not in str(error.value)
    path.write_text('arch = """{{ fileDirname }}/a.json"""\n')
    assert read_config(path).arch == f'{path.parent}/a.json'


def test_a_base_that_looks_like_a_packages_is_refused(tmp_path):
    (tmp_path / 'a::b').mkdir()
    path = tmp_path / 'a::b' / 'base.py'
    path.write_text('a = 1\n')
    with pytest.raises(UsageError, match='takes a path with :: for the config of a package'):
        base_of(path, tmp_path)
    assert base_of(path, path.parent) == 'base.py'
    assert base_of('mmpretrain::resnet/resnet18_8xb32_in1k.py', tmp_path).startswith('mmpretrain:')


def test_a_base_is_found_through_links(tmp_path):
    (tmp_path / 'disk' / 'deep').mkdir(parents=True)
    (tmp_path / 'work').symlink_to(tmp_path / 'disk' / 'deep')
    base = tmp_path / 'base.py'
    base.write_text('a = 1\n')
    child = tmp_path / 'work' / 'out' / 'child.py'
    child.parent.mkdir()
    child.write_text(settings_text(dict(_base_=base_of(base, child.parent))))
    assert read(child) == read(child.resolve()) == dict(a=1)
    other = tmp_path / 'child.py'
    other.write_text(settings_text(dict(_base_=base_of(child, other.parent))))
    assert read(other) == dict(a=1)


def test_a_child_of_either_style_is_text_that_merges_its_changes(tmp_path):
    model = 'model = dict(type={}, parts=dict(a=1, b=2), other=dict(c=3))\n'
    (tmp_path / 'text.py').write_text(model.format("'torch.nn.Linear'"))
    lazy = 'from torch.nn import Linear\n' + model.format('Linear')
    (tmp_path / 'lazy.py').write_text(lazy)
    changes = dict(model=dict(parts=dict(b=4), other=dict(_delete_=True, d=5)), e=6)
    for name in ('text', 'lazy'):
        parent = Config.fromfile(tmp_path / f'{name}.py')
        child = tmp_path / f"{name}'s child.py"
        child.write_text(settings_text(child_of(parent, tmp_path, changes)))
        assert read(child) == dict(
            model=dict(type='torch.nn.Linear', parts=dict(a=1, b=4), other=dict(d=5)), e=6
        )
        assert parent.model.parts.b == 2
