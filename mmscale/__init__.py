"""mmscale: which network of a family to train for a compute budget.

Importing the package imports neither torch nor MMEngine; ``mmscale.models``, ``mmscale.engine``
and ``mmscale.datasets`` register their parts when they are imported.
"""

from mmscale.version import __version__

__all__ = ['__version__']
