"""Settings that would do nothing, or harm, to a super-supernet: refused at the start."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmscale.errors import UsageError

if TYPE_CHECKING:
    from mmengine.config import Config

_REFUSED = {
    'compile': 'a super-supernet runs other subnets in every iteration, and each of them would be '
    'compiled anew, for minutes; compile the network that is retrained',
    'activation_checkpointing': 'the layers of a super-supernet are not called as modules; set '
    'model.backbone.with_cp=True',
}


def check_settings(config: Config) -> None:
    """Checks a config whose model is a super-supernet.

    Raises:
        UsageError: A setting does nothing or is not allowed.
    """
    for key, reason in _REFUSED.items():
        if config.get(key):
            raise UsageError(f'{key}={config[key]!r:.60} is not for super-supernets: {reason}')
    if _is_in_vain(config):
        where = 'detector.backbone' if 'detector' in config.model else 'backbone'
        raise UsageError(
            f'space={dict(config.space)!r:.60} is set, but the model has another one: a variable '
            f'is not looked up again once a base has used it. Set model.{where}.space, which '
            'model, sampler and search all take it from: '
            'model=dict(' + where.replace('.', '=dict(') + '=dict(space=dict(...)))'
        )


def space_of(config: Mapping[str, Any]) -> Any:
    """The space of the model of a config, of a classifier's or a detector's backbone."""
    part = config.get('model')
    for key in ('detector', 'backbone', 'space'):
        if not isinstance(part, Mapping):
            return None
        part = part.get(key, part if key == 'detector' else None)
    return part


def _bases_of(path: Path) -> Iterator[Path]:
    """The configs that a config in either of MMEngine's styles inherits, if they are files."""
    from mmengine.config import Config

    named = [path.parent / base for base in Config._get_base_files(str(path))]
    for statement in ast.parse(path.read_text(encoding='utf-8')).body:
        if isinstance(statement, ast.With):  # that of read_base()
            for line in statement.body:
                if isinstance(line, ast.ImportFrom) and line.level:
                    folder = path.parents[line.level - 1]
                    named.append(
                        folder.joinpath(*(line.module or '').split('.')).with_suffix('.py')
                    )
    yield from filter(Path.is_file, named)


def _is_in_vain(config: Config) -> bool:
    """Whether somebody changed the variable ``space`` where the model no longer follows it.

    A model of its own may well have another space than the variable: then it was changed there.
    """
    from mmengine.config import Config

    space, used = config.get('space'), space_of(config)
    if space is None or used is None or space == used or not config.filename:
        return False
    earlier = [Path(config.filename)]
    while earlier:
        path = earlier.pop(0)
        if not path.is_file():
            continue
        read = Config.fromfile(path, import_custom_modules=False)
        # Where the model has none yet, the variable is what it will be given.
        before, used_before = read.get('space'), space_of(read) or read.get('space')
        if before is None or (before, used_before) == (space, used):
            earlier += _bases_of(path)
        elif used_before == used:
            return True
    return False
