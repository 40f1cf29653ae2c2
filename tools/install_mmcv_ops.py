#!/usr/bin/env python
"""Installs mmcv with its compiled ops, which detection needs, into the Python that runs this.

The packages on PyPI come without them. The first run builds a wheel, 7 minutes on two idle
cores, and keeps it outside the clone; later runs and other clones install that one in seconds.

Exit codes: 0 the ops are there, 1 the build failed (its log is named), 3 there is no C++ compiler
and no wheel that was built before.
"""

import argparse
import contextlib
import fcntl
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGE = 'onedl-mmcv'
# What the build runs with, beside torch; requirements/detection.txt has them.
BUILD_TOOLS = ('setuptools', 'ninja', 'psutil')
NO_COMPILER = 3
# How ninja counts what it has compiled.
COMPILED = re.compile(r'^\s*\[(\d+)/(\d+)\]')
SECONDS_BETWEEN_LINES = 20


def parse_args() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--check',
        action='store_true',
        help='only say whether the ops are there or could be: exit code 0, else 3',
    )
    parser.add_argument(
        '--cache',
        type=Path,
        default=default_cache(),
        help='folder of built wheels (default: %(default)s)',
    )
    parser.add_argument(
        '--lock',
        type=Path,
        metavar='FILE',
        help='requirements with hashes; the source that is built has to be one of them',
    )
    parser.add_argument(
        '--where', action='store_true', help='only print the folder that the wheel is kept in'
    )
    return parser.parse_args()


def default_cache() -> Path:
    """Where wheels are kept: outside the clone, so that it can be thrown away."""
    own = os.environ.get('MMSCALE_CACHE')
    if own:
        return Path(own) / 'wheels'
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'mmscale' / 'wheels'


def say(text: str) -> None:
    """Prints a line at once."""
    print(f'mmcv ops: {text}', flush=True)


def fail(text: str, code: int = 1) -> None:
    """Ends the program with a line on stderr."""
    sys.stderr.write(f'mmcv ops: {text}\n')
    sys.exit(code)


def with_cuda() -> bool:
    """Whether mmcv's build makes ops for GPUs too: where torch has one, or FORCE_CUDA asks."""
    import torch

    return torch.cuda.is_available() or os.environ.get('FORCE_CUDA') == '1'


def wheel_name(cuda: bool) -> str:
    """What compiled ops depend on: mmcv, torch and its CUDA, Python and the machine."""
    import torch

    try:
        mmcv = version(PACKAGE)
    except PackageNotFoundError:
        fail(f'{PACKAGE} is not installed: pip install -r requirements/runtime.txt comes first')
    python = f'cp{sys.version_info.major}{sys.version_info.minor}'
    machine = f'{platform.system()}-{platform.machine()}'.lower()
    device = f'cuda{torch.version.cuda}' if cuda else 'cpu'
    return f'mmcv-{mmcv}_torch-{torch.__version__}_{python}_{machine}_{device}'


def installed() -> bool:
    """Whether the ops that are installed load beside this torch."""
    return not subprocess.run(
        [sys.executable, '-c', 'import torch, mmcv._ext'], capture_output=True, check=False
    ).returncode


def cached_wheel(folder: Path) -> Path | None:
    """The wheel in a folder of the cache; the folder appears when the wheel is whole."""
    return next(iter(sorted(folder.glob('*.whl'))), None)


def missing_compiler(cuda: bool) -> str | None:
    """What the build would need and does not find, in words."""
    # Quotes and options are allowed in CXX, as in 'ccache g++'.
    compiler = os.environ.get('CXX', 'c++').split()[0]
    if shutil.which(compiler) is None:
        return f'there is no C++ compiler ({compiler})'
    home = os.environ.get('CUDA_HOME') or '/usr/local/cuda'
    if cuda and shutil.which('nvcc') is None and not Path(home, 'bin', 'nvcc').exists():
        return 'torch has a GPU here, but there is no CUDA compiler (nvcc; set CUDA_HOME)'
    return None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock of a wheel; a second process waits and then finds the wheel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say('another process builds this wheel; waiting for it')
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def show_progress(process: subprocess.Popen, log: Path) -> None:
    """Copies the output of the build into its log and says now and then how far it is."""
    started = said = time.monotonic()
    with log.open('w', encoding='utf-8') as file:
        for line in process.stdout:
            file.write(line)
            file.flush()
            found = COMPILED.match(line)
            now = time.monotonic()
            if found and now - said >= SECONDS_BETWEEN_LINES:
                said = now
                minutes, seconds = divmod(int(now - started), 60)
                say(f'{found[1]} of {found[2]} files compiled, {minutes}:{seconds:02d} min')


def build(folder: Path, lock: Path | None = None) -> None:
    """Builds the wheel into a folder of the cache, which appears whole or not at all.

    Its source has to have a hash of the lock file, where there is one.
    """
    missing = []
    for tool in BUILD_TOOLS:
        try:
            version(tool)
        except PackageNotFoundError:
            missing.append(tool)
    if missing:
        fail(f'the build needs {", ".join(missing)}: pip install -r requirements/detection.txt')
    log = folder.with_name(f'{folder.name}.log')
    say(f'building a wheel, 7 minutes on two idle cores; log: {log}')
    temporary = Path(tempfile.mkdtemp(prefix='building-', dir=folder.parent))
    # Without pip's cache, which does not know of ops and would give a wheel without them.
    command = [sys.executable, '-m', 'pip', 'wheel', '--verbose', '--disable-pip-version-check']
    command += ['--no-input', '--no-deps', '--no-build-isolation', '--no-cache-dir']
    command += ['--no-binary', PACKAGE, '--wheel-dir', str(temporary)]
    if lock is not None:
        command += ['--require-hashes', '--constraint', str(lock)]
    # Debug information, which Python's own flags ask for, is two thirds of the compiling. CFLAGS
    # would replace those flags; CPPFLAGS come after them.
    flags = f'-g0 {os.environ.get("CPPFLAGS", "")}'.strip()
    process = subprocess.Popen(
        [*command, f'{PACKAGE}=={version(PACKAGE)}'],
        env={**os.environ, 'MMCV_WITH_OPS': '1', 'CPPFLAGS': flags},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors='replace',
    )
    try:
        show_progress(process, log)
        if process.wait():
            fail(f'the build failed, see {log}')
        wheel = cached_wheel(temporary)
        with zipfile.ZipFile(wheel) as file:
            if not any(name.startswith('mmcv/_ext') for name in file.namelist()):
                fail(f'the build made a wheel without ops, see {log}')
        temporary.rename(folder)
    finally:
        process.kill()
        shutil.rmtree(temporary, ignore_errors=True)


def main() -> None:
    """Finds or builds the wheel and installs it."""
    args = parse_args()
    cuda = with_cuda()
    folder = args.cache.expanduser().absolute() / wheel_name(cuda)
    if args.where:
        print(folder)
        return
    if installed():
        say('installed')
        return
    missing = missing_compiler(cuda)
    if missing and cached_wheel(folder) is None:
        fail(f'{missing}, and no wheel in {folder}', NO_COMPILER)
    if args.check:
        say('can be installed')
        return
    with locked(folder.with_name(f'{folder.name}.lock')):
        if cached_wheel(folder) is None:
            build(folder, args.lock)
    wheel = cached_wheel(folder)
    say(f'installing {wheel}')
    # Only mmcv itself: its requirements are there, at versions that were chosen.
    command = [sys.executable, '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check']
    command += ['--no-input', '--no-deps', '--force-reinstall', str(wheel)]
    subprocess.run(command, check=True)
    if not installed():
        fail(f'{wheel} does not load beside this torch; remove its folder to build it again')


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        fail('interrupted', 130)
    except subprocess.CalledProcessError as error:
        fail(f'pip failed ({error.returncode})')
    except OSError as error:
        fail(str(error))
