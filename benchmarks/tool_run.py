"""One run of a tool, and the processor time that it took: what several benchmarks share."""

import resource
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def children_seconds() -> float:
    """Processor time of all processes that this one has started and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run_tool(tool: str, config: str, work_dir: Path, options: dict[str, object]) -> float:
    """Runs a tool on a config below ``configs/``, quietly; its CPU seconds.

    Raises:
        subprocess.CalledProcessError: It failed.
    """
    command = [
        sys.executable,
        str(ROOT / 'tools' / tool),
        str(ROOT / 'configs' / config),
        '--work-dir',
        str(work_dir),
        '--cfg-options',
        *(f'{key}={value}' for key, value in options.items()),
    ]
    before = children_seconds()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return children_seconds() - before
