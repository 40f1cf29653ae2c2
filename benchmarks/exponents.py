"""Fitted exponents of params and acts against the factor, beside those of the paper.

    python benchmarks/exponents.py [NAME ...]

An ideal network stage, dense convolutions of one width, shows the formulas alone; named networks
(RegNetY-4.0GF and EfficientNet-B0 by default) add stems, heads, transitions and rounding.
"""

import argparse
import math
import sys

import numpy as np

from mmscale.arch import (
    SCALING_RULES,
    Arch,
    Block,
    Head,
    Rounding,
    Stem,
    apply_scaling,
    get_arch,
    scaling_rule,
)
from mmscale.cost import count

FACTORS = (1, 2, 4, 8, 16, 32)
METRICS = ('flops', 'params', 'acts')


def ideal_stage(depth=100, width=512, resolution=512):
    """A hundred dense convolutions of one width after a stem that costs next to nothing."""
    block = Block('basic', 3, 1, width, width, width, 1, act='relu', residual='identity')
    stem = Stem(width, in_channels=1, kernel=1, stride=1, act='relu')
    return Arch(resolution, stem, ((block,) * depth,), Head(act='relu'))


def exponents(base, rule, rounding=None):
    """Exponents of flops, params and acts fitted to a network's costs over the factors."""
    logs = np.log(FACTORS)
    costs = [count(apply_scaling(base, rule.scaling(f), 'pycls', rounding)) for f in FACTORS]
    return {
        key: float(np.polyfit(logs, [math.log(getattr(cost, key)) for cost in costs], 1)[0])
        for key in METRICS
    }


def theory(rule):
    """Exponents of the paper: flops d w^2 r^2, params d w^2, acts d w r^2."""
    d, w, r = rule.depth, rule.width, rule.resolution
    return {'flops': d + 2 * w + 2 * r, 'params': d + 2 * w, 'acts': d + w + 2 * r}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('names', nargs='*', default=['RegNetY-4.0GF', 'EfficientNet-B0'])
    args = parser.parse_args()
    try:
        bases = {name: get_arch(name) for name in args.names}
    except ValueError as error:
        parser.error(str(error))
    bases = {'ideal stage': ideal_stage(), **bases}
    names = [name for name in SCALING_RULES if not name.endswith('gfix') and name != 'g']
    names += [f'dWr_a{alpha}' for alpha in (0.2, 0.4, 0.5, 0.6, 0.9)]
    print(f'{"":10} {"paper":>13}' + ''.join(f' {name:>15}' for name in bases))
    print(f'{"strategy":10} {"params   acts":>13}' + f' {"params   acts":>15}' * len(bases))
    for name in names:
        rule = scaling_rule(name)
        columns = [theory(rule)]
        for where, base in bases.items():
            rounding = Rounding('nearest') if where == 'ideal stage' else None
            columns.append(exponents(base, rule, rounding))
        cells = [f'{column["params"]:6.3f} {column["acts"]:6.3f}' for column in columns]
        print(f'{name:10} {cells[0]}' + ''.join(f' {cell:>15}' for cell in cells[1:]))
    return 0


if __name__ == '__main__':
    sys.exit(main())
