"""What the quickstarts share: tools that run one after the other, with their logs."""

from __future__ import annotations

import fcntl
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from mmscale.errors import UsageError
from mmscale.files import open_to_append
from mmscale.launch.resume import last_checkpoint
from mmscale.launch.runner import run_tool
from mmscale.shown import visible
from mmscale.untrusted import check_no_link, check_work_dir

# In a file or a pipe tables are not cut to the width of a terminal that is not there.
console = Console(width=None if sys.stdout.isatty() else 120)
# Lines of the tools' logs that are worth showing while they run.
_SHOWN = ('Iter(train)', 'evaluations', 'error:', 'Error')
# What shells say of a program that SIGINT ended.
_INTERRUPTED = 130


def _plain(text: object) -> str:
    """A text in rich's markup that is none itself: paths may have brackets."""
    return escape(visible(text))


def heading(text: str, start: float) -> None:
    """Prints what comes next and how long it took so far."""
    minutes, seconds = divmod(round(time.monotonic() - start), 60)
    console.print(f'\n[bold]{_plain(text)}[/] [dim]({minutes}:{seconds:02d} so far)[/]')


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint is the last one of its folder, and whole: MMEngine names it then."""
    last = last_checkpoint(checkpoint.parent)
    return last is not None and last.name == checkpoint.name and checkpoint.is_file()


def run_steps(main: Callable[[], None]) -> None:
    """Runs the main function of a quickstart.

    However it is ended, but for SIGKILL, the tool that it runs at the time is ended first.
    """

    def interruptible() -> None:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup sets it
                signal.signal(number, lambda number, _: sys.exit(128 + number))
        try:
            main()
        except KeyboardInterrupt:
            console.print('\n[red]interrupted; the same command goes on from here[/]')
            sys.exit(_INTERRUPTED)

    run_tool(interruptible)


def take_work_dir(work_dir: Path) -> int:
    """Makes a work dir that nobody else works in, or takes one.

    Returns:
        The lock, a file descriptor: held until this process and all that inherit it end, so that
        the tools of a quickstart that was killed still hold it.

    Raises:
        UsageError: The work dir cannot be written, or is in use; the message says by whom.
        UntrustedFileError: There is a link out of the folder, or no regular file.
    """
    path = work_dir / '.lock'
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
        check_work_dir(work_dir)
        lock = os.open(check_no_link(path), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holders = _holders(lock)
        os.close(lock)
        named = ', '.join(f'{number} ({command:.60})' for number, command in holders.items())
        numbers = ' '.join(map(str, holders))
        raise UsageError(
            f'work_dir={work_dir} is in use, a quickstart or what is left of one works in it: '
            + (f'process {named}; wait, or end it: kill {numbers}' if holders else 'wait')
        ) from None
    except OSError as error:
        raise UsageError(f'work_dir={work_dir}: {error.strerror}') from None
    return lock


def _holders(lock: int) -> dict[int, str]:
    """The other processes that have a file open, and their commands; none without ``/proc``."""
    found, own = {}, os.fstat(lock)
    for folder in Path('/proc').glob('[0-9]*'):
        number = int(folder.name)
        try:
            files = [] if number == os.getpid() else (folder / 'fd').iterdir()
            if any(os.path.samestat(own, file.stat()) for file in files):
                command = (folder / 'cmdline').read_bytes().decode(errors='replace')
                found[number] = visible(' '.join(command.split('\0')).strip())
        except OSError:
            continue  # It is somebody else's, or has ended.
    return dict(sorted(found.items()))


def run_logged(
    command: Sequence[str], root: Path, work_dir: Path, lock: int, **settings: Any
) -> None:
    """Runs a tool; its log goes to the work dir.

    Args:
        command: The tool and its arguments.
        root: Folder of the tools and configs, which are shown without it.
        work_dir: Folder of ``console.log``.
        lock: From :func:`take_work_dir`; the tool holds it too.
        **settings: As for ``subprocess.Popen``.

    Raises:
        SystemExit: The tool failed.
    """
    shown = shlex.join(word for word in command if word != sys.executable)
    shown = _plain(shown.replace(f'{root}/', ''))
    console.print(f'[dim]$ {shown}[/]', highlight=False)
    work_dir.mkdir(parents=True, exist_ok=True)
    log = check_no_link(work_dir / 'console.log')
    with (
        open_to_append(log) as file,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors='replace',
            # Ctrl-C is for this process alone: a second signal would stop torchrun from ending
            # its processes.
            start_new_session=True,
            pass_fds=(lock,),
            **settings,
        ) as process,
    ):
        try:
            for line in process.stdout:
                file.write(line)
                if any(word in line for word in _SHOWN):
                    line = line.strip().partition(' - INFO - ')[2] or line.strip()
                    style = dict(no_wrap='Iter(train)' in line, overflow='ellipsis')
                    console.print(f'  {visible(line)}', markup=False, highlight=False, **style)
        except BaseException:
            # torchrun ends its processes; without this they would go on.
            process.terminate()
            file.write(process.communicate()[0])
            raise
    if process.returncode:
        console.print(f'[red]failed, exit code {process.returncode}; the log is {_plain(log)}[/]')
        sys.exit(1)
