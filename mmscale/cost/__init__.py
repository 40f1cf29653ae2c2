"""Cost of networks: params, flops (multiply-adds) and acts, in closed form."""

from mmscale.cost.count import CONVENTIONS, Cost, PartCost, count, count_parts
from mmscale.cost.difference import ToolDifference, explain_arch_difference, explain_difference
from mmscale.cost.latency import (
    Latency,
    LatencyModel,
    LatencySetting,
    MeasuredNetwork,
    measure_latency,
    this_device,
)
from mmscale.cost.matching import match, match_scaling
from mmscale.cost.module import ModuleCost, count_layers, count_module
from mmscale.cost.scaled import METRICS, Constraints, NotReachable, Scaled
from mmscale.cost.table import Costs, CostTable

__all__ = [
    'CONVENTIONS',
    'METRICS',
    'Constraints',
    'Cost',
    'CostTable',
    'Costs',
    'Latency',
    'LatencyModel',
    'LatencySetting',
    'MeasuredNetwork',
    'ModuleCost',
    'NotReachable',
    'PartCost',
    'Scaled',
    'ToolDifference',
    'count',
    'count_layers',
    'count_module',
    'count_parts',
    'explain_arch_difference',
    'explain_difference',
    'match',
    'match_scaling',
    'measure_latency',
    'this_device',
]
