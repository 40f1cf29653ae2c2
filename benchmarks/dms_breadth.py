#!/usr/bin/env python
"""What differentiable model scaling can take from many networks, and whether it is right.

    python benchmarks/dms_breadth.py --json [NAME ...] [--out FILE]

Each network runs in a process of its own, under a time limit. Its groups are found; of each group,
and of the blocks of each network stage, a random half is pruned, all of them together; what comes
out has to be what comes out under masks of 0 and 1, and to cost what was predicted. A row has

- groups, elements, blocks: groups of widths, their elements, and residual blocks that can go;
- prunable_share: of the network's params, the share in layers (or parameters) whose width is in a
  group, or that lie in a block that can go;
- seconds: processor seconds of finding the groups;
- equals_masks, cost_equal: the two checks above, empty where there is nothing to prune;
- whole: what stays whole, and why; of a network without a row of numbers, why there is none.
"""

from __future__ import annotations

import os

os.environ.setdefault('OMP_NUM_THREADS', '1')

import argparse
import contextlib
import copy
import json
import logging
import sys
import time
import warnings
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    import torch
    from torch import nn

    from mmscale.models.dms import ChannelGroups

# Words of our own warnings.
OURS = {'whole,', 'go,', 'traced'}
ROW = ('groups', 'elements', 'blocks', 'prunable_share', 'seconds', 'equals_masks', 'cost_equal')


def prunable_share(model: nn.Module, groups: ChannelGroups) -> float:
    """Share of the params in layers whose width is in a group, or in a block that can go."""
    touched = {member.module for _, member in groups.members}
    blocks = tuple(f'{block}.' for depth in groups.depths for block in depth.blocks)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    found = sum(
        size
        for name, size in sizes.items()
        if name in touched or name.rpartition('.')[0] in touched or name.startswith(blocks)
    )
    return found / max(1, sum(sizes.values()))


def checks(
    model: nn.Module, groups: ChannelGroups, inputs: Sequence[torch.Tensor], seed: int
) -> tuple[bool, bool]:
    """Whether a pruned network gives what masks give, and costs what is predicted."""
    import torch
    from torch.utils._pytree import tree_leaves

    from mmscale.cost import count_module
    from mmscale.models import DifferentiableTopK
    from mmscale.models.dms import Masks, apply_pruning, plan_pruning
    from mmscale.models.dms.cost import MaskedCost

    generator = torch.Generator().manual_seed(seed)
    gates, keep, counts = torch.nn.ModuleDict(), {}, []
    for group in groups.all:
        chosen = torch.randperm(group.size, generator=generator)[: max(1, group.size // 2)]
        mask = torch.zeros(group.size).index_fill(0, chosen, 1)
        gates[group.key] = gate = DifferentiableTopK(group.size)
        gate.hard_mask.copy_(mask)
        gate.hard.fill_(True)
        keep[group.name] = chosen.tolist()
        counts += mask.tolist() if not hasattr(group, 'members') else [len(chosen)]

    def outputs(network: nn.Module) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        with torch.no_grad():
            return [leaf for leaf in tree_leaves(network(*inputs)) if torch.is_tensor(leaf)]

    small = apply_pruning(copy.deepcopy(model), plan_pruning(model, groups, keep))
    predicted = MaskedCost(model, groups, inputs).count(counts)
    cost_equal = count_module(small, inputs=inputs, memory=False).cost == predicted
    found = outputs(small)
    Masks(model, groups, gates).hard = True
    expected = outputs(model)
    # In double precision, or single inside of that; errors are a thousand times as large.
    limits = (1e-5 if one.dtype == torch.float64 else 1e-3 for one in expected)
    same = len(found) == len(expected) and all(
        one.shape == other.shape and (one - other).abs().max() <= limit * other.abs().max()
        for one, other, limit in zip(found, expected, limits, strict=True)
    )
    return bool(same), cost_equal


def row_of(name: str, seed: int) -> dict[str, Any]:
    """The row of one network."""
    import torch
    from dms_breadth_models import NETWORKS

    from mmscale.errors import FOREIGN_ERRORS, MMScaleError, one_line
    from mmscale.models.dms import channel_groups
    from mmscale.models.dms.trial import with_random_weights

    torch.manual_seed(seed)
    library, make = NETWORKS[name]
    row = {'name': name, 'library': library, **dict.fromkeys(ROW), 'whole': []}
    try:
        model, inputs = make()
    except FOREIGN_ERRORS as error:
        return row | {'whole': [f'cannot be built: {one_line(error):.200}']}
    row['input'] = [list(x.shape) for x in inputs]
    model = with_random_weights(model)
    start = time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        try:
            groups = channel_groups(model, inputs)
        except MMScaleError as error:
            return row | {'whole': [str(error)]}
    row['seconds'] = round(time.process_time() - start, 1)
    said = [str(one.message) for one in caught if issubclass(one.category, UserWarning)]
    row['whole'] = [
        text.partition('; to prune them')[0] for text in said if OURS & set(text.split())
    ]
    row |= {
        'groups': len(groups),
        'elements': groups.elements,
        'blocks': sum(depth.size for depth in groups.depths),
        'prunable_share': round(prunable_share(model, groups), 4),
    }
    if groups.all:
        with contextlib.suppress(*FOREIGN_ERRORS):  # not every model runs in double precision
            exact = copy.deepcopy(model).double()
            doubles = [x.double() if x.is_floating_point() else x for x in inputs]
            with torch.no_grad():
                exact(*doubles)
            model, inputs = exact, doubles
        row['equals_masks'], row['cost_equal'] = checks(model, groups, inputs, seed)
    return row


def _send_row(name: str, seed: int, end: Connection) -> None:
    """The row of one network, in a process of its own, whose prints are nobody's."""
    logging.disable(logging.WARNING)
    with open(os.devnull, 'w') as nowhere, contextlib.redirect_stdout(nowhere):
        row = row_of(name, seed)
    end.send(row)


def run_apart(name: str, seed: int, limit: float) -> dict[str, Any]:
    """The row of one network, from a process of its own."""
    from dms_breadth_models import NETWORKS

    context = get_context('forkserver')
    context.set_forkserver_preload(['mmpretrain.models', 'mmscale.models.dms'])
    own, other = context.Pipe()
    process = context.Process(target=_send_row, args=(name, seed, other))
    process.start()
    other.close()
    reason = f'no answer within {limit:.0f} s'
    try:
        if own.poll(limit):
            return own.recv()
    except EOFError:
        process.join()
        reason = f'its process ended with {process.exitcode}'
    finally:
        process.kill()
        process.join()
    return {'name': name, 'library': NETWORKS[name][0], **dict.fromkeys(ROW), 'whole': [reason]}


def why_whole(row: dict[str, Any]) -> str:
    """What stays whole of a network, in a few words: how many groups, and for which reasons."""
    texts = []
    for text in row['whole']:
        count, _, layers = text.partition(' groups stay whole')
        if not layers:
            texts.append(text)
            continue
        reasons = [
            part.rpartition(': ')[2] for part in layers.partition('understood: ')[2].split('; ')
        ]
        texts.append(f'{count.split()[-3]}: {", ".join(dict.fromkeys(reasons))}')
    return '; '.join(texts)


def cells(row: dict[str, Any]) -> list[str]:
    """A row as texts, in the order of the columns."""
    if row['groups'] is None:
        return [row['name'], *[''] * (len(ROW)), why_whole(row)]
    words = {True: 'yes', False: 'NO', None: ''}
    return [
        row['name'],
        str(row['groups']),
        f'{row["elements"]:,}',
        str(row['blocks']),
        f'{row["prunable_share"]:.1%}',
        f'{row["seconds"]:.1f}',
        words[row['equals_masks']],
        words[row['cost_equal']],
        why_whole(row),
    ]


COLUMNS = ('name', *(key.replace('_', ' ') for key in ROW), 'whole')


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table as Markdown, a part for each library."""
    lines = []
    for library in dict.fromkeys(row['library'] for row in rows):
        lines += [f'### {library}', '', f'| {" | ".join(COLUMNS)} |']
        lines.append(f'|---|{"---:|" * 5}{"---|" * 3}')
        some = [row for row in rows if row['library'] == library]
        lines += [f'| {" | ".join(cells(row))} |' for row in some] + ['']
    return '\n'.join(lines)


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Prints a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*COLUMNS)
    for row in rows:
        table.add_row(*cells(row))
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('names', nargs='*', metavar='NAME', help='networks; by default all')
    parser.add_argument('--json', action='store_true', help='print JSON instead of a table')
    parser.add_argument('--out', type=Path, metavar='FILE', help='write the JSON there, too')
    parser.add_argument('--seed', type=int, default=0, help='of weights, inputs and choices')
    parser.add_argument(
        '--limit', type=float, default=300, help='seconds for one network (default: 300)'
    )
    parser.add_argument(
        '--of', type=Path, metavar='FILE', help='show the rows of a file of --out, measure nothing'
    )
    parser.add_argument('--markdown', action='store_true', help='print the table as Markdown')
    args = parser.parse_args()
    from dms_breadth_models import NETWORKS

    unknown = [name for name in args.names if name not in NETWORKS]
    if unknown:
        parser.error(f'unknown: {", ".join(unknown)}; known are {", ".join(NETWORKS)}')
    names = args.names or list(NETWORKS)
    rows = [] if args.of is None else json.loads(args.of.read_text())
    rows = [row for row in rows if not args.names or row['name'] in names]
    for name in names if args.of is None else ():
        row = run_apart(name, args.seed, args.limit)
        rows.append(row)
        print(*(f'{key}={row[key]}' for key in ('name', *ROW, 'whole')), file=sys.stderr)
        if args.out:
            args.out.write_text(json.dumps(rows, indent=1) + '\n')
    if args.json:
        print(json.dumps(rows, indent=1))
    elif args.markdown:
        print(markdown(rows))
    else:
        show(rows)


if __name__ == '__main__':
    main()
