"""What tools and notebooks call."""

from mmscale.apis.scaling import scale

__all__ = ['scale']
