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

from mmscale.files import open_to_append
from mmscale.launch.resume import last_checkpoint

console = Console()
# Lines of the tools' logs that are worth showing while they run.
_SHOWN = ('Iter(train)', 'evaluations', 'error:', 'Error')


def heading(text: str, start: float) -> None:
    """Prints what comes next and how long it took so far."""
    minutes, seconds = divmod(round(time.monotonic() - start), 60)
    console.print(f'\n[bold]{text}[/] [dim]({minutes}:{seconds:02d} so far)[/]')


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint is the last one of its folder, and whole: MMEngine names it then."""
    last = last_checkpoint(checkpoint.parent)
    return last is not None and last.name == checkpoint.name and checkpoint.is_file()


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
    console.print(f'[dim]$ {shown.replace(f"{root}/", "")}[/]', highlight=False)
    work_dir.mkdir(parents=True, exist_ok=True)
    log = work_dir / 'console.log'
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
            **settings,
        ) as process,
    ):
        try:
            for line in process.stdout:
                file.write(line)
                if any(word in line for word in _SHOWN):
                    line = line.strip().partition(' - INFO - ')[2] or line.strip()
                    style = dict(no_wrap='Iter(train)' in line, overflow='ellipsis')
                    console.print(f'  {line}', markup=False, highlight=False, **style)
        except BaseException:
            # torchrun ends its processes; without this they would go on.
            process.terminate()
            file.write(process.communicate()[0])
            raise
    if process.returncode:
        console.print(f'[red]failed, exit code {process.returncode}; the log is {log}[/]')
        sys.exit(1)
