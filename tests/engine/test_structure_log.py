"""The log of a search by gradient, when the search goes on: what is no line of it is left out."""

import json
from types import SimpleNamespace

import pytest

from mmscale.engine import DMSHook


def line(iteration, **changes):
    values = dict(iteration=iteration, metric='flops', budget=9.0, value=8.0, flops=8, params=7)
    values.update(acts=6, structure={'stem': [0, 1], 'depth': 2}, sizes={'stem': 3, 'depth': 4})
    return json.dumps({**values, **changes}).encode()


@pytest.fixture
def go_on(tmp_path):
    """Prepares the file for a search that goes on; returns its lines and the warnings."""

    def before_train(iteration):
        hook, said = DMSHook(), []
        hook._model = SimpleNamespace(
            cost=SimpleNamespace(full=None),
            value=lambda _: 1.0,
            pipeline='p',
            set_search_length=lambda steps: None,
        )
        logger = SimpleNamespace(warning=lambda text, *values: said.append(text % values))
        run = SimpleNamespace(iter=iteration, work_dir=tmp_path, logger=logger)
        run.max_iters, run.optim_wrapper = 100, None
        hook.before_train(run)
        return (tmp_path / 'structure.jsonl').read_bytes().splitlines(), said

    return before_train


def test_lines_that_are_none_are_left_out_and_named(go_on, tmp_path):
    bad = [
        b'\0' * 50,
        b'no JSON',
        b'[1]',
        b'\xff' + line(2),
        line(2, flops=10**30),
        line(2, value=1e400),
        line(2, structure=[]),
        b'{"iteration": ' + b'9' * 5000 + b'}',
        b'[' * 100_000,
        b'5' * (2**23 + 5),
    ]
    kept = [line(1), line(3, more='kept')]
    content = b'\n'.join([kept[0], *bad, kept[1], line(7), line(2)[:-30]])
    (tmp_path / 'structure.jsonl').write_bytes(content)
    lines, (said,) = go_on(5)
    assert lines == kept
    assert said.endswith(
        'structure.jsonl: no structure in line 2, 3, 4, 5, 6 and 6 more; left out'
    )
    assert go_on(5) == (kept, [])
    assert go_on(0) == ([], [])


def test_a_link_is_not_written_through(go_on, tmp_path):
    (tmp_path / 'mine').write_bytes(line(1) + b'\n')
    (tmp_path / 'structure.jsonl').symlink_to('mine')
    with pytest.raises(ValueError, match=r'structure\.jsonl is a symbolic link to mine'):
        go_on(5)
    assert (tmp_path / 'mine').read_bytes() == line(1) + b'\n'
