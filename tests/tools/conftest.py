"""Runs the tools as a user does, but in this process: torch takes seconds to load."""

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

TOOLS = Path(__file__).parents[2] / 'tools'


@pytest.fixture
def run_tool(monkeypatch, capfd):
    """A function that runs a tool; returns its exit code and what it wrote."""
    monkeypatch.setenv('COLUMNS', '80')
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')

    def run(name, *words):
        monkeypatch.setattr(sys, 'argv', [name, *map(str, words)])
        capfd.readouterr()
        code = 0
        try:
            runpy.run_path(str(TOOLS / name), run_name='__main__')
        except SystemExit as end:
            code = end.code or 0
        out, err = capfd.readouterr()
        return SimpleNamespace(returncode=code, stdout=out, stderr=err)

    return run
