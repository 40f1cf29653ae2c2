#!/usr/bin/env python
"""Which faults the tests find: plants one at a time in a copy of the checkout and runs tests.

``python benchmarks/mutants.py`` tries all, ``... search models`` those of two packages, ``...
"BN keeps the default eps"`` one, and ``--check`` only looks whether every fault can still be
planted. Exit code 0: all were caught, 1: some survived, 2: a fault does not fit the code any more,
or tests fail without any.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Mutant:
    """A fault.

    Attributes:
        package: The package of mmscale; which of its files holds the text is found.
        fault: What is wrong then.
        old: Text that occurs exactly once in the package.
        new: What takes its place.
        tests: Files or folders of tests, below tests/; by default the package's own.
    """

    package: str
    fault: str
    old: str
    new: str
    tests: tuple[str, ...] = ()

    @property
    def tests_to_run(self) -> tuple[str, ...]:
        """Files or folders, from the checkout on."""
        return tuple(f'tests/{path}' for path in self.tests or (self.package,))


MUTANTS = (
    # ------------------------------------------------------------------ arch
    Mutant(
        'arch',
        '1.1 * 100 channels are 111',
        'math.ceil(round(quotient, 6))',
        'math.ceil(quotient)',
    ),
    Mutant(
        'arch',
        'a deeper network stage repeats its first block',
        '(repeated(stage[-1]),)',
        '(repeated(stage[0]),)',
    ),
    Mutant(
        'arch',
        'the squeeze width is rounded up',
        'channels=max(1, source // rule.squeeze_divisor)',
        'channels=max(1, -(-source // rule.squeeze_divisor))',
    ),
    Mutant(
        'arch',
        'the first dead gene counts as live',
        'self.gene_slot < self.depths(genes)',
        'self.gene_slot <= self.depths(genes)',
    ),
    Mutant(
        'arch',
        'the super-supernet is no wider than its widest subnet',
        'return largest if largest == smallest else largest + smallest',
        'return largest',
    ),
    Mutant(
        'arch',
        'the warm-up is an iteration longer',
        'if iteration < self.warmup_iters',
        'if iteration <= self.warmup_iters',
    ),
    Mutant(
        'arch',
        'the output does not follow the hidden width that groups need',
        'return hidden * under // over, hidden, group_width',
        'return width, hidden, group_width',
    ),
    Mutant(
        'arch',
        "the width's share of fast scaling is not halved",
        'float(rest), float(share / 2)',
        'float(rest), float(share)',
    ),
    Mutant(
        'arch',
        'a wider stage keeps its number of groups, not their width',
        'groups = hidden // (block.hidden_channels // groups)',
        'groups = block.groups',
    ),
    Mutant(
        'arch',
        'groups of 5 channels become 8, not 4',
        'if width <= 5',
        'if width <= 4',
    ),
    # ------------------------------------------------------------------ cost
    Mutant(
        'cost',
        'sizes of feature maps are rounded down',
        'return (size - 1) // stride + 1',
        'return max(1, size // stride)',
    ),
    Mutant(
        'cost',
        'group convolutions cost as dense ones',
        'kernel * kernel * in_channels * out_channels // groups',
        'kernel * kernel * in_channels * out_channels',
    ),
    Mutant(
        'cost',
        "squeeze-and-excitation is counted on the block's input",
        '_linear(grouped_out, block.se.channels, biased)',
        '_linear(block.in_channels, block.se.channels, biased)',
    ),
    Mutant(
        'cost',
        'bias additions are flops in every convention',
        'if bias and bias_flops',
        'if bias',
    ),
    Mutant(
        'cost',
        "a projection is counted at the block's input size",
        'block.in_channels, block.out_channels, 1, out_size)',
        'block.in_channels, block.out_channels, 1, size)',
    ),
    Mutant(
        'cost',
        "the table forgets a deeper stage's first extra block",
        'costs[own:scaled]',
        'costs[own + 1 : scaled]',
    ),
    Mutant(
        'cost',
        'any network below the budget meets it',
        'return abs(found.deviation) <= self._tolerance and',
        'return found.deviation <= self._tolerance and',
    ),
    Mutant(
        'cost',
        'the largest resolution need not be a multiple of the divisor',
        'resolution // divisor * divisor / self.base.resolution',
        'resolution / self.base.resolution',
    ),
    Mutant(
        'cost',
        'the runtime law is fitted to absolute errors',
        'nnls(columns / sizes / ms[:, None], np.ones(len(ms)))',
        'nnls(columns / sizes, ms)',
    ),
    Mutant(
        'cost',
        'weights count as activations kept for the backward pass',
        'if storage._cdata not in ignored',
        'if True',
    ),
    # ------------------------------------------------------------------ search
    Mutant(
        'search',
        'a mutation may give a gene its old value',
        'rng.integers(1, np.maximum(space.num_choices, 2)',
        'rng.integers(0, np.maximum(space.num_choices, 2)',
        ('search/test_operators.py',),
    ),
    Mutant(
        'search',
        'a crossover copies one parent',
        'np.where(swapped, second, first)',
        'np.where(swapped, first, first)',
        ('search/test_operators.py',),
    ),
    Mutant(
        'search',
        'of equal fitness the more expensive base model is the better',
        'return -self.fitness, self.cost,',
        'return -self.fitness, -self.cost,',
        ('search/test_evolution.py',),
    ),
    Mutant(
        'search',
        'any cost below a budget is feasible',
        'np.abs(deviation) <= self.tolerance',
        'deviation <= self.tolerance',
        ('search/test_feasibility.py',),
    ),
    Mutant(
        'search',
        "scaled budgets follow the nominal budget, not the base model's cost",
        'base_cost * 2**scaling_stage',
        'self.budget * 2**scaling_stage',
        ('search/test_feasibility.py',),
    ),
    Mutant(
        'search',
        'checksums of the archive cover the first 100 bytes of a line',
        'hashlib.blake2b(payload,',
        'hashlib.blake2b(payload[:100],',
        ('search/test_archive.py',),
    ),
    Mutant(
        'search',
        'an entry is appended to a line that was cut off',
        'os.ftruncate(descriptor, content_end)',
        'content_end = os.lseek(descriptor, 0, os.SEEK_END)',
        ('search/test_archive.py',),
    ),
    Mutant(
        'search',
        'halving forgets what the other scaling stages may still add',
        '(wanted - done - open_weight) / weight',
        '(wanted - done) / weight',
        ('search/test_halving.py',),
    ),
    Mutant(
        'search',
        'an equal score at a higher cost is on the front',
        'points[i][0] > points[front[-1]][0]',
        'points[i][0] >= points[front[-1]][0]',
        ('search/test_dominance.py',),
    ),
    Mutant(
        'search',
        'scalings are compared without the difficulty of their base models',
        'weight * (value - mean)',
        'weight * value',
        ('search/test_strategy.py',),
    ),
    # ------------------------------------------------------------------ models
    Mutant(
        'models',
        "a small kernel is the large one's corner",
        'if dimension < 2 else (size - part) // 2',
        'if dimension < 2 else 0',
        ('models/test_super_net.py',),
    ),
    Mutant(
        'models',
        'right slices lie on the left',
        "'right': size - part",
        "'right': 0",
        ('models/test_super_net.py',),
    ),
    Mutant(
        'models',
        'identity shortcuts are dropped',
        "if self.block.residual != 'none'",
        "if self.block.residual == 'projection'",
        ('models/test_arch_net.py',),
    ),
    Mutant(
        'models',
        'momentum of what a step did not use changes',
        'before = state.get(key)',
        'before = value.clone()',
        ('models/test_slice_step.py',),
    ),
    Mutant(
        'models',
        'BN keeps the default eps',
        'norm_cfg=dict(norm_cfg, eps=eps)',
        'norm_cfg=dict(norm_cfg)',
        ('models/test_arch_net.py',),
    ),
    Mutant(
        'models',
        'what an earlier step used counts as used for ever',
        'self.backbone.forget_slices()',
        'pass',
        ('models/test_super_net_classifier.py', 'models/test_slice_step.py'),
    ),
    Mutant(
        'models',
        'an extracted network shares its weights with the super-supernet',
        'part.clone(memory_format=torch.contiguous_format)',
        'part',
        ('models/test_super_net.py',),
    ),
    Mutant(
        'models',
        'a network stage less than asked for is frozen',
        'parts[: self.frozen_stages + 1]',
        'parts[: self.frozen_stages]',
        ('models/test_arch_net.py',),
    ),
    Mutant(
        'models',
        'an element whose mask is one half goes',
        'self.places() - self.pruning_ratio >= 0',
        'self.places() - self.pruning_ratio > 0',
        ('models/dms/test_topk.py',),
    ),
    Mutant(
        'models',
        'depthwise layers cost as the product of both widths under masks',
        'return module.in_channels, module.out_channels, depthwise',
        'return module.in_channels, module.out_channels, False',
        ('models/dms/test_cost.py',),
    ),
)


def location(mutant: Mutant, root: Path) -> Path:
    """The file that holds a fault's old text.

    Raises:
        SystemExit: None does, or the text occurs more than once.
    """
    files = sorted((root / 'mmscale' / mutant.package).rglob('*.py'))
    counts = {path: path.read_text(encoding='utf-8').count(mutant.old) for path in files}
    found = [path for path, count in counts.items() if count]
    if sum(counts.values()) != 1:
        where = ', '.join(str(path.relative_to(root)) for path in found) or 'no file'
        print(
            f'"{mutant.fault}" does not fit mmscale/{mutant.package} any more: {mutant.old!r} '
            f'must occur once, it does {sum(counts.values())} times, in {where}',
            file=sys.stderr,
        )
        raise SystemExit(2)
    return found[0]


def first_failure(tests: Sequence[str], root: Path) -> str | None:
    """The test of a checkout that fails first, or None.

    Raises:
        SystemExit: pytest did not run.
    """
    command = [sys.executable, '-m', 'pytest', '-x', '-q', '-p', 'no:cacheprovider', *tests]
    # No byte-code: it is told from a changed source by the second and the size alone.
    environment = {**os.environ, 'PYTHONPATH': str(root), 'PYTHONDONTWRITEBYTECODE': '1'}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    failures = [line for line in done.stdout.splitlines() if line.startswith(('FAILED', 'ERROR'))]
    if done.returncode > 2 or not failures:
        print(done.stdout[-2000:] + done.stderr[-2000:], file=sys.stderr)
        raise SystemExit(2)
    return failures[0].split(' - ')[0].split(' ', 1)[1]


def main() -> None:
    """Plants the faults and prints of each which test caught it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('names', nargs='*', help='packages or faults (default: all)')
    parser.add_argument('--check', action='store_true', help='only find the texts to change')
    args = parser.parse_args()
    known = {name for mutant in MUTANTS for name in (mutant.package, mutant.fault)}
    if unknown := set(args.names) - known:
        parser.error(f'{", ".join(sorted(unknown))}: no such package or fault')
    chosen = [m for m in MUTANTS if not args.names or {m.package, m.fault} & set(args.names)]
    for mutant in chosen:
        location(mutant, ROOT)
    if args.check:
        print(f'{len(chosen)} faults can be planted')
        return
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / 'checkout'
        skipped = shutil.ignore_patterns('.git', '.venv', '.*_cache', '__pycache__', 'work_dirs')
        shutil.copytree(ROOT, copy, symlinks=True, ignore=skipped)
        for tests in dict.fromkeys(mutant.tests_to_run for mutant in chosen):
            if failure := first_failure(tests, copy):
                print(f'{failure} fails without any fault', file=sys.stderr)
                raise SystemExit(2)
        for mutant in chosen:
            path = location(mutant, copy)
            source = path.read_text(encoding='utf-8')
            path.write_text(source.replace(mutant.old, mutant.new), encoding='utf-8')
            start = time.perf_counter()
            failure = first_failure(mutant.tests_to_run, copy)
            path.write_text(source, encoding='utf-8')
            seconds = time.perf_counter() - start
            if failure is None:
                survivors.append(mutant)
            verdict = f'caught by {failure}' if failure else 'SURVIVED'
            print(f'{mutant.package}: {mutant.fault}: {verdict} ({seconds:.0f} s)', flush=True)
    print(f'{len(chosen) - len(survivors)} of {len(chosen)} caught')
    sys.exit(1 if survivors else 0)


if __name__ == '__main__':
    main()
