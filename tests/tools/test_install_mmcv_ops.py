"""tools/install_mmcv_ops.py, with a stand-in for pip: nothing is compiled or installed."""

import importlib.util
import sys
import zipfile
from pathlib import Path

import pytest
import torch

PATH = Path(__file__).resolve().parents[2] / 'tools' / 'install_mmcv_ops.py'

# Called as Python: `-m pip wheel ... --wheel-dir FOLDER ...` and `-m pip install ... WHEEL`.
PIP = """#!/bin/sh
echo "$@" >> {calls}
case "$*" in *' install '*) exit 0;; esac
while [ "$1" != --wheel-dir ]; do shift; done
echo "  [1/2] c++ $CPPFLAGS -c a.cpp"
[ -f {given} ] && cp {given} "$2" || exit 1
"""


@pytest.fixture
def tool(monkeypatch, tmp_path):
    """The tool as a module, with its own cache, in an environment without ops."""
    spec = importlib.util.spec_from_file_location('install_mmcv_ops', PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.calls = tmp_path / 'calls'
    module.given = tmp_path / 'onedl_mmcv-1-py3-none-any.whl'
    pip = tmp_path / 'pip.sh'
    pip.write_text(PIP.format(calls=module.calls, given=module.given))
    pip.chmod(0o755)
    monkeypatch.setenv('MMSCALE_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setenv('CXX', 'sh')  # a compiler is looked for, not used
    monkeypatch.setattr(sys, 'argv', ['install_mmcv_ops.py'])
    monkeypatch.setattr(sys, 'executable', str(pip))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(module, 'BUILD_TOOLS', ())
    # Ops are there once pip has installed something.
    monkeypatch.setattr(module, 'installed', lambda: ' install ' in text(module))
    return module


def text(tool):
    return tool.calls.read_text() if tool.calls.exists() else ''


def write_wheel(path, name):
    with zipfile.ZipFile(path, 'w') as file:
        file.writestr(name, b'')


def test_a_wheel_is_built_once_and_kept(tool, tmp_path, monkeypatch, capsys):
    write_wheel(tool.given, 'mmcv/_ext.cpython-311-x86_64-linux-gnu.so')
    monkeypatch.setenv('CPPFLAGS', '-Iown')
    tool.main()
    build, install = text(tool).splitlines()
    assert '-m pip wheel' in build and '--no-cache-dir' in build and 'onedl-mmcv==' in build
    folder = tmp_path / 'cache' / 'wheels' / tool.wheel_name(cuda=False)
    assert install.endswith(f'--no-deps --force-reinstall {folder / tool.given.name}')
    assert {path.name for path in folder.parent.iterdir()} == {
        folder.name, f'{folder.name}.log', f'{folder.name}.lock'
    }  # fmt: skip
    # Without debug information, and with what the user asks for.
    assert 'c++ -g0 -Iown -c a.cpp' in Path(f'{folder}.log').read_text()
    for part in (torch.__version__, f'cp{sys.version_info.major}{sys.version_info.minor}', '_cpu'):
        assert part in folder.name
    # The next environment takes it from there, even without a compiler.
    tool.calls.unlink()
    tool.given.unlink()
    tool.main()
    assert text(tool).splitlines() == [install]
    tool.main()
    assert text(tool).splitlines() == [install]
    assert capsys.readouterr().out.endswith('mmcv ops: installed\n')


def test_the_source_is_held_against_a_lock_file(tool, monkeypatch):
    write_wheel(tool.given, 'mmcv/_ext.cpython-311-x86_64-linux-gnu.so')
    monkeypatch.setattr(sys, 'argv', ['install_mmcv_ops.py', '--lock', 'a.lock'])
    tool.main()
    assert '--require-hashes --constraint a.lock onedl-mmcv==' in text(tool)


@pytest.mark.parametrize('name', [None, 'mmcv/ops/nms.py'])
def test_what_fails_or_has_no_ops_is_not_kept(tool, name, tmp_path, capsys):
    if name:
        write_wheel(tool.given, name)
    with pytest.raises(SystemExit, match='1'):
        tool.main()
    folder = tmp_path / 'cache' / 'wheels' / tool.wheel_name(cuda=False)
    assert f'see {folder}.log' in capsys.readouterr().err
    assert '[1/2] c++' in Path(f'{folder}.log').read_text()
    assert not [path for path in folder.parent.iterdir() if path.is_dir()]
    assert ' install ' not in text(tool)


@pytest.mark.parametrize('arguments', [[], ['--check']])
def test_without_a_compiler_it_says_so(tool, arguments, monkeypatch, capsys):
    monkeypatch.setenv('CXX', 'no-such-compiler -O2')
    monkeypatch.setattr(sys, 'argv', ['install_mmcv_ops.py', *arguments])
    with pytest.raises(SystemExit, match='3'):
        tool.main()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and 'there is no C++ compiler (no-such-compiler)' in lines[0]
    assert not tool.calls.exists()


def test_check_builds_nothing(tool, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['install_mmcv_ops.py', '--check'])
    tool.main()
    assert capsys.readouterr().out == 'mmcv ops: can be installed\n'
    assert not tool.calls.exists()
