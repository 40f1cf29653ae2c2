"""What tools and notebooks call; the names of the front door are here too."""

from typing import Any

import mmscale

__all__ = mmscale.__all__


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(mmscale, name)
    raise AttributeError(f'module {__name__} has no attribute {name}')


def __dir__() -> list[str]:
    return [*globals(), *__all__]
