"""Pictures of a network, of a search or of a super-supernet's training, from its files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmscale.apis.networks import find_network
from mmscale.apis.reports.run_files import RunFiles, read_run
from mmscale.arch import Arch, HierarchicalSampler, Scaling, SearchSpace
from mmscale.arch.origin import KEY, Origin, origin_of
from mmscale.config_parts import type_name
from mmscale.cost import count
from mmscale.errors import FOREIGN_ERRORS, UsageError, one_line
from mmscale.search import pareto_front
from mmscale.tables import Printed, make_table
from mmscale.untrusted import check_no_link
from mmscale.visualization import (
    ChainPoint,
    FrontPoint,
    Histogram,
    PopulationPoint,
    plot_arch,
    plot_archs,
    plot_chain,
    plot_front,
    plot_histograms,
    plot_population,
    plot_structure,
    sampling_histograms,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

_UNITS = {
    'flops': 'multiply-adds',
    'params': 'parameters',
    'acts': 'activations',
    'latency': 'predicted latency (ms)',
}
# Networks of a front that are drawn, and iterations of a training that are drawn again.
_MOST_ARCHS = 6
_MOST_DRAWS = 20_000
_BINS = 8


@dataclass(repr=False)
class Report(Printed):
    """Pictures of something, and what else there is to say of it; prints what it has.

    Attributes:
        title: What it is.
        facts: Names and values.
        pictures: Figures by the name of their files.
        missing: What could not be drawn or was left out, a sentence each.
        folder: Where the pictures were written.
    """

    title: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    pictures: dict[str, Figure] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    folder: Path | None = None

    def save(self, folder: Path) -> list[Path]:
        """Writes every picture as PNG and as SVG; equal pictures give equal files.

        Raises:
            UsageError: The folder cannot be written.
            UntrustedFileError: There is a link in the place of a picture.
        """
        from matplotlib import rc_context

        self.folder = folder
        paths = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with rc_context({'svg.hashsalt': 'mmscale'}):
                for name, figure in self.pictures.items():
                    for suffix in ('.png', '.svg'):
                        path = check_no_link(folder / f'{name}{suffix}')
                        metadata = {'Date': None} if suffix == '.svg' else {}
                        figure.savefig(path, dpi=120, metadata=metadata)
                        paths.append(path)
        except OSError as error:
            raise UsageError(f'{folder}: {error.strerror}') from error
        return paths

    def renderables(self) -> list[Table]:
        """The facts, the names of the pictures, and what is missing."""
        rows = list(self.facts)
        if self.pictures:
            rows.append(('pictures', ', '.join(self.pictures)))
        if self.folder is not None:
            rows.append(('as .png and .svg in', self.folder))
        rows += [('missing', sentence) for sentence in self.missing]
        table = make_table(self.title, ('', ''), rows)
        table.columns[0].no_wrap, table.columns[1].justify = True, 'left'
        return [table]


def report(target: str | Path | Arch, out: str | Path | None = None) -> Report:
    """Draws what there is of a work dir, or a network.

    Args:
        target: The folder of a search, finished or running, by evolution or by gradient, or of
            the training of a super-supernet; or a network whose Arch is known, see
            :func:`mmscale.apis.networks.find_network`.
        out: Folder to write the pictures to; by default nothing is written.

    Raises:
        UsageError: There is no such thing, nothing to report, or a file is damaged.

    Example:
        >>> list(report('scalenet-s0').pictures)
        ['arch']
    """
    made = _report(target)
    if out is not None:
        made.save(Path(out))
    return made


def _report(target: str | Path | Arch) -> Report:
    path = Path(target) if isinstance(target, (str, Path)) else None
    if path is not None and path.name == 'result.json' and path.is_file():
        path = path.parent
    if path is not None and path.is_dir():
        return _report_run(read_run(path))
    try:
        network = find_network(target)
    except UsageError as error:
        nowhere = '' if path is None or path.exists() else f'{target} is no folder; '
        raise UsageError(f'{nowhere}{error}') from None
    arch = network.backbone_arch
    if arch is None:
        raise UsageError(
            f'{network.name}: nothing to report: no work dir, and no network with an Arch'
        )
    return _report_arch(arch, network.name, network.origin)


def _report_arch(arch: Arch, name: str, origin: Origin | None) -> Report:
    return Report(
        f'Network {name}',
        [
            ('digest', arch.digest),
            ('input', f'{arch.resolution} px'),
            ('blocks', f'{len(arch.blocks)}'),
            *((key, f'{value:,}') for key, value in asdict(count(arch)).items()),
            *([] if origin is None else [('from', f'{origin}')]),
        ],
        {'arch': plot_arch(arch, name)},
    )


def _report_run(run: RunFiles) -> Report:
    if run.is_search:
        parts = (_chain, _population, _front, _evaluated, _archs)
        kind = 'Pareto search' if _is_pareto(run) else 'Search'
        facts = _search_facts(run)
    elif run.structures:
        parts, kind = (_structure,), 'Search by gradient'
        facts = _structure_facts(run.structures[-1])
    elif run.is_supernet:
        parts, kind = (_sampling,), 'Super-supernet training'
        facts = [('iterations known to be done', f'{run.iterations:,}')]
    else:
        raise UsageError(
            f'{run.work_dir}: nothing to report: neither a search (result.json, history.jsonl, '
            f'archive/; structure.jsonl) nor a super-supernet (its dumped config) is there'
        )
    report = Report(f'{kind} in {run.work_dir}', facts, missing=list(run.missing))
    for part in parts:
        _add(report, run, part)
    return report


def _add(report: Report, run: RunFiles, part: Callable[[RunFiles, Report], None]) -> None:
    try:
        part(run, report)
    except FOREIGN_ERRORS as error:
        raise UsageError(
            f'{run.work_dir}: a file is damaged or of another version ({one_line(error):.200})'
        ) from error


def _is_pareto(run: RunFiles) -> bool:
    if run.result is not None:
        return run.result.get('kind') == 'pareto'
    return type_name(_setting(run, 'type')) in ('ParetoSearch', 'ParetoLoop')


def _setting(run: RunFiles, key: str) -> Any:
    """A setting of the search: of its result, or of its config before there is one."""
    config = run.config.get('test_cfg')
    settings = {**(config if isinstance(config, dict) else {})}
    if isinstance(settings.get('search'), dict):
        settings |= settings['search']
    if run.result is not None:
        settings |= {**run.result.get('settings', {})}
        settings |= {k: run.result[k] for k in ('metric',) if k in run.result}
    return settings.get(key)


def _metric(run: RunFiles) -> str:
    return _setting(run, 'metric') or 'flops'


def _cost_name(metric: str) -> str:
    return _UNITS.get(metric, metric)


def _search_facts(run: RunFiles) -> list[tuple[str, str]]:
    origin = origin_of(run.config)
    if run.result is not None and KEY in run.result:
        origin = Origin.from_json(str(run.work_dir), run.result[KEY])
    facts = [('networks evaluated', f'{run.evaluated:,}')]
    if origin != Origin():
        facts.append(('searched by', f'{origin}'))
    if run.records:
        best = max(run.records, key=lambda r: _score(r['score']))
        facts.append(('best score', f'{float(_score(best["score"])):.4f}'))
    if run.result is not None and 'fitness' in run.result:
        facts.append(('fitness of the family', f'{run.result["fitness"]:.4f}'))
    if run.result is not None and run.result.get('hypervolume'):
        facts.append(('hypervolume', f'{run.result["hypervolume"][-1]:.4f}'))
    return facts


def _score(data: dict[str, int]) -> Fraction:
    return Fraction(data['correct'], data['total'])


# ---------------------------------------------------------------------- a search


def _chain(run: RunFiles, report: Report) -> None:
    steps = [event for event in run.events if event['kind'] != 'generation']
    if not steps:
        if not _is_pareto(run):
            report.missing.append(
                'chain: this search has no chain step yet, or is without a chain'
            )
        return
    chain = [
        ChainPoint(
            step['kind'],
            step['evaluations'],
            step['fitness'],
            tuple(Scaling(**scaling) for scaling in step['strategy']),
        )
        for step in steps
    ]
    report.pictures['chain'] = plot_chain(chain, f'{run.name}: chain of states')


def _population(run: RunFiles, report: Report) -> None:
    generations = [
        PopulationPoint(
            event['step'].replace(', base evolution', ''),
            tuple(fitness for _, fitness in event['population']),
            tuple(cost for cost, _ in event['population']),
        )
        for event in run.events
        if event['kind'] == 'generation' and event['population']
    ]
    if not generations:
        report.missing.append('population: this search has no generation yet, or is without any')
        return
    budget, tolerance = _setting(run, 'budget'), _setting(run, 'tolerance') or 0.05
    allowed = (budget * (1 - tolerance), budget * (1 + tolerance)) if budget else None
    if any('scaling stage' in generation.part for generation in generations):
        allowed = None  # Searches of several budgets.
    report.pictures['population'] = plot_population(
        generations,
        f'{run.name}: population',
        f'{"network" if _is_pareto(run) else "base model"}: {_cost_name(_metric(run))}',
        _setting(run, 'cost_range') or allowed,
    )


def _front(run: RunFiles, report: Report) -> None:
    if not run.records:
        report.missing.append('front: no network was evaluated yet')
        return
    metric = _metric(run)
    known = _archived_metric(run)
    evaluated = [_point(record, known) for record in run.records]
    family: list[FrontPoint] = []
    if _is_pareto(run) and run.result is not None:
        front = [_point(member, metric) for member in run.result['front']]
        evaluated = evaluated if metric == known else front
    else:
        if metric != known:
            report.missing.append(
                'front: predicted latencies come with result.json; flops until then'
            )
        metric = known
        front = [_point(record, metric) for record in _best_records(run)]
        members = run.result['scaling_stages'] if run.result is not None else []
        family = [_point(member, metric) for member in members if member['score'] is not None]
    report.pictures['front'] = plot_front(
        evaluated,
        front,
        f'{run.name}: score against cost',
        _cost_name(metric),
        family,
        run.result.get('hypervolume', []) if run.result is not None else [],
    )


def _archived_metric(run: RunFiles) -> str:
    """The metric of the search, or flops: an archive knows no latencies."""
    return 'flops' if _metric(run) == 'latency' else _metric(run)


def _best_records(run: RunFiles) -> list[dict[str, Any]]:
    """What was evaluated and is not dominated, by rising cost."""
    metric = _archived_metric(run)
    points = [(_score(record['score']), record['cost'][metric]) for record in run.records]
    return [run.records[i] for i in pareto_front(points)]


def _point(network: dict[str, Any], metric: str) -> FrontPoint:
    """A network of a result or of an archive, which knows of no scaling stages."""
    score = float(_score(network['score']))
    return FrontPoint(network['cost'][metric], score, network.get('scaling_stage'))


def _evaluated(run: RunFiles, report: Report) -> None:
    if not run.records:
        return
    archs = [record['arch'] for record in run.records]
    scores = [100 * float(_score(record['score'])) for record in run.records]
    flops = [np.log2(record['cost']['flops'] / 1e6) for record in run.records]
    histograms = [
        _counted('Input', 'side (px)', [arch['resolution'] for arch in archs]),
        _counted('Depth', 'blocks', [sum(map(len, arch['stages'])) for arch in archs]),
        _counted(
            'Width',
            'channels of the last network stage',
            [arch['stages'][-1][-1]['out_channels'] for arch in archs],
        ),
        _counted(
            'Kernels of all blocks',
            'kernel',
            [block['kernel'] for arch in archs for stage in arch['stages'] for block in stage],
            'blocks',
        ),
        _binned('Cost', 'M multiply-adds', flops, lambda value: f'{2**value:.3g}'),
        _binned('Score', 'score (%)', scores, lambda value: f'{value:.1f}'),
    ]
    report.pictures['evaluated'] = plot_histograms(
        histograms, f'{run.name}: {len(archs):,} networks evaluated'
    )


def _counted(
    title: str, xlabel: str, values: Sequence[int], counted: str = 'networks'
) -> Histogram:
    counts = Counter(values)
    return Histogram(
        title, xlabel, counted, {f'{value}': counts[value] for value in sorted(counts)}
    )


def _binned(
    title: str, xlabel: str, values: Sequence[float], label: Callable[[float], str]
) -> Histogram:
    """Counts in bins of equal width, each named after its lower edge."""
    counts, edges = np.histogram(values, min(_BINS, len(set(values))))
    named: dict[str, float] = {}
    for number, edge in zip(counts, edges, strict=False):
        named[label(edge)] = named.get(label(edge), 0) + int(number)
    return Histogram(title, f'{xlabel}, from', 'networks', named)


def _archs(run: RunFiles, report: Report) -> None:
    pareto = _is_pareto(run)
    if run.result is not None and not pareto:
        networks = {
            f'scaling_stage_{member["scaling_stage"]}': member['arch']
            for member in run.result['scaling_stages']
        }
    else:
        members = _best_records(run) if run.result is None else run.result['front']
        if not members:
            return
        chosen = np.unique(np.linspace(0, len(members) - 1, _MOST_ARCHS).round().astype(int))
        networks = {f'front_{i}': members[i]['arch'] for i in chosen}
        if not pareto:
            report.missing.append('archs: of what was evaluated so far; the family is not known')
        elif len(members) > _MOST_ARCHS:
            report.missing.append(f'archs: {len(networks)} of the {len(members)} of the front')
    archs = {name: Arch.from_json(data) for name, data in networks.items()}
    named = {name.replace('_', ' '): arch for name, arch in archs.items()}
    report.pictures['archs'] = plot_archs(named, f'{run.name}: networks')
    for name, arch in archs.items():
        report.pictures[f'arch_{name}'] = plot_arch(arch, name.replace('_', ' '))


# ---------------------------------------------------------------------- a search by gradient


def _structure_facts(last: dict[str, Any]) -> list[tuple[str, str]]:
    facts = [('iterations known to be done', f'{last["iteration"]:,}')]
    facts += [(key, f'{last[key]:,}') for key in ('flops', 'params', 'acts')]
    share = last['value'] / last['budget'] - 1
    return [*facts, (f'{last["metric"]} over the budget', f'{share:+.2%}')]


def _structure(run: RunFiles, report: Report) -> None:
    if len(run.structures) < 2:
        report.missing.append('structure: structure.jsonl has one line, two make a picture')
        return
    report.pictures['structure'] = plot_structure(run.structures, f'{run.name}: widths and depths')


# ---------------------------------------------------------------------- a training


def _sampling(run: RunFiles, report: Report) -> None:
    """What the hierarchical sampler drew: it is a pure function of seed and iteration."""
    sampler = _sampler_of(run)
    if sampler is None:
        report.missing.append('sampling: the dumped config has no seed, or no sampler hook')
        return
    if not run.iterations:
        report.missing.append('sampling: no iteration was logged yet')
        return
    total = run.iterations
    drawn = min(total, _MOST_DRAWS)
    iterations = [i * total // drawn for i in range(drawn)]
    title = f'{run.name}: subnets of {total:,} iterations'
    if drawn < total:
        title += f' ({drawn:,} of them, evenly spaced)'
    report.pictures['sampling'] = plot_histograms(sampling_histograms(sampler, iterations), title)


def _sampler_of(run: RunFiles) -> HierarchicalSampler | None:
    model, hooks = run.config['model'], run.config.get('custom_hooks') or []
    hook = next((h for h in hooks if type_name(h) == 'HierarchicalSamplerHook'), None)
    seed = (run.config.get('randomness') or {}).get('seed')
    if hook is None or hook.get('seed', seed) is None:
        return None
    return HierarchicalSampler(
        SearchSpace(**model['backbone']['space']),
        seed=hook.get('seed', seed),
        warmup_iters=model.get('warmup_iters', 0),
        warmup_scaling_stage=model.get('warmup_scaling_stage', 0),
        **{key: hook[key] for key in ('distribution', 'sides') if key in hook},
    )
