"""What the quickstarts share: tools that run one after the other, with their logs."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from mmscale.shown import visible

console = Console()
# Lines of the tools' logs that are worth showing while they run.
_SHOWN = ('Iter(train)', 'evaluations', 'error:', 'Error')


def _plain(text: object) -> str:
    """A text in rich's markup that is none itself: paths may have brackets."""
    return escape(visible(text))


def heading(text: str, start: float) -> None:
    """Prints what comes next and how long it took so far."""
    minutes, seconds = divmod(round(time.monotonic() - start), 60)
    console.print(f'\n[bold]{_plain(text)}[/] [dim]({minutes}:{seconds:02d} so far)[/]')


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint is the last one of its folder, and whole: MMEngine names it then."""
    last = checkpoint.parent / 'last_checkpoint'
    named = last.is_file() and Path(last.read_text(encoding='utf-8')).name
    return named == checkpoint.name and checkpoint.is_file()


def run_logged(command: Sequence[str], root: Path, work_dir: Path, **settings: Any) -> None:
    """Runs a tool; its log goes to the work dir.

    Args:
        command: The tool and its arguments.
        root: Folder of the tools and configs, which are shown without it.
        work_dir: Folder of ``console.log``.
        **settings: As for ``subprocess.Popen``.

    Raises:
        SystemExit: The tool failed.
    """
    shown = shlex.join(word for word in command if word != sys.executable)
    shown = _plain(shown.replace(f'{root}/', ''))
    console.print(f'[dim]$ {shown}[/]', highlight=False)
    work_dir.mkdir(parents=True, exist_ok=True)
    log = work_dir / 'console.log'
    with (
        log.open('a', encoding='utf-8') as file,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors='replace',
            # Ctrl-C is for this process alone: a second signal would stop torchrun from ending
            # its processes.
            start_new_session=True,
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
