"""mmscale: which network of a family to train for a compute budget.

Importing the package imports neither torch nor MMEngine: its names, which ``__init__.pyi`` lists,
are imported when they are first used. ``mmscale.models``, ``mmscale.engine`` and
``mmscale.datasets`` register their parts when they are imported.
"""

import lazy_loader

from mmscale.version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
