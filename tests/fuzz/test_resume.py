"""Bad state in checkpoints of a training, and bad logs of a search by gradient."""

import copy
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / 'launch'))

from resumed_runs import after

from mmscale.engine import DMSHook
from mmscale.errors import UsageError
from mmscale.launch.resume_state import check_state


def _lists(data):
    """The data with lists in the place of tuples, of which no part can be set."""
    if isinstance(data, dict):
        return {key: _lists(value) for key, value in data.items()}
    return [_lists(value) for value in data] if isinstance(data, (list, tuple)) else data


@pytest.mark.parametrize('part', ['optimizer', 'param_schedulers', 'message_hub', 'meta'])
def test_state_of_trainings(fuzz, part):
    valid = _lists(after().checkpoint())

    def use(data):
        run = after(0)
        try:
            check_state(run, 'a.pth', {**valid, part: data})
            run.go_on(copy.deepcopy({**valid, part: data}))
        except UsageError:
            raise
        except Exception as error:
            raise AssertionError('neither refused nor resumed') from error

    fuzz(0.01, valid[part], use, name=part, foreign=True)


LINES = [
    dict(
        iteration=10 * index, metric='flops', budget=9.0, value=8.0, flops=8, params=7, acts=6,
        structure={'stem': [0, 1], 'depth': 2}, sizes={'stem': 3, 'depth': 4},
    )
    for index in range(1, 6)
]  # fmt: skip


def write_lines(lines):
    return ''.join(json.dumps(line) + '\n' for line in lines)


def goes_on_with(content):
    """The lines that a search by gradient keeps when it goes on from iteration 40."""
    Path('structure.jsonl').write_bytes(content)
    model = SimpleNamespace(cost=SimpleNamespace(full=None), value=lambda _: 1.0)
    model.pipeline, model.set_search_length = 'p', lambda steps: None
    hook, said = DMSHook(), []
    hook._model = model
    logger = SimpleNamespace(warning=lambda text, *values: said.append(text % values))
    run = SimpleNamespace(iter=40, work_dir='.', logger=logger)
    run.max_iters, run.optim_wrapper = 100, None
    hook.before_train(run)
    return [json.loads(line) for line in Path('structure.jsonl').open()], said


def test_structure_logs(fuzz):
    def use(data):
        content = write_lines(data).encode() if isinstance(data, list) else data
        lines, said = goes_on_with(content)
        assert all(line['iteration'] <= 40 for line in lines) and len(said) <= 1
        # One line or a part of it is wrong, so that one is lost at most, and those behind the cut.
        assert len(lines) >= min(3, content.count(b'\n') - 1)

    fuzz(0.01, LINES, use)
    fuzz(0.01, LINES, use, text=write_lines)
