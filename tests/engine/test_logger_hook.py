"""MainProcessLoggerHook: one metrics file, however many processes test."""

import json
from types import SimpleNamespace

import pytest

from mmscale.engine.hooks import MainProcessLoggerHook, logger_hook


@pytest.mark.parametrize('first', [True, False])
def test_only_the_first_process_writes_the_metrics(first, monkeypatch, tmp_path):
    monkeypatch.setattr(logger_hook, 'is_main_process', lambda: first)
    gathered = []

    def get_log_after_epoch(runner, length, mode, with_non_scalar):
        gathered.append((length, mode, with_non_scalar))
        return {'accuracy': 0.5}, 'accuracy: 0.5'

    runner = SimpleNamespace(
        timestamp='now',
        work_dir=str(tmp_path),
        log_dir=str(tmp_path),
        test_dataloader=[None, None],
        logger=SimpleNamespace(info=lambda text: None),
        log_processor=SimpleNamespace(get_log_after_epoch=get_log_after_epoch),
    )
    hook = MainProcessLoggerHook()
    hook.before_run(runner)
    hook.after_test_epoch(runner)
    # Gathering takes every process: none may stay away.
    assert gathered == [(2, 'test', True)]
    files = {path.name: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    assert files == ({'now.json': {'accuracy': 0.5}} if first else {})
