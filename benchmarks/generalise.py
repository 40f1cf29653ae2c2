#!/usr/bin/env python
"""Compares ScaleNet's published S4 and S5 with what a rule fitted to S1 to S3 makes of S0.

The published strategy has no rule for the larger scaling stages; this fits one, extrapolates it
to the true cost of the published networks, and says how far the multipliers are off.
"""

import argparse
import json

from mmscale.apis.scaling.archs import scale
from mmscale.apis.scaling.searched import FoundFamily
from mmscale.arch import Rounding, get_arch
from mmscale.arch.presets import SCALENET_STRATEGY

FITTED = 4  # S0 to S3


def rows(rule: str) -> list[dict]:
    suffix = '' if rule == 'retraining' else '-search'
    archs = tuple(get_arch(f'scalenet-s{j}{suffix}') for j in range(len(SCALENET_STRATEGY)))
    rounding = Rounding('ceil', resolution_divisor=2)

    def family(stages: int) -> FoundFamily:
        strategy = SCALENET_STRATEGY[:stages]
        return FoundFamily(
            'scalenet', strategy, archs[:stages], 'flops', 'mmscale', rule, rounding
        )

    known = family(FITTED)
    ratios = family(len(archs)).cost_ratios
    made = scale(known, factors=ratios[1:])
    found = []
    for stage, network in enumerate(made, start=1):
        published, solved = SCALENET_STRATEGY[stage], network.scaling
        fitted = known.rule().scaling(ratios[stage])
        found.append(
            {
                'scaling_stage': stage,
                'cost_ratio': ratios[stage],
                'published': published.to_json(),
                'fitted': fitted.to_json(),
                'solved': solved.to_json(),
                'published_blocks': len(archs[stage].blocks),
                'solved_blocks': len(network.arch.blocks),
                'published_resolution': archs[stage].resolution,
                'solved_resolution': network.arch.resolution,
                'solved_ratio': network.achieved / network.target * ratios[stage],
            }
        )
    return [{'exponents': vars(known.rule())}, *found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--rule', choices=('retraining', 'search'), default='retraining')
    parser.add_argument('--json', action='store_true')
    args = parser.parse_args()
    exponents, *found = rows(args.rule)
    if args.json:
        print(json.dumps([exponents, *found], indent=1))
        return
    print('exponents:', exponents['exponents'])
    print('| S | x S0 | | depth | width | resolution | blocks | px |')
    print('|---|---|---|---|---|---|---|---|')
    for row in found:
        published = row['published']
        print(
            f'| {row["scaling_stage"]} | {row["cost_ratio"]:.2f} | published '
            f'| {published["depth"]:.3f} | {published["width"]:.3f} '
            f'| {published["resolution"]:.3f} | {row["published_blocks"]} '
            f'| {row["published_resolution"]} |'
        )
        for kind in ('fitted', 'solved'):
            cells = [
                f'{row[kind][key]:.3f} ({row[kind][key] / published[key] - 1:+.1%})'
                for key in ('depth', 'width', 'resolution')
            ]
            shape = (
                ' | | '
                if kind == 'fitted'
                else (f' | {row["solved_blocks"]} | {row["solved_resolution"]} ')
            )
            ratio = f'{row["solved_ratio"]:.2f}' if kind == 'solved' else ''
            print(f'| | {ratio} | {kind} | {" | ".join(cells)}{shape}|')


if __name__ == '__main__':
    main()
