"""The configs that mmpretrain and mmdet ship, by the names that their own tools take."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

PACKAGES = ('mmpretrain', 'mmdet')


@cache
def _folder(package: str) -> Path | None:
    """Where the configs of a package are; it is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / '.mim' / 'configs'


def _by_metafile(folder: Path, name: str) -> str | None:
    """The config of a model that is named otherwise, as those of other people's weights."""
    import yaml

    for metafile in sorted(folder.glob('*/metafile.yml')):
        text = metafile.read_text(encoding='utf-8')
        if f'Name: {name}\n' not in text:
            continue
        for model in yaml.safe_load(text).get('Models') or ():
            if model.get('Name') == name and model.get('Config'):
                return model['Config'].removeprefix('configs/')
    return None


def packaged_config(name: str) -> str | None:
    """The config that a package ships under a name, as ``mmpretrain::FOLDER/FILE.py``.

    Args:
        name: That of a config file without its folder and ending, or of a model of the package,
            as in its metafiles.

    Returns:
        None if there is no such config, or two packages have one.

    Example:
        >>> packaged_config('resnet50_8xb32_in1k')
        'mmpretrain::resnet/resnet50_8xb32_in1k.py'
    """
    if '_' not in name or not name.replace('_', '').replace('-', '').replace('.', '').isalnum():
        return None  # no glob pattern, path or sentence
    found = []
    for package in PACKAGES:
        folder = _folder(package)
        if folder is None:
            continue
        files = sorted(folder.glob(f'*/{name}.py'))
        config = files[0].relative_to(folder).as_posix() if files else _by_metafile(folder, name)
        if config is not None:
            found.append(f'{package}::{config}')
    return found[0] if len(found) == 1 else None
