"""Reads public benchmarks of architecture search: every network of a space with its accuracy.

A table is a CSV file with an accuracy, and either a column `arch` with one symbol or one entry per
choice, or a column per gene of the space. Costs may stand beside them.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config

from mmscale.arch import SearchSpace
from mmscale.arch.genes import Gene, Genes
from mmscale.arch.spoken import shown_number
from mmscale.cost import CostTable
from mmscale.errors import UsageError

_ACCURACIES = (
    'mean_acc', 'acc', 'accuracy', 'mean_accuracy', 'test_acc', 'test_accuracy', 'val_acc',
    'valid_acc', 'val_accuracy', 'valid_accuracy', 'top1', 'top1_acc', 'acc1', 'top_1', 'score',
)  # fmt: skip
_ARCHS = ('arch', 'architecture', 'arch_str', 'archstr', 'arch_string', 'encoding', 'genotype')
_COSTS = re.compile(
    r'flop|mac|madd|mult|param|^acts|activation|latency|energy|memory|time|size|_ms$'
)
# What others call the costs that mmscale counts.
_METRICS = {
    'flops': ('flops', 'macs', 'madds', 'mult_adds', 'multiply_adds', 'flop', 'mflops', 'gflops'),
    'params': ('params', 'parameters', 'param', 'num_params', 'size'),
    'acts': ('acts', 'activations'),
}
# What is neither a choice nor a cost.
_OTHERS = re.compile(
    r'^(id|index|idx|row|hash|seed|canonical|unnamed.*|name|)$|acc|err|loss|std|seed|formula|'
    r'top_?[15]|rank|epoch'
)
_SEPARATORS = re.compile(r'[-:|,_\s]+')
_NAMES = {
    'depth': ('depth', 'depths', 'd', 'ds', 'num_blocks', 'layers'),
    'channels': ('channels', 'channel', 'width', 'widths', 'w', 'ws', 'c'),
    'kernel': ('kernel', 'kernels', 'kernel_size', 'ks', 'k'),
    'expand': ('expand', 'expands', 'expansion', 'expansions', 'expand_ratio', 'e', 'es'),
    'group_width': ('group_width', 'group_widths', 'groups', 'g', 'gs', 'gw'),
    'resolution': ('resolution', 'resolutions', 'r', 'res', 'image_size', 'pixels'),
    'stem': ('stem', 'stem_channels', 'stem_width'),
    'head_channels': ('head_channels', 'head'),
    'head_hidden_channels': ('head_hidden_channels', 'hidden_head'),
    'block': ('block', 'blocks', 'op', 'ops', 'operation'),
    'kind': ('kind', 'kinds', 'block_kind', 'type'),
    'se': ('se', 'ses', 'squeeze'),
    'act': ('act', 'activation', 'nonlinearity'),
}
_UNITS = re.compile(r'_(k|m|g|b|kb|mb|gb|thousands?|millions?|billions?)$')
# Relative difference of costs that were written in other units.
_EQUAL = 1e-9
_SKIPS = ('0', 'skip', 'none', 'identity', 'id', 'x', 's')


@dataclass
class Truth:
    """What is known of all networks of a table.

    Attributes:
        space: The space.
        genes: Canonical genotypes, each once, shape (n, genes).
        accuracies: In percent, shape (n,); the mean of the rows that mean one network.
        costs: Of every column of costs the values, shape (n,); those that mmscale counts are
            counted where the table does not give them.
        counted: Names of the costs that the table and mmscale count alike, or mmscale alone.
        notes: What a reader of the results should know.
    """

    space: SearchSpace
    genes: Genes
    accuracies: np.ndarray
    costs: dict[str, np.ndarray]
    counted: set[str]
    notes: list[str] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether every network of the space has a row."""
        return len(self.genes) == self.space.size


def read_space(path: Path) -> SearchSpace:
    """The space of a config file.

    Raises:
        UsageError: There is no such file, or no space in it.
    """
    if not path.is_file():
        raise UsageError(f'--space {path}: no such file')
    try:
        config = Config.fromfile(path)
    except Exception as error:  # Whatever the user's own file raises is its mistake.
        raise UsageError(f'--space {path}: {type(error).__name__}: {error}') from error
    if 'space' not in config:
        raise UsageError(f'--space {path}: holds no space = dict(...)')
    space = SearchSpace.from_config(config.space)
    if len(space.scaling_stages) > 1:
        what = f'{len(space.scaling_stages)} scaling stages; a table is of a space with one'
        raise UsageError(f'--space {path}: {what}')
    return space


def read_rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a CSV file."""
    if not path.is_file():
        raise UsageError(f'--table {path}: no such file')
    try:
        lines = path.read_text(encoding='utf-8-sig').splitlines(keepends=True) or ['']
        delimiter = max(',;\t', key=lines[0].count)
        reader = csv.DictReader(lines, delimiter=delimiter, skipinitialspace=True)
        rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f'--table {path}: {error}') from error
    columns = [column for column in reader.fieldnames or () if column is not None]
    if not rows or not columns:
        raise UsageError(f'--table {path}: holds no rows')
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            wanted = f'{len(columns)} values, as the columns {", ".join(columns)} want'
            raise UsageError(f'--table {path}, line {number}: other than {wanted}')
    return columns, rows


def read_truth(table: Path, config: Path, accuracy: str | None = None) -> Truth:
    """Reads a table.

    Args:
        table: CSV file.
        config: File with the space.
        accuracy: Name of the column of the accuracy; by default the first usual one.

    Raises:
        UsageError: Something cannot be read; the message names column, value and what is allowed.
    """
    space = read_space(config)
    columns, rows = read_rows(table)
    name = _accuracy_column(columns, accuracy)
    notes = [f'{table.name}: {len(rows):,} rows, accuracy from {name}']
    accuracies = _numbers(rows, name)
    if accuracies.max() <= 1:
        accuracies = 100 * accuracies
        notes.append(f'{name} is a fraction: regret is in points all the same')
    low, high = accuracies.min(), accuracies.max()
    if low < 0 or high > 100:
        raise UsageError(f'column {name}: {low:g} to {high:g} are neither percents nor fractions')
    by_name = {_plain(column): column for column in columns}
    named = next((by_name[key] for key in _ARCHS if key in by_name), None)
    if named is not None:
        raw, how = _genes_of_strings(space, named, [row[named] for row in rows])
    else:
        left = [c for c in columns if c != name and not _OTHERS.search(_plain(c))]
        raw, how = _genes_of_columns(space, left, rows)
    notes.append(how)
    genes, first, which = np.unique(
        space.canonicalise(raw), axis=0, return_index=True, return_inverse=True
    )
    which = which.ravel()
    counts = np.bincount(which)
    means = np.bincount(which, weights=accuracies) / counts
    if len(genes) < len(rows):
        spread = np.abs(accuracies - means[which]).max()
        notes.append(
            f'{len(rows):,} rows mean {len(genes):,} networks: each counts once, with the mean of '
            f'its rows (they differ from it by at most {spread:.3g} points)'
        )
    truth = Truth(space, genes, means, *_costs(space, genes, columns, rows, first, notes), notes)
    if not truth.is_complete:
        notes.append(
            f'{len(genes):,} of the {shown_number(space.size)} networks of the space have a row: '
            f'to all methods the others are infeasible, and none is charged for them'
        )
    return truth


def _plain(name: str) -> str:
    return re.sub(r'[^a-z0-9]+', '_', name.lower()).strip('_')


def _metric(column: str) -> str:
    """The name of a column of costs without its unit: FLOPs (M), params_mb."""
    return _UNITS.sub('', _plain(re.sub(r'[(\[].*?[)\]]', '', column)))


def _accuracy_column(columns: Sequence[str], wanted: str | None) -> str:
    if wanted is not None:
        if wanted not in columns:
            raise UsageError(f'--accuracy {wanted}: the columns are {", ".join(columns)}')
        return wanted
    by_name = {_plain(column): column for column in columns}
    usual = [by_name[name] for name in _ACCURACIES if name in by_name]
    others = [name for name in by_name if 'acc' in name and 'std' not in name]
    # Of several that of the test images is meant, then that of validation; of training last.
    others.sort(key=lambda name: ('test' not in name, 'val' not in name, 'train' in name))
    usual += [by_name[name] for name in others]
    if not usual:
        usual = f'usual are {", ".join(_ACCURACIES)}'
        found = f'no column of an accuracy among {", ".join(columns)}'
        raise UsageError(f'{found}: name it with --accuracy ({usual})')
    return usual[0]


def _numbers(rows: Sequence[Mapping[str, str]], column: str) -> np.ndarray:
    found = np.empty(len(rows))
    for i, row in enumerate(rows):
        try:
            found[i] = float(row[column])
        except ValueError:
            found[i] = np.nan
        if not np.isfinite(found[i]):
            raise UsageError(f'column {column}, line {i + 2}: {row[column]!r:.40} is no number')
    return found


# ------------------------------------------------------------------ costs


def _costs(
    space: SearchSpace,
    genes: Genes,
    columns: Sequence[str],
    rows: Sequence[Mapping[str, str]],
    first: np.ndarray,
    notes: list[str],
) -> tuple[dict[str, np.ndarray], set[str]]:
    """Costs by name, and the names of those that mmscale counts in the same way."""
    costs: dict[str, np.ndarray] = {}
    taken = [rows[i] for i in first]
    for column in columns:
        name = _plain(column)
        if _COSTS.search(name) and 'formula' not in name:
            try:
                costs[column] = _numbers(taken, column)
            except UsageError:
                notes.append(f'column {column} holds no numbers: left out')
    table, counted = CostTable(space).costs(genes), set()
    for metric, others in _METRICS.items():
        own = getattr(table, metric).astype(np.float64)
        column = next((c for c in costs if _metric(c) in others), None)
        given = own if column is None else costs.pop(column)
        ratio = float(np.median(given / own))
        if not ratio > 0:
            costs[metric] = given
            continue
        # Units of thousands, millions or billions.
        unit = 1000.0 ** min(max(round(np.log(ratio) / np.log(1000)), -3), 0)
        costs[metric] = given = given / unit
        off = float(np.abs(given / own - 1).max())
        if off < _EQUAL:
            costs[metric] = own
            counted.add(metric)
        else:
            notes.append(
                f'{column} of the table and {metric} as mmscale counts them differ by up to '
                f'{100 * off:.3g} %: caps are on those of the table'
            )
    return costs, counted


# ------------------------------------------------------------------ genotypes


def _chosen(space: SearchSpace) -> list[int]:
    """Columns of the genes that are choices."""
    return [i for i, gene in enumerate(space.genes) if len(gene.values) > 1]


def _split(text: str) -> list[str]:
    """The entries of an architecture string."""
    text = text.strip().strip('[](){}|').replace("'", '').replace('"', '')
    parts = [part for part in _SEPARATORS.split(text) if part]
    return parts if len(parts) > 1 else list(text)


def _genes_of_strings(space: SearchSpace, column: str, texts: Sequence[str]) -> tuple[Genes, str]:
    entries = [_split(text) for text in texts]
    lengths = {len(own) for own in entries}
    places = sum(stage.depths[-1] for stage in space.stages)
    chosen = _chosen(space)
    if lengths == {places} and _is_placewise(space):
        try:
            return _placewise(space, column, texts, entries)
        except UsageError:
            if lengths not in ({len(chosen)}, {space.num_genes}):
                raise
    for genes in (chosen, list(range(space.num_genes))):
        if lengths == {len(genes)}:
            names = {gene: f'{column}, entry {i + 1}' for i, gene in enumerate(genes)}
            values = {gene: [own[i] for own in entries] for i, gene in enumerate(genes)}
            return _genewise(space, values, names), (
                f'{column}: an entry per {"choice" if genes == chosen else "gene"}, in the order '
                f'of space.genes'
            )
    example = next(text for text, own in zip(texts, entries, strict=True) if len(own) in lengths)
    raise UsageError(
        f'column {column}: {example!r:.60} has {min(lengths)} entries'
        + (f' and others up to {max(lengths)}' if len(lengths) > 1 else '')
        + f'; allowed are {len(chosen)} (one per choice: {", ".join(_words(space, chosen))}), '
        f'{space.num_genes} (one per gene) or {places} (one per place of a block)'
    )


def _words(space: SearchSpace, genes: Sequence[int]) -> Iterator[str]:
    return (gene_name(space.genes[gene]) for gene in genes)


def gene_name(gene: Gene) -> str:
    """A gene for messages, and as a column may be named."""
    if gene.name in ('resolution', 'stem', 'head_channels', 'head_hidden_channels'):
        return gene.name
    slot = '' if gene.slot < 0 else f'_{gene.slot}'
    return f'{gene.name}_{gene.stage}{slot}'


def _is_placewise(space: SearchSpace) -> bool:
    """Whether all that is chosen is what is at each place: a skip, or one of some blocks."""
    for i in _chosen(space):
        gene, stage = space.genes[i], space.stages[space.genes[i].stage]
        if gene.name == 'depth':
            if stage.skips != 'anywhere' and stage.depths[-1] - stage.depths[0] > 1:
                return False
        elif gene.slot < 0:
            return False
    slots = [(space.genes[i].stage, space.genes[i].slot) for i in _chosen(space)]
    slots = [slot for slot in slots if slot[1] >= 0]
    return bool(slots) and len(slots) == len(set(slots))


def _placewise(
    space: SearchSpace, column: str, texts: Sequence[str], entries: Sequence[Sequence[str]]
) -> tuple[Genes, str]:
    """A symbol per place, as NAS-Bench-Macro has it: the first one (0) skips a place.

    At a first place that cannot be skipped 0 is its first block, if it has one more than others.
    """
    genes = np.zeros((len(texts), space.num_genes), dtype=np.int64)
    by_slot = {(g.stage, g.slot): i for i, g in enumerate(space.genes) if g.slot >= 0}
    for row, (text, own) in enumerate(zip(texts, entries, strict=True)):
        start = 0
        for j, (stage, stage_genes) in enumerate(
            zip(space.stages, space.stage_genes, strict=True)
        ):
            most = stage.depths[-1]
            part, start = own[start : start + most], start + most
            blocks = []
            further = len(space.genes[by_slot[j, most - 1]].values)
            for slot, symbol in enumerate(part):
                here = len(space.genes[by_slot[j, slot]].values)
                number = 0 if symbol.lower() in _SKIPS else _integer(symbol)
                if slot == 0 and here == further + 1:
                    allowed = 0 <= number < here
                    blocks.append(number)
                elif slot == 0:
                    allowed = 1 <= number <= here
                    blocks.append(number - 1)
                else:
                    allowed = 0 <= number <= here
                    if number > 0:
                        blocks.append(number - 1)
                if not allowed:
                    raise UsageError(
                        f'column {column}: {text!r:.60}, place {slot + 1} of network stage '
                        f'{j + 1}: {symbol!r} is none of '
                        + ', '.join(map(str, range(here if not slot else here + 1)))
                    )
            if len(blocks) not in stage.depths:
                raise UsageError(
                    f'column {column}: {text!r:.60}: network stage {j + 1} has {len(blocks)} '
                    f'blocks, allowed are {list(stage.depths)}'
                )
            genes[row, stage_genes.depth] = stage.depths.index(len(blocks))
            for slot, block in enumerate(blocks):
                genes[row, by_slot[j, slot]] = block
    return genes, f'{column}: a symbol per place of a block, as in NAS-Bench-Macro'


def _integer(symbol: str) -> int:
    return int(symbol) if symbol.isdecimal() else -1


def _genes_of_columns(
    space: SearchSpace, columns: Sequence[str], rows: Sequence[Mapping[str, str]]
) -> tuple[Genes, str]:
    """Genes of columns that are named as they are, or stand in their order."""
    values: dict[int, list[str]] = {}
    names: dict[int, str] = {}
    for name, words in _NAMES.items():
        own = [column for column in columns if _word(column) in words]
        if not own or not any(gene.name == name for gene in space.genes):
            continue
        own.sort(key=lambda column: [int(n) for n in re.findall(r'\d+', column)])
        every = [i for i, gene in enumerate(space.genes) if gene.name == name]
        chosen = [i for i in every if len(space.genes[i].values) > 1]
        lists = [[part for c in own for part in _listed(row[c], len(own))] for row in rows]
        lengths = {len(entries) for entries in lists}
        genes = next((some for some in (chosen, every) if lengths == {len(some)}), None)
        if genes is None:
            if not chosen:
                continue
            raise UsageError(
                f'column{"s" if len(own) > 1 else ""} {", ".join(own)}: '
                f'{"/".join(map(str, sorted(lengths)))} values for {name}, but the space has '
                f'{len(every)} such genes: {", ".join(_words(space, every))}'
            )
        for i, gene in enumerate(genes):
            values[gene] = [entries[i] for entries in lists]
            names[gene] = own[i] if len(own) == len(genes) else own[0]
    chosen = _chosen(space)
    if set(chosen) <= set(values):
        return _genewise(space, values, names), 'genes by the names of their columns'
    left = [column for column in columns if not _COSTS.search(_plain(column))]
    for genes in (chosen, list(range(space.num_genes))):
        if len(left) == len(genes):
            values = {g: [row[c] for row in rows] for g, c in zip(genes, left, strict=True)}
            names = dict(zip(genes, left, strict=True))
            return _genewise(space, values, names), (
                f'genes by the order of the columns {left[0]} to {left[-1]}'
            )
    missing = _words(space, [i for i in chosen if i not in values])
    raise UsageError(
        f'no column arch, and no columns for the genes {", ".join(missing)}; the columns that may '
        f'be genes are {", ".join(left) or "none"}: either name them so, or give one per choice '
        f'({len(chosen)}) or per gene ({space.num_genes}) in the order of space.genes'
    )


def _word(column: str) -> str:
    """The name of a gene without the places that it is of: stage2_block1_kernel is a kernel."""
    plain = _plain(column)
    name = re.sub(r'(^|_)(stages?|s|b|blocks?|slots?|layers?)_?(?=\d)', '_', plain)
    words = (re.sub(r'[_\d]+', '_', each).strip('_') for each in (name, plain))
    return next(filter(None, words), '')


def _listed(text: str, columns: int) -> list[str]:
    return [text.strip()] if columns > 1 else _split(text) if not _is_number(text) else [text]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _genewise(
    space: SearchSpace, values: Mapping[int, Sequence[str]], names: Mapping[int, str]
) -> Genes:
    """Genes by what each chooses, or by its index; of what is not given, the only choice."""
    size = len(next(iter(values.values())))
    genes = np.zeros((size, space.num_genes), dtype=np.int64)
    for gene, symbols in values.items():
        own = space.genes[gene].values
        distinct = sorted(set(symbols))
        found = {symbol: _place(symbol, own) for symbol in distinct}
        if None in found.values():
            wrong = next(symbol for symbol in distinct if found[symbol] is None)
            numbers = {symbol: _integer(symbol.strip()) for symbol in distinct}
            if not all(0 <= number < len(own) for number in numbers.values()):
                shown = ', '.join(map(str, own))
                raise UsageError(
                    f'column {names[gene]}: {wrong!r:.40} is no {gene_name(space.genes[gene])}: '
                    f'allowed are its values {shown}, or their numbers 0 to {len(own) - 1} in all '
                    f'rows'
                )
            found = numbers
        genes[:, gene] = [found[symbol] for symbol in symbols]
    return genes


def _place(symbol: str, values: Sequence[Any]) -> int | None:
    """The place of the value that a symbol says."""
    text = symbol.strip().lower()
    for i, value in enumerate(values):
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if _is_number(text) and float(text) == value:
                return i
        elif value is None:
            if text in ('none', 'no', 'false', ''):
                return i
        elif text == str(value).lower():
            return i
    if all(isinstance(value, tuple) for value in values):
        # A tied choice by its numbers, as k3e6 for a kernel of 3 and an expansion of 6.
        said = sorted(re.findall(r'\d+', text))
        of = [sorted(re.findall(r'\d+', str(value))) for value in values]
        if len(said) > 1 and of.count(said) == 1:
            return of.index(said)
    return None
