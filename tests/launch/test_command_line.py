"""What a user asks for: a mistake in a command line or a config is one line, before any work."""

import ast
import inspect
import os
from pathlib import Path

import mmpretrain
import pytest
from command_lines import arguments, write

from mmscale.errors import UsageError
from mmscale.launch.command_line import (
    SETTINGS,
    check_names,
    load_config,
    read_checkpoint,
    read_config,
    set_environment,
)

CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'scalenet'
pytestmark = pytest.mark.usefixtures('own_environment')


# ---------------------------------------------------------------------- configs


def test_overrides_and_the_default_work_dir():
    config = load_config(
        arguments(
            CONFIGS / 'arch-net_digits.py',
            '--cfg-options',
            'train_cfg.max_iters=7',
            'model.head.topk=(1,2)',
            'model.backbone.arch=scalenet-s0',
        )
    )
    assert config.train_cfg.max_iters == 7
    assert tuple(config.model.head.topk) == (1, 2)
    assert config.model.backbone.arch == 'scalenet-s0'
    assert config.work_dir == 'work_dirs/arch-net_digits'
    assert config.launcher == 'none'


def test_an_override_may_add_what_mmengine_reads():
    write('mine.py', "model = dict(type='ResNet')\n")
    options = ['compile=True', 'auto_scale_lr.base_batch_size=8', 'env_cfg.cudnn_benchmark=True']
    config = load_config(arguments('mine.py', '--cfg-options', 'model.depth=18', *options))
    assert config.model.depth == 18
    assert config.compile is True
    assert config.auto_scale_lr.base_batch_size == 8
    assert config.env_cfg.cudnn_benchmark is True


def test_a_work_dir_of_the_config_or_the_command_line_comes_first():
    write('mine.py', "work_dir = 'here'\n")
    assert load_config(arguments('mine.py')).work_dir == 'here'
    assert load_config(arguments('mine.py', '--work-dir', 'there é')).work_dir == 'there é'


def test_a_path_may_have_spaces_commas_and_quotes():
    write('a b, c/x (1).pth', '')
    write('mine é x.py', 'load_from = None\nother = None\n')
    config = load_config(
        arguments('mine é x.py', '--cfg-options', 'load_from=a b, c/x (1).pth', 'other=[1, 2]')
    )
    assert config.load_from == 'a b, c/x (1).pth'
    assert config.other == [1, 2]
    for name in ("'quoted'", '"quoted"', "o'neil", 'a folder'):
        write(f'{name}/x', '')
        read = load_config(arguments('mine é x.py', '--cfg-options', f'other={name}'))
        assert read.other == name


@pytest.mark.parametrize(
    ('text', 'options', 'message'),
    [
        (None, [], 'config=mine.py is not a file'),
        ('model = dict(', [], 'SyntaxError'),
        ('lr = rate * 2\n', [], "NameError: name 'rate' is not defined"),
        ("custom_imports = dict(imports=['no_such_package'])\n", [], 'no_such_package'),
        ("_base_ = './missing.py'\n", [], 'missing.py'),
        ('lr = 1 / 0\n', [], 'ZeroDivisionError'),
        ('raise RuntimeError("two\\nlines")\n', [], 'RuntimeError: two lines'),
        ('lr = 1\n', ['lr'], '--cfg-options lr: expected KEY=VALUE'),
        ('lr = 1\n', ['a=1', 'b'], '--cfg-options a=1 b: expected KEY=VALUE'),
        ('lr = 1\n', ['lr=[1,(2]'], '--cfg-options lr=[1,(2]: Imbalanced brackets'),
        ('lr = [1]\n', ['lr.5=2'], 'Index 5 exceeds'),
        ('lr = 1\n', ['tolerance=0.3'], '--cfg-options tolerance: neither the config nor'),
        ('test_cfg = {}\n', ['test_cgf.n=3'], 'setting test_cgf; did you mean test_cfg?'),
        ('lr = 1\n', ['lr=2', 'lf.max=3'], '--cfg-options lf.max: '),
        ('lr = 1\n', ['cfg.lr=3'], '--cfg-options cfg.lr: '),
        ('optim_wraper = {}\n', [], 'a setting optim_wraper; did you mean optim_wrapper?'),
        ("load_form = 'net.pth'\n", [], 'a setting load_form; did you mean load_from?'),
    ],
)
def test_a_bad_config_is_one_line(text, options, message, tool):
    if text is not None:
        write('mine.py', text)
    options = ['--cfg-options', *options] if options else []
    code, error = tool('train.py', 'mine.py', *options)
    assert code == 2
    assert error.startswith('error: ') and error.count('\n') == 1, error
    assert message in error
    assert not Path('work_dirs').exists()


def test_settings_are_those_of_the_runner():
    from mmengine.runner import Runner

    assert set(inspect.signature(Runner).parameters) - {'cfg'} <= SETTINGS


@pytest.mark.parametrize(
    'folder', [CONFIGS.parent, Path(mmpretrain.__file__).parent / '.mim' / 'configs']
)
def test_no_variable_of_a_config_is_taken_for_a_misspelt_setting(folder):
    names = {}
    for path in folder.rglob('*.py'):
        for statement in ast.parse(path.read_text(encoding='utf-8')).body:
            for target in getattr(statement, 'targets', ()):
                names.setdefault(getattr(target, 'id', 'model'), path)
    assert len(names) > 20
    check_names(Path('all.py'), names)


def test_files_are_data_unless_the_user_decided_otherwise(monkeypatch):
    set_environment()
    assert os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] == '1'
    assert os.environ['OMP_WAIT_POLICY'] == 'PASSIVE'
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '0')
    monkeypatch.setenv('OMP_WAIT_POLICY', 'ACTIVE')
    set_environment()
    assert os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] == '0'
    assert os.environ['OMP_WAIT_POLICY'] == 'ACTIVE'


def test_what_a_pure_python_config_names_is_looked_up_when_it_is_read():
    text = 'from mmengine.hooks import {name}\ncustom_hooks = [dict(type={name})]\n'
    config = read_config(write('good.py', text.format(name='EMAHook')))
    assert config.custom_hooks[0].type.__name__ == 'EMAHook'
    with pytest.raises(UsageError, match=r'bad.py: ImportError: .*EMAHooks'):
        read_config(write('bad.py', text.format(name='EMAHooks')))


@pytest.mark.parametrize('name', ['a\x1b[31m.pth', 'a\nb.pth', 'a\u202eb.pth', 'a\udcff.pth'])
def test_a_checkpoint_whose_name_acts_on_a_terminal_is_refused(name, tmp_path):
    """MMEngine prints the name itself."""
    with pytest.raises(UsageError, match='rename it') as error:
        read_checkpoint(str(tmp_path / name))
    assert str(error.value).isprintable()
