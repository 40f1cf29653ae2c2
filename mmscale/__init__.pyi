from .apis.scaling.archs import scale as scale
from .arch import Arch as Arch
from .arch import Scaling as Scaling
from .arch import SearchSpace as SearchSpace
from .arch import get_arch as get_arch
from .errors import MMScaleError as MMScaleError
from .models.timm_networks import from_timm as from_timm
from .models.timm_networks import to_timm as to_timm
