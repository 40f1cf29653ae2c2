"""Which of many proposals are scored: those that a surrogate predicts to be the best."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from mmscale.arch import Arch
from mmscale.search.family import Candidate, Proposal
from mmscale.search.feasibility import Strategy
from mmscale.search.preselection import EXPLORATION, Floats, Preselection
from mmscale.search.proposing import Proposer
from mmscale.search.record import Batch, Record
from mmscale.search.searcher import Steps
from mmscale.search.surrogate import FEWEST_SCORES
from mmscale.search.targets import options

# For every one that is scored: so many parents, so many proposals, so many of them at random, and
# so many of the best get scalings of their own.
PARENTS = 4
_PROPOSALS = 16
_RANDOM_SHARE = 0.25
_RESCALED = 2
# Where fewer children than this share are found random ones are proposed, so many times as many.
_FEW, _MORE = 0.25, 8
# Before anything can be predicted so many are scored in the place of one.
_UNPREDICTED = 3
# Of families: so many are screened by their cheapest network for every one of which all networks
# are scored. What most of them are worth is seen there, for a part of the price.
_SCREENED = 2
# What a search of families explores by cheapest networks alone, before it scores a family: this
# share of its evaluations, but at most this number; so many at a time.
_EXPLORED = 0.4
_MOST_EXPLORED = 200
_AT_ONCE = 4


class Promising:
    """Proposes many, and chooses what is worth being scored.

    It is of one search, from round to round: what was screened in one may be scored in the next.

    Args:
        proposer: Draws and breeds.
        preselection: Predicts from the scores so far.
        record: What is known.
        population: Proposals that are scored at a time.
    """

    def __init__(
        self, proposer: Proposer, preselection: Preselection, record: Record, population: int
    ) -> None:
        self.family = proposer.family
        self.preselection = preselection
        self.population = population
        self._proposer = proposer
        self._record = record
        # By base model, families of which the cheapest network was asked for.
        self._screened: dict[tuple[int, ...], Proposal] = {}

    @property
    def _screens(self) -> bool:
        """Whether families have several networks to score, so that one of them comes first."""
        return len(self.family.scored_stages) > 1

    # ------------------------------------------------------------------ what is chosen

    def explore(
        self, strategy: Strategy, rng: np.random.Generator, mutations: float
    ) -> Steps[None]:
        """Scores cheapest networks of families alone, with a part of the evaluations.

        A search of a limited number of evaluations learns most from what costs one each: base
        models are searched by their cheapest network, as if it were all that counts.

        Args:
            strategy: One Scaling per scaling stage.
            rng: Source of randomness.
            mutations: Expected number of gene changes of a child.
        """
        record = self._record
        if record.limit is None or not self._screens:
            return
        while record.evaluations < min(_EXPLORED * record.limit, _MOST_EXPLORED):
            seen = {_bytes(genes) for genes in self._screened}
            if not self.preselection.is_ready or not seen:
                proposals = self._proposer.drawn(FEWEST_SCORES, strategy, rng, seen)
            else:
                ranked = self._ranked(self._screened.values(), 0, stages=1)
                parents = ranked[: PARENTS * _AT_ONCE]
                pool = self._pool(parents, _AT_ONCE, strategy, rng, seen, mutations)
                proposals = self._ranked(pool, stages=1)[:_AT_ONCE]
            before = record.evaluations
            yield from self._screen(proposals)
            if record.evaluations == before:
                break

    def choose(
        self,
        survivors: Sequence[Candidate],
        strategy: Strategy,
        rng: np.random.Generator,
        seen: set[bytes],
        mutations: float,
    ) -> Steps[list[Proposal]]:
        """The proposals of a generation; of families the cheapest networks are scored then.

        Args:
            survivors: The best candidates so far, the best first.
            strategy: One Scaling per scaling stage.
            rng: Source of randomness.
            seen: Bytes of genotypes that the evolution has scored.
            mutations: Expected number of gene changes of a child.

        Returns:
            At most as many as the population, the most promising first.
        """
        screened = [one for one in self._screened.values() if self._is_new(one)]
        if not survivors and screened:
            # The first families are those of the best base models by what is known of them.
            return self._ranked(screened, 0, stages=1)[: self.population]
        if self.preselection.is_ready and survivors:
            limit = self.population * (_SCREENED if self._screens else 1)
            proposals = self._promising_ones(survivors, limit, strategy, rng, seen, mutations)
        else:
            limit = _UNPREDICTED * self.population
            parents = [survivor.proposal for survivor in survivors]
            proposals = self._proposer.children(parents, limit, strategy, rng, seen, mutations)
        if not self._screens:
            return proposals
        yield from self._screen(proposals)
        screened = [one for one in self._screened.values() if self._is_new(one)]
        return self._ranked(screened)[: self.population]

    def _promising_ones(
        self,
        survivors: Sequence[Candidate],
        limit: int,
        strategy: Strategy,
        rng: np.random.Generator,
        seen: set[bytes],
        mutations: float,
    ) -> list[Proposal]:
        """The best of many new proposals and of those that were screened before."""
        is_scaled = self._proposer.is_target and self.family.is_scaled
        parents = [survivor.proposal for survivor in survivors]
        screened = list(self._screened.values())
        if screened:
            ranked = self._ranked([*screened, *parents], exploration=0)
            parents = ranked[: PARENTS * self.population]
        tried = set(seen)
        pool = self._pool(parents, self.population, strategy, rng, tried, mutations)
        if not pool:
            pool = self._proposer.bred(parents, limit, strategy, rng, tried, mutations)
        pool = [one for one in [*pool, *screened] if self._is_new(one)]
        chosen = self._ranked(pool)[: _RESCALED * limit if is_scaled else limit]
        if is_scaled and chosen:
            chosen = self._ranked(self._rescaled(chosen))[:limit]
        return chosen

    def _pool(
        self,
        parents: Sequence[Proposal],
        number: int,
        strategy: Strategy,
        rng: np.random.Generator,
        tried: set[bytes],
        mutations: float,
    ) -> list[Proposal]:
        """Many new proposals, bred and random ones, for so many that are to be chosen."""
        number *= _PROPOSALS
        pool = self._proposer.bred(parents, number, strategy, rng, tried, mutations, repairs=False)
        # Where the budgets leave few children, as in a table of some networks of a large space.
        share = _MORE if len(pool) < _FEW * number else _RANDOM_SHARE
        return pool + self._proposer.drawn(int(share * number), strategy, rng, tried)

    def _is_new(self, proposal: Proposal) -> bool:
        """Whether something can be learnt from it: a network has no score, and none has failed."""
        record, archs = self._record, self.family.archs(proposal)
        is_known = all(arch in record.scores for arch in archs)
        return not is_known and not any(arch.digest in record.failed for arch in archs)

    def _rescaled(self, proposals: Sequence[Proposal]) -> list[Proposal]:
        """The same base models with the most promising scalings that are feasible for them."""
        family = self.family
        genes = np.array([proposal.genes for proposal in proposals], dtype=np.int64)
        strategies = [list(proposal.strategy) for proposal in proposals]
        for j in family.scored_stages[family.scored_stages[0] == 0 :]:
            own = options(family.feasibility, genes, j)
            pairs = [(i, scaling) for i, scalings in enumerate(own) for scaling in scalings]
            archs = [family.network(proposals[i].genes, scaling) for i, scaling in pairs]
            mean, deviation = self.preselection.predict(archs)
            hoped = mean + EXPLORATION * deviation
            # The best comes last, the first of equal ones.
            for place in np.argsort(-hoped, kind='stable')[::-1]:
                i, scaling = pairs[place]
                strategies[i][j] = scaling
        return [
            Proposal(proposal.genes, tuple(strategy))
            for proposal, strategy in zip(proposals, strategies, strict=True)
        ]

    # ------------------------------------------------------------------ screening

    def _screen(self, proposals: Sequence[Proposal]) -> Steps[None]:
        """Scores the cheapest networks of families, if a whole family can still be scored then."""
        record = self._record
        archs = [self.family.archs(proposal)[0] for proposal in proposals]
        left = record.left - len(self.family.scored_stages) + 1
        new: list[Arch] = []
        for arch in dict.fromkeys(archs):
            if record.is_new(arch) and len(new) < left:
                new.append(arch)
        yield Batch(new)
        self._screened |= {one.genes: one for one in proposals}

    # ------------------------------------------------------------------ prediction

    def predicted(self, proposals: Sequence[Proposal]) -> dict[Proposal, float]:
        """Fitness of families before they are scored; none where too little is known."""
        if not self.preselection.is_ready:
            return {}
        mean, _ = self._predict(proposals, len(self.family.scored_stages))
        return dict(zip(proposals, mean.tolist(), strict=True))

    def _predict(self, proposals: Sequence[Proposal], stages: int) -> tuple[Floats, Floats]:
        """Predicted fitness and its standard deviation, each of shape (n,).

        Args:
            proposals: The families.
            stages: How many of the scaling stages that are scored count, the first ones.
        """
        scored = self.family.scored_stages[:stages]
        weights = np.array([float(self.family.weights[j]) for j in scored])
        archs = [arch for one in proposals for arch in self.family.archs(one)[:stages]]
        mean, deviation = self.preselection.predict(archs)
        # What is not known of a family is not known of all its networks.
        shares = weights / weights.sum()
        return mean.reshape(-1, stages) @ shares, deviation.reshape(-1, stages) @ shares

    def _ranked(
        self,
        proposals: Iterable[Proposal],
        exploration: float = EXPLORATION,
        stages: int | None = None,
    ) -> list[Proposal]:
        """The most promising ones first; as they come where too little is known.

        Args:
            proposals: The families.
            exploration: Standard deviations that count for a proposal.
            stages: As for :meth:`_predict`; None for all.
        """
        proposals = list(proposals)
        if not self.preselection.is_ready or not proposals:
            return proposals
        stages = len(self.family.scored_stages) if stages is None else stages
        mean, deviation = self._predict(proposals, stages)
        order = np.argsort(-(mean + exploration * deviation), kind='stable')
        return [proposals[i] for i in order]


def _bytes(genes: tuple[int, ...]) -> bytes:
    return np.array(genes, dtype=np.int64).tobytes()
