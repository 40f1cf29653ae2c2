"""The search itself: archive, scoring, budgets, evolution. No torch and no MMEngine in it."""

from mmscale.search.archive import Archive
from mmscale.search.dominance import (
    crowding_distances,
    hypervolume,
    non_dominated_sort,
    pareto_front,
)
from mmscale.search.entry import Entry, Failure, Score
from mmscale.search.evolution import BaseEvolution, Evolved, Round
from mmscale.search.family import Candidate, FamilyFitness
from mmscale.search.feasibility import Feasibility, Strategy
from mmscale.search.given_family import GivenFamily
from mmscale.search.halves import EvolutionSearch, ScalingSearch
from mmscale.search.mcea import MCEA
from mmscale.search.pareto import ParetoSearch
from mmscale.search.pareto_result import ParetoMember, ParetoResult
from mmscale.search.random_search import RandomSearch
from mmscale.search.record import Batch, Record
from mmscale.search.result import (
    ChainStep,
    FamilyMember,
    Generation,
    OnStep,
    Result,
    Search,
    SearchResult,
)
from mmscale.search.schedule import most_evaluations
from mmscale.search.scoring import (
    Communicator,
    EvaluationError,
    Evaluator,
    Progress,
    Scorer,
    SingleProcess,
)
from mmscale.search.searcher import Searcher, Steps
from mmscale.search.separate import SeparateSearch
from mmscale.search.strategy import StrategySearch
from mmscale.search.surrogate import Surrogate

__all__ = [
    'MCEA',
    'Archive',
    'BaseEvolution',
    'Batch',
    'Candidate',
    'ChainStep',
    'Communicator',
    'Entry',
    'EvaluationError',
    'Evaluator',
    'EvolutionSearch',
    'Evolved',
    'Failure',
    'FamilyFitness',
    'FamilyMember',
    'Feasibility',
    'Generation',
    'GivenFamily',
    'OnStep',
    'ParetoMember',
    'ParetoResult',
    'ParetoSearch',
    'Progress',
    'RandomSearch',
    'Record',
    'Result',
    'Round',
    'ScalingSearch',
    'Score',
    'Scorer',
    'Search',
    'SearchResult',
    'Searcher',
    'SeparateSearch',
    'SingleProcess',
    'Steps',
    'Strategy',
    'StrategySearch',
    'Surrogate',
    'crowding_distances',
    'hypervolume',
    'most_evaluations',
    'non_dominated_sort',
    'pareto_front',
]
