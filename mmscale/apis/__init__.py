"""What tools and notebooks call."""

from mmscale.apis.scaling import scale
from mmscale.apis.timm import from_timm, to_timm

__all__ = ['from_timm', 'scale', 'to_timm']
