"""Pictures of a network, of a search or of a super-supernet's training, from its files."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmscale.apis.networks import find_network
from mmscale.apis.reports.errors import fitness_facts
from mmscale.apis.reports.evaluated import evaluated_histograms
from mmscale.apis.reports.records import Evaluated
from mmscale.apis.reports.run_files import RunFiles, read_run
from mmscale.arch import Arch, HierarchicalSampler, Scaling, SearchSpace
from mmscale.arch.origin import KEY, Origin, origin_of
from mmscale.config_parts import type_name
from mmscale.cost import count
from mmscale.errors import FOREIGN_ERRORS, UsageError, one_line
from mmscale.search import pareto_front
from mmscale.search.noise import standard_error, with_error
from mmscale.search.task_share import task_share, task_warning
from mmscale.tables import Printed, make_table
from mmscale.untrusted import check_no_link
from mmscale.visualization import (
    ChainPoint,
    FrontPoint,
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
_MOST_DRAWN_BLOCKS = 4_000_000
_MOST_FAMILY = 16
# Chain steps, generations and lines of a structure that are drawn, and dots of the generations.
_MOST_EVENTS = 2_000
_MOST_SURVIVORS = 200_000


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
            with rc_context({'svg.hashsalt': 'mmscale'}), warnings.catch_warnings():
                # The font has no letters of some scripts: there are boxes instead.
                warnings.filterwarnings('ignore', message='Glyph')
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
    return type_name(run.settings.get('type')) in ('ParetoSearch', 'ParetoLoop')


def _metric(run: RunFiles) -> str:
    return run.settings.get('metric', 'flops')


def _cost_name(metric: str) -> str:
    return _UNITS.get(metric, metric)


def _search_facts(run: RunFiles) -> list[tuple[str, str]]:
    origin = origin_of(run.config)
    if run.result is not None and KEY in run.result:
        origin = Origin.from_json(str(run.work_dir), run.result[KEY])
    facts = [('networks evaluated', f'{run.records.number:,}')]
    if origin != Origin():
        facts.append(('searched by', f'{origin}'))
    if run.records.evaluated:
        best = max(run.records.evaluated, key=lambda record: record.score)
        error = standard_error(best.score, best.total) if _is_counted(run) else None
        facts.append(('best score', with_error(best.score, error)))
    if run.result is not None:
        facts += fitness_facts(run.result)
    if run.result is not None and run.result.get('hypervolume'):
        facts.append(('hypervolume', f'{run.result["hypervolume"][-1]:.4f}'))
    return facts


def _is_counted(run: RunFiles) -> bool:
    """Whether scores count right answers: a detector's do not, nor an analytic score."""
    if run.result is not None:
        members = run.result['front' if _is_pareto(run) else 'scaling_stages']
        return any('error' in member for member in members)
    fingerprint = run.records.archive.fingerprint if run.records.archive else {}
    return 'dataloader' in fingerprint and 'score' not in fingerprint


def _evenly(items: Sequence[Any], most: int) -> list[Any]:
    """So many of a list, evenly spaced from the first to the last."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


# ---------------------------------------------------------------------- a search


def _chain(run: RunFiles, report: Report) -> None:
    steps = [event for event in run.events if event['kind'] != 'generation']
    if not steps:
        if not _is_pareto(run):
            report.missing.append(
                'chain: this search has no chain step yet, or is without a chain'
            )
        return
    if len(steps) > _MOST_EVENTS:
        report.missing.append(f'chain: {_MOST_EVENTS:,} of {len(steps):,} steps, evenly spaced')
    chain = [
        ChainPoint(
            step['kind'],
            step['evaluations'],
            step['fitness'],
            tuple(Scaling(**scaling) for scaling in step['strategy']),
        )
        for step in _evenly(steps, _MOST_EVENTS)
    ]
    report.pictures['chain'] = plot_chain(chain, f'{run.name}: chain of states')


def _population(run: RunFiles, report: Report) -> None:
    events = [e for e in run.events if e['kind'] == 'generation' and e['population']]
    if not events:
        report.missing.append('population: this search has no generation yet, or is without any')
        return
    largest = max(len(event['population']) for event in events)
    drawn = min(_MOST_EVENTS, max(2, _MOST_SURVIVORS // largest))
    if len(events) > drawn:
        report.missing.append(
            f'population: {drawn:,} of {len(events):,} generations, evenly spaced'
        )
    generations = [
        PopulationPoint(
            event['step'].replace(', base evolution', ''),
            tuple(fitness for _, fitness in event['population']),
            tuple(cost for cost, _ in event['population']),
        )
        for event in _evenly(events, drawn)
    ]
    budget, tolerance = run.settings.get('budget'), run.settings.get('tolerance', 0.05)
    allowed = (budget * (1 - tolerance), budget * (1 + tolerance)) if budget else None
    if any('scaling stage' in generation.part for generation in generations):
        allowed = None  # Searches of several budgets.
    report.pictures['population'] = plot_population(
        generations,
        f'{run.name}: population',
        f'{"network" if _is_pareto(run) else "base model"}: {_cost_name(_metric(run))}',
        run.settings.get('cost_range') or allowed,
    )


def _front(run: RunFiles, report: Report) -> None:
    if not run.records.evaluated:
        report.missing.append('front: no network was evaluated yet')
        return
    metric = _metric(run)
    known = _archived_metric(run)
    evaluated = [_drawn(record, known) for record in run.records.evaluated]
    family: list[FrontPoint] = []
    if _is_pareto(run) and run.result is not None:
        members = run.result['front']
        is_scaled = any(member.get('scaling_stage') for member in members)
        front = [_point(member, metric, is_scaled) for member in members]
        evaluated = evaluated if metric == known else front
    else:
        if metric != known:
            report.missing.append(
                'front: predicted latencies come with result.json; flops until then'
                if _is_pareto(run)
                else 'front: no latency is kept of what was evaluated; it is drawn against flops'
            )
        metric = known
        front = [_drawn(record, metric) for record in _best_records(run)]
        members = run.result['scaling_stages'] if run.result is not None else []
        is_scaled = len(members) > 1
        scored = [member for member in members if member['score'] is not None]
        family = [_point(member, metric, is_scaled) for member in scored]
    report.pictures['front'] = plot_front(
        evaluated,
        front,
        f'{run.name}: score against cost',
        _cost_name(metric),
        family,
        _evenly(run.result.get('hypervolume', []), _MOST_EVENTS) if run.result else [],
    )


def _archived_metric(run: RunFiles) -> str:
    """The metric of the search, or flops: an archive knows no latencies."""
    return 'flops' if _metric(run) == 'latency' else _metric(run)


def _best_records(run: RunFiles) -> list[Evaluated]:
    """What was evaluated and is not dominated, by rising cost."""
    records, metric = run.records.evaluated, _archived_metric(run)
    points = [(record.score, record.cost[metric]) for record in records]
    return [records[i] for i in pareto_front(points)]


def _drawn(record: Evaluated, metric: str) -> FrontPoint:
    """A network of an archive, which knows of no scaling stages."""
    return FrontPoint(record.cost[metric], float(record.score))


def _point(network: dict[str, Any], metric: str, is_scaled: bool = True) -> FrontPoint:
    """A network of a result, with its scaling stage where there are several."""
    score = Fraction(network['score']['correct'], network['score']['total'])
    stage = network.get('scaling_stage') if is_scaled else None
    return FrontPoint(network['cost'][metric], float(score), stage)


def _evaluated(run: RunFiles, report: Report) -> None:
    records = run.records.evaluated
    if not records:
        return
    report.pictures['evaluated'] = plot_histograms(
        evaluated_histograms(run), f'{run.name}: {len(records):,} networks evaluated'
    )


def _archs(run: RunFiles, report: Report) -> None:
    pareto = _is_pareto(run)
    if run.result is None:
        best = _chosen(_best_records(run))
        found = run.records.archs({record.digest for record in best.values()})
        archs = {name: found[record.digest] for name, record in best.items()}
        if best and not pareto:
            report.missing.append('archs: of what was evaluated so far; the result is not known')
    else:
        members = run.result['front' if pareto else 'scaling_stages']
        chosen = _chosen(members, _MOST_ARCHS if pareto else _MOST_FAMILY)
        if len(members) > len(chosen):
            of = 'front' if pareto else 'family'
            report.missing.append(f'archs: {len(chosen)} of the {len(members)} of the {of}')
        if not pareto:
            chosen = {f'scaling_stage_{m["scaling_stage"]}': m for m in chosen.values()}
        archs = {name: Arch.from_json(member['arch']) for name, member in chosen.items()}
    if not archs:
        return
    named = {name.replace('_', ' '): arch for name, arch in archs.items()}
    report.pictures['archs'] = plot_archs(named, f'{run.name}: networks')
    for name, arch in archs.items():
        report.pictures[f'arch_{name}'] = plot_arch(arch, name.replace('_', ' '))


def _chosen(members: Sequence[Any], most: int = _MOST_ARCHS) -> dict[str, Any]:
    """The networks that are drawn, by name."""
    places = _evenly(range(len(members)), most)
    return {f'front_{i}': members[i] for i in places}


# ---------------------------------------------------------------------- a search by gradient


def _structure_facts(last: dict[str, Any]) -> list[tuple[str, str]]:
    facts = [('iterations known to be done', f'{last["iteration"]:,}')]
    facts += [(key, f'{last[key]:,}') for key in ('flops', 'params', 'acts')]
    share = last['value'] / last['budget'] - 1
    facts.append((f'{last["metric"]} over the budget', f'{share:+.2%}'))
    shares = last['task_shares'].values()
    if shares:
        facts.append(('decided by the task', f'{task_share(shares):.1%}'))
    warning = task_warning(shares)
    return facts if warning is None else [*facts, ('warning', warning)]


def _structure(run: RunFiles, report: Report) -> None:
    if len(run.structures) < 2:
        report.missing.append('structure: structure.jsonl has one line, two make a picture')
        return
    records = run.structures
    if len(records) > _MOST_EVENTS:
        records = _evenly(records, _MOST_EVENTS)
        report.missing.append(
            f'structure: {_MOST_EVENTS:,} of {len(run.structures):,} lines, evenly spaced'
        )
    report.pictures['structure'] = plot_structure(records, f'{run.name}: widths and depths')


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
    # Networks of thousands of blocks are drawn less often.
    most = min(_MOST_DRAWS, _MOST_DRAWN_BLOCKS // len(sampler.space.allocation.blocks))
    drawn = min(total, most)
    iterations = [i * total // drawn for i in range(drawn)]
    title = f'{run.name}: subnets of {total:,} iterations'
    if drawn < total:
        title += f' ({drawn:,} of them, evenly spaced)'
    report.pictures['sampling'] = plot_histograms(sampling_histograms(sampler, iterations), title)


def _sampler_of(run: RunFiles) -> HierarchicalSampler | None:
    model, hooks = run.config['model'], run.config.get('custom_hooks')
    hooks = [hook for hook in hooks if isinstance(hook, dict)] if isinstance(hooks, list) else []
    hook = next((h for h in hooks if type_name(h) == 'HierarchicalSamplerHook'), None)
    randomness = run.config.get('randomness')
    seed = randomness.get('seed') if isinstance(randomness, dict) else None
    if hook is None or hook.get('seed', seed) is None:
        return None
    return HierarchicalSampler(
        SearchSpace.from_config(model['backbone']['space']),
        seed=hook.get('seed', seed),
        warmup_iters=model.get('warmup_iters', 0),
        warmup_scaling_stage=model.get('warmup_scaling_stage', 0),
        **{key: hook[key] for key in ('distribution', 'sides') if key in hook},
    )
