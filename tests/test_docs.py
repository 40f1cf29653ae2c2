"""Every command and Python snippet of the documents runs, and what they say of tools is true."""

import doctest
import importlib
import io
import pkgutil
import re
import runpy
import sys
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import documents
from documents import ROOT, SHELLS, Workplace, blocks, commands, run_document

import mmscale

DETECTION = ('docs/detection.md',)  # tests/det runs it
HERE = [name for name in documents.DOCUMENTS if name not in DETECTION]


@pytest.fixture(scope='session')
def workplace(tmp_path_factory):
    return Workplace(tmp_path_factory.mktemp('documents'))


@pytest.mark.slow
@pytest.mark.parametrize('document', HERE)
def test_blocks_run(document, workplace, monkeypatch):
    monkeypatch.chdir(workplace.folder)
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    run_document(document, workplace)


@pytest.mark.slow
@pytest.mark.parametrize('name', documents.SCRIPTS)
def test_tutorials_run(name, workplace, monkeypatch):
    monkeypatch.chdir(workplace.folder)
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    documents.run_script(name, workplace)


def all_commands():
    for document in [*documents.DOCUMENTS, 'CONTRIBUTING.md']:
        for block in blocks(document):
            if block.language in SHELLS:
                yield from commands(block.text)


def test_no_exception_is_out_of_date():
    """What is left out or changed is still there."""
    found = list(all_commands())
    for start in documents.NOT_RUN:
        assert any(re.match(start, command) for command in found), f'no command begins as {start}'
    text = '\n'.join(block.text for name in documents.DOCUMENTS for block in blocks(name))
    for old in documents.CHANGES:
        if 'iter_2' not in old:  # what an earlier change makes
            pattern = re.compile(old, re.MULTILINE)
            assert any(map(pattern.search, [text, *found])), f'nothing to change as {old}'


def test_checkpoints_are_named_as_trainings_name_them():
    from mmengine.config import Config

    text = '\n'.join(command for command in all_commands())
    found = set(re.findall(r'work_dirs/([\w-]+)/iter_(\d+)\.pth', text))
    checked = 0
    for name, iteration in found:
        for path in documents.configs_named(name):
            if path.parent.name == 'det' and find_spec('mmdet') is None:
                continue  # Its bases are mmdet's.
            config = Config.fromfile(path, import_custom_modules=False)
            assert config.train_cfg.max_iters == int(iteration), name
            checked += 1
    assert checked >= 3


def usages():
    """Commands of README's table of tools, and the options that it names."""
    rows = re.findall(
        r'^\| `python tools/(\w+)\.py (.*?)` \|', (ROOT / 'README.md').read_text(), re.M
    )
    return sorted((tool, tuple(re.findall(r'--[a-z][\w-]*', words))) for tool, words in rows)


@pytest.mark.parametrize('tool', sorted({tool for tool, _ in usages()}))
def test_options_exist(tool, monkeypatch):
    monkeypatch.setattr(sys, 'argv', [tool, '--help'])
    with redirect_stdout(io.StringIO()) as output, pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / 'tools' / f'{tool}.py'), run_name='__main__')
    known = set(re.findall(r'--[a-z][\w-]*', output.getvalue()))
    named = {option for name, options in usages() if name == tool for option in options}
    assert named <= known


def test_commands_are_in_blocks_that_say_so():
    """What a block without a language holds is nothing that this file would run."""
    for document in documents.DOCUMENTS:
        text = (ROOT / document).read_text(encoding='utf-8')
        fences = re.findall(r'^```(\w*)\n(.*)$', text, re.MULTILINE)
        for language, first in fences:
            is_command = re.match(r'(python|pytest|make|sbatch|pip|tools/\w\S*) ', first)
            assert language or not is_command, f'{document}: {first}'


def test_links_lead_somewhere():
    for document in [*documents.DOCUMENTS, 'CONTRIBUTING.md']:
        text = (ROOT / document).read_text(encoding='utf-8')
        for target in re.findall(r'\]\(([^)#:]+)(?:#[^)]*)?\)', text):
            assert ((ROOT / document).parent / target).exists(), f'{document}: {target}'


def modules():
    for found in pkgutil.walk_packages(mmscale.__path__, 'mmscale.'):
        if '.mim' not in found.name:
            yield found.name


def with_examples():
    """Modules whose source has an example, so that not all have to be imported."""
    for name in ['mmscale', *modules()]:
        path = ROOT / Path(*name.split('.'))
        source = path / '__init__.py' if path.is_dir() else path.with_suffix('.py')
        if '>>> ' in source.read_text(encoding='utf-8'):
            yield name


@pytest.mark.parametrize('name', list(with_examples()))
def test_examples_of_docstrings(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.testmod(importlib.import_module(name), optionflags=flags).failed == 0
