"""The configs that mmpretrain and mmdet ship, by the names that their own tools take."""

from __future__ import annotations

import difflib
import importlib.util
import re
from functools import cache
from pathlib import Path

from mmscale.errors import UsageError

PACKAGES = ('mmpretrain', 'mmdet')
# mmpretrain::resnet/NAME.py, and what mmpretrain's docs and users write: configs/resnet/NAME.py.
_NAME = re.compile(
    r'((?P<package>mmpretrain|mmdet)::)?(configs/)?(?P<folder>([\w-]+/)*)(?P<name>\w[\w.-]*?)(\.py)?'
)


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


@cache
def _configs(package: str) -> dict[str, list[str]]:
    """The configs that a package ships, by file name without its ending; no parts of configs."""
    folder = _folder(package)
    found: dict[str, list[str]] = {}
    for file in sorted(folder.glob('**/*.py')) if folder else ():
        place = file.relative_to(folder)
        if '_base_' not in place.parts:
            found.setdefault(file.stem, []).append(place.as_posix())
    return found


def _candidates(package: str, place: str, name: str) -> list[str]:
    """The configs that may be meant in a package by a folder, which may be empty, and a name."""
    folder = _folder(package)
    if folder is None:
        return []
    if place:
        return [f'{place}{name}.py'] if (folder / place / f'{name}.py').is_file() else []
    model = None if name in _configs(package) else _by_metafile(folder, name)
    found = _configs(package).get(name, [] if model is None else [model])
    # Those in folders of their own, as deploy, are variants.
    return [config for config in found if config.count('/') == 1] or found


def packaged_config(source: str) -> str | None:
    """The config that a package ships under a name, as ``mmpretrain::FOLDER/FILE.py``.

    Args:
        source: That of a config file, or of a model of the package, as in its metafiles. Package
            (``mmpretrain::``), ``configs/``, folder and ``.py`` may be left out.

    Returns:
        None if the name is nothing like that of such a config.

    Raises:
        UsageError: Several configs have the name, or none has but some have a similar one, or
            the package that is named has none.

    Example:
        >>> packaged_config('configs/resnet/resnet50_8xb32_in1k.py')
        'mmpretrain::resnet/resnet50_8xb32_in1k.py'
    """
    parts = _NAME.fullmatch(source)
    if parts is None or source.endswith('.json') or not (parts['package'] or '_' in source):
        return None  # no glob pattern, other path or sentence
    package, place, name = parts['package'], parts['folder'], parts['name']
    if package is not None and _folder(package) is None:
        raise UsageError(f'{source}: {package} is not installed')
    packages = (package,) if package else PACKAGES
    found = [
        f'{owner}::{config}' for owner in packages for config in _candidates(owner, place, name)
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f'{source}: several configs have this name; write {" or ".join(found)}')
    known = {
        stem: f'{owner}::{configs[0]}'
        for owner in packages
        for stem, configs in _configs(owner).items()
    }
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5 if package else 0.85)
    if not near and package is None:
        return None
    hint = ', '.join(known[stem] for stem in near)
    raise UsageError(
        f'{source}: no such file, nor a config of {" or ".join(packages)}; '
        + (f'near ones are {hint}' if near else f'write {package}::FOLDER/NAME.py')
    )
