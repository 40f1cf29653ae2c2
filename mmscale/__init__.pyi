# The front door: a name is imported when it is first used.
from .apis.cost import get_cost as get_cost
from .apis.exports.export import export as export
from .apis.networks import build as build
from .apis.pruning import channel_groups as channel_groups
from .apis.pruning import prune as prune
from .apis.reports.report import report as report
from .apis.scaling.archs import scale as scale
from .apis.search import load_result as load_result
from .apis.search import run_search as run_search
from .arch import Arch as Arch
from .arch import Scaling as Scaling
from .arch import SearchSpace as SearchSpace
from .arch import get_arch as get_arch
from .arch import list_archs as list_archs
from .errors import MMScaleError as MMScaleError
from .models.timm_networks import from_timm as from_timm
from .models.timm_networks import to_timm as to_timm
