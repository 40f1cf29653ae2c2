#!/usr/bin/env python
"""Where the time of one search goes: start-up, evaluations, the rest.

``python benchmarks/search_overhead.py [configs/scalenet/search-mcea_digits.py ...]``

Runs ``tools/search.py`` in this process, with its options; without any, half of the search of the
digits in a super-supernet of one iteration, as times do not depend on the weights. Seconds are
those of this process's processor, so that busy neighbours change them little, and of the clock.
Start-up is all until the search begins: imports, building, reading the checkpoint. The rest is all
that is neither that nor inside the evaluator: proposals, costs, archive, forecast, result.
"""

import argparse
import json
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CLOCKS = {'cpu': time.process_time, 'wall': time.perf_counter}
ROOT = Path(__file__).resolve().parents[1]
START = time.perf_counter()


class Stopwatch:
    """Adds up the seconds in which a function runs, by every clock."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(CLOCKS, 0.0)
        self.calls = 0

    def around(self, function: object) -> object:
        """The function, timed."""

        def timed(*args: object, **kwargs: object) -> object:
            start = {name: clock() for name, clock in CLOCKS.items()}
            try:
                return function(*args, **kwargs)
            finally:
                self.calls += 1
                for name, clock in CLOCKS.items():
                    self.seconds[name] += clock() - start[name]

        return timed


def run(tool: object) -> tuple[dict[str, dict[str, float]], int]:
    """Runs a search; seconds of its parts by clock, and the number of evaluations."""
    from mmscale.engine import SearchLoop, SubnetEvaluator

    whole, scored, decoded = Stopwatch(), Stopwatch(), Stopwatch()
    for name, watch in (
        ('evaluate', scored),
        ('evaluate_together', scored),
        ('prepare_together', decoded),
    ):
        setattr(SubnetEvaluator, name, watch.around(getattr(SubnetEvaluator, name)))
    SearchLoop.run = whole.around(SearchLoop.run)
    tool()
    # The processor's clock starts with the process.
    total = {'cpu': time.process_time(), 'wall': time.perf_counter() - START}
    parts = {
        name: {
            'start-up': total[name] - whole.seconds[name],
            'evaluation': scored.seconds[name] + decoded.seconds[name],
            'rest': whole.seconds[name] - scored.seconds[name] - decoded.seconds[name],
        }
        for name in CLOCKS
    }
    return parts, scored.calls


def small_search(folder: str) -> list[str]:
    """Arguments of a search in a super-supernet that is trained for it."""
    configs = ROOT / 'configs' / 'scalenet'
    train = [str(ROOT / 'tools' / 'train.py'), str(configs / 'supernet_digits.py')]
    options = ['--no-validate', '--cfg-options', 'train_cfg.max_iters=1', 'model.warmup_iters=0']
    subprocess.run(
        [sys.executable, *train, '--work-dir', folder, *options], check=True, capture_output=True
    )
    options = [f'load_from={folder}/iter_1.pth', 'test_cfg.search.rounds=1']
    return [str(configs / 'search-mcea_digits.py'), '--cfg-options', *options]


def main() -> None:
    """Runs a search and prints where its time went."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--json', action='store_true', help='print an object')
    args, arguments = parser.parse_known_args()
    tool = runpy.run_path(str(ROOT / 'tools' / 'search.py'), run_name='search')['main']
    with tempfile.TemporaryDirectory() as folder:
        arguments = arguments or small_search(f'{folder}/super_net')
        sys.argv = ['search.py', *arguments, '--work-dir', f'{folder}/search']
        from mmscale.launch.runner import set_environment

        set_environment()
        parts, calls = run(tool)
    if args.json:
        print(json.dumps({'evaluations': calls, **parts}, indent=1))
        return
    for name, seconds in parts.items():
        searched = seconds['evaluation'] + seconds['rest']
        print(
            f'{name:4}: start-up {seconds["start-up"]:.2f} s, evaluation '
            f'{seconds["evaluation"]:.2f} s for {calls} networks, the rest '
            f'{seconds["rest"]:.2f} s, {seconds["rest"] / searched:.2%} of the search'
        )


if __name__ == '__main__':
    main()
