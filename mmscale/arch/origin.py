"""Where an Arch is from: the config that it was found or written by, and that config's data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmscale.arch.checks import check_keys, number
from mmscale.arch.json_files import read_json
from mmscale.config_parts import innermost_datasets, type_name
from mmscale.errors import UsageError

KEY = 'origin'
_NAME = re.compile(r'[\w .,+@=()-]{1,120}')
_MOST_CHANNELS = 64


@dataclass(frozen=True)
class Origin:
    """What an Arch's file and a search's result remember of a config: names and numbers.

    It is told, and compared with what is to be written for the Arch. No file is opened and nothing
    is built because of it.

    Attributes:
        config: Name of the config's file, without its folder.
        dataset: Kinds of the data sets inside all wrappers.
        mean: What is subtracted from the pixels of every channel.
        std: What they are divided by then.
        to_rgb: Whether the channels are turned round before, from B, G, R.

    Raises:
        UsageError: A value is not allowed; the message names its key.
    """

    config: str | None = None
    dataset: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    to_rgb: bool = False

    def __post_init__(self) -> None:
        for key in ('config', 'dataset'):
            text = getattr(self, key)
            if text is not None and not (isinstance(text, str) and _NAME.fullmatch(text)):
                raise UsageError(f'{KEY}.{key}={text!r:.60} must be a name')
        for key in ('mean', 'std'):
            values = getattr(self, key)
            if values is None:
                continue
            if not isinstance(values, (list, tuple)) or not 0 < len(values) <= _MOST_CHANNELS:
                raise UsageError(f'{KEY}.{key}={values!r:.60} must be numbers, one a channel')
            values = tuple(float(number(f'{KEY}.{key}[{i}]', v)) for i, v in enumerate(values))
            object.__setattr__(self, key, values)
        if len(self.mean or ()) != len(self.std or ()):
            raise UsageError(f'{KEY}: mean and std must be of the same channels')
        if not isinstance(self.to_rgb, bool):
            raise UsageError(f'{KEY}.to_rgb={self.to_rgb!r:.60} must be true or false')

    @classmethod
    def from_json(cls, owner: str, data: object) -> Origin:
        """Reads what :meth:`to_json` gives.

        Raises:
            UsageError: It is something else; the message names the key.
        """
        try:
            return cls(**check_keys(KEY, data, asdict(cls())))
        except UsageError as error:
            raise UsageError(f'{owner}: {error}') from None

    def to_json(self) -> dict[str, Any]:
        """Returns what is known as plain JSON data."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
            if value not in (None, False)
        }

    @property
    def preprocessor(self) -> dict[str, Any]:
        """Settings of a data preprocessor; empty where nothing is known."""
        if self.mean is None:
            return {}
        return dict(mean=list(self.mean), std=list(self.std), to_rgb=self.to_rgb)

    def __str__(self) -> str:
        known = [self.config or '', f'data: {self.dataset}' if self.dataset else '']
        return ', '.join(filter(None, known)) or 'not known'


def _part(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A part of a config; an empty one if it is missing, or something else."""
    part = config.get(key)
    return part if isinstance(part, Mapping) else {}


def origin_of(config: Mapping[str, Any], name: str | None = None) -> Origin:
    """What is remembered of a config.

    Args:
        config: A whole config, MMEngine's or as a dict.
        name: Name of its file, where the config does not know it.

    Example:
        >>> data = dict(dataset=dict(type='RepeatDataset', dataset=dict(type='FashionMNIST')))
        >>> print(origin_of(dict(train_dataloader=data), 'retrain.py'))
        retrain.py, data: FashionMNIST
    """
    name = name or Path(getattr(config, 'filename', None) or '').name
    kinds: list[str] = []
    for loader in ('train_dataloader', 'test_dataloader', 'val_dataloader'):
        dataset = _part(config, loader).get('dataset')
        kinds = kinds or sorted({type_name(one) for one in innermost_datasets(dataset)})
    model = _part(config, 'model')
    found = _part(config, 'data_preprocessor') or _part(model, 'data_preprocessor')
    numbers = {key: found.get(key) for key in ('mean', 'std')}
    if all(isinstance(values, (list, tuple)) for values in numbers.values()):
        numbers['to_rgb'] = bool(found.get('to_rgb') or found.get('bgr_to_rgb'))
    else:
        numbers = {}  # there is none, or one of another kind
    dataset = ', '.join(filter(None, kinds))
    names = dict(config=name, dataset=dataset)
    names = {key: text for key, text in names.items() if _NAME.fullmatch(text)}
    try:
        return Origin(**names, **numbers)
    except UsageError:
        return Origin(**names)


def read_origin(path: str | Path) -> Origin | None:
    """What the file of an Arch, or the result of a search, says of where it is from.

    Raises:
        UsageError: The file is no JSON, or what it says is not allowed.
        FileNotFoundError: There is no such file.
    """
    data = read_json(path)
    found = data.get(KEY) if isinstance(data, Mapping) else None
    return None if found is None else Origin.from_json(str(path), found)
