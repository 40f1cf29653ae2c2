"""Costs all golden networks by arithmetic, and a sample of them by building and running them.

    python benchmarks/costs.py [--sample 12]

The golden networks are the rows of tests/data/pycls_complexity.csv: each is scaled from its named
base and counted, and must equal the row. The sample is built as modules (mmscale's ArchNet) and
counted by one forward pass: with hooks on convolutions, and with MMEngine's analyzers. Times are
CPU seconds of one thread.
"""

import argparse
import csv
import random
import statistics
import sys
import time
from pathlib import Path

from mmscale.arch import apply_scaling, get_arch, scaling_rule
from mmscale.cost import count

ROWS = Path(__file__).parents[1] / 'tests' / 'data' / 'pycls_complexity.csv'


def network(row):
    base = get_arch(row['base'])
    if row['strategy'] == 'base':
        return base
    return apply_scaling(base, scaling_rule(row['strategy']).scaling(int(row['scale'])), 'pycls')


def cost_rows(rows):
    """CPU seconds for all rows, and how many of them differ from the golden numbers."""
    different = 0
    start = time.process_time()
    for row in rows:
        cost = count(network(row), 'pycls')
        wanted = tuple(int(row[key]) for key in ('flops', 'params', 'acts'))
        different += (cost.flops, cost.params, cost.acts) != wanted
    return time.process_time() - start, different


def hooked_acts(net, image):
    """Acts of a network by hooks on its convolutions and linear layers."""
    import torch
    from torch import nn

    acts = 0

    def add(module, inputs, output):
        nonlocal acts
        acts += output.numel()

    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(add)
    with torch.no_grad():
        net(image)
    return acts


def module_times(row):
    """CPU seconds to build, to count by hooks and to count by MMEngine's analyzers."""
    import torch
    from mmengine.analysis import ActivationAnalyzer, FlopAnalyzer

    from mmscale.models import ArchNet

    arch = network(row)
    image = torch.zeros(1, arch.stem.in_channels, arch.resolution, arch.resolution)
    start = time.process_time()
    net = ArchNet(arch).eval()
    built = time.process_time()
    acts = hooked_acts(net, image)
    hooked = time.process_time()
    for analyzer in (FlopAnalyzer, ActivationAnalyzer):
        analyzer(net, image).unsupported_ops_warnings(False).total()
    analysed = time.process_time()
    if acts + arch.head.num_classes != count(arch).acts:
        raise SystemExit(f'{row["base"]} {row["strategy"]} {row["scale"]}: hooks count other acts')
    return built - start, hooked - built, analysed - hooked


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--sample', type=int, default=12, help='networks to build, 0 for none')
    args = parser.parse_args()
    with ROWS.open(encoding='utf-8', newline='') as file:
        rows = list(csv.DictReader(file))
    cold, different = cost_rows(rows)
    warm = min(cost_rows(rows)[0] for _ in range(5))
    print(f'{len(rows)} networks scaled and costed, {different} differ from the golden numbers')
    print(f'first pass {cold:.3f} s, {1e3 * cold / len(rows):.3f} ms a network')
    print(f'best of five more {warm:.3f} s, {1e3 * warm / len(rows):.3f} ms a network')
    if args.sample:
        import torch

        torch.set_num_threads(1)
        # Of moderate size: the largest take seconds and gigabytes, which flatters the arithmetic.
        moderate = [row for row in rows if int(row['flops']) < 8e9]
        sample = random.Random(0).sample(moderate, min(args.sample, len(moderate)))
        module_times(sample[0])  # imports and first allocations
        times = [module_times(row) for row in sample]
        build, hooks, analysis = (statistics.mean(column) for column in zip(*times, strict=True))
        print(f'{len(sample)} of them as modules, mean of each:')
        for name, seconds in (('hooks', build + hooks), ('MMEngine', build + analysis)):
            ratio = seconds / (cold / len(rows))
            print(f'  build, {name:9} {1e3 * seconds:8.1f} ms, {ratio:6.0f} times the arithmetic')
    return 1 if different else 0


if __name__ == '__main__':
    sys.exit(main())
