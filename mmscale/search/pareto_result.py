"""What a multi-objective search finds: the networks that no other dominates."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any

from mmscale.arch import Arch, Genotype, Scaling
from mmscale.cost import Cost
from mmscale.search.entry import Score
from mmscale.search.result import SCHEMA, predicted_lines


@dataclass(frozen=True)
class ParetoMember:
    """A network of the front.

    Attributes:
        base: The base model.
        scaling_stage: Scaling stage of the scaling.
        scaling: What scales it.
        arch: The scaled network.
        cost: Its cost.
        score: Its score.
        latency: Its predicted latency in milliseconds, None without a latency model.
    """

    base: Genotype
    scaling_stage: int
    scaling: Scaling
    arch: Arch
    cost: Cost
    score: Score
    latency: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the network as plain JSON data."""
        latency = {} if self.latency is None else {'latency': self.latency}
        return {
            'genes': list(self.base.genes),
            'scaling_stage': self.scaling_stage,
            'scaling': self.scaling.to_json(),
            'cost': {**asdict(self.cost), **latency},
            'score': asdict(self.score),
            'arch': self.arch.to_json(),
        }


@dataclass(frozen=True)
class ParetoResult:
    """Outcome of a multi-objective search: equal for equal settings, seed and scores.

    Attributes:
        metric: The cost that the score was weighed against.
        front: What no network of the search dominates, by rising cost.
        evaluations: Distinct Archs that were scored.
        failed: Distinct Archs that could not be scored.
        hypervolume: Of all that was scored so far, after every generation.
        seed: Seed of the search.
        settings: Cost range and schedule, plain JSON data.
        details: What else the search has to tell, plain JSON data.
    """

    metric: str
    front: tuple[ParetoMember, ...]
    evaluations: int
    failed: int
    hypervolume: tuple[float, ...]
    seed: int
    settings: dict[str, Any]
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def fitness(self) -> Fraction:
        """The best score."""
        return self.front[-1].score.value

    @property
    def networks(self) -> dict[str, Arch]:
        """The networks of the front, by rising cost."""
        return {f'front_{i}': member.arch for i, member in enumerate(self.front)}

    def to_json(self) -> dict[str, Any]:
        """Returns the result as plain JSON data, without times, hosts and paths."""
        return {
            'schema': SCHEMA,
            'kind': 'pareto',
            'metric': self.metric,
            'front': [member.to_json() for member in self.front],
            'evaluations': self.evaluations,
            'failed': self.failed,
            'hypervolume': list(self.hypervolume),
            'seed': self.seed,
            'settings': self.settings,
            'details': self.details,
        }

    def __str__(self) -> str:
        lines = [
            f'Pareto front of score against {self.metric}: {len(self.front)} networks after '
            f'{self.evaluations} evaluations in {len(self.hypervolume)} generations, hypervolume '
            f'{self.hypervolume[-1]:.4f}, seed {self.seed}'
        ]
        is_scaled = any(member.scaling_stage for member in self.front)
        for i, member in enumerate(self.front):
            stage = f'scaling stage {member.scaling_stage}, ' if is_scaled else ''
            latency = '' if member.latency is None else f'{member.latency:.3g} ms, '
            lines.append(
                f'  {i}: {stage}{member.arch.resolution} px, {latency}'
                f'{member.cost.flops:,} flops, {member.cost.params:,} params, score {member.score}'
            )
        return '\n'.join([*lines, *predicted_lines(self.details)])
