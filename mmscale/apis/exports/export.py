"""Exports networks: weights, configs, ONNX, programs of torch.export, and a model card."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmscale.apis.exports.card import CONTENT, model_card
from mmscale.apis.exports.source import Source, find_source, sha256
from mmscale.arch import Arch
from mmscale.arch.checks import choice
from mmscale.errors import UsageError
from mmscale.launch.config_text import check_config_folder
from mmscale.quiet import quiet_imports
from mmscale.tables import Printed

if TYPE_CHECKING:
    from mmscale.cost import Cost

FORMATS = ('mmpretrain', 'mmdet', 'onnx', 'pt2', 'safetensors')
CARD = 'model_card.md'
_CONVENTION = 'mmscale'


@dataclass(frozen=True, repr=False)
class Exported(Printed):
    """What an export wrote; prints it.

    Attributes:
        folder: Where it lies.
        files: SHA-256 of each file, by its name, the model card's excepted.
        cost: Of what was exported, per image.
        convention: How it was counted.
        differences: What was compared, and the largest difference that was found.
        notes: What was decided for the user.
    """

    folder: Path
    files: dict[str, str]
    cost: Cost
    convention: str
    differences: dict[str, float]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """Returns the report as plain JSON data."""
        cost = {key: getattr(self.cost, key) for key in ('flops', 'params', 'acts')}
        return {
            'folder': str(self.folder),
            'files': self.files,
            **cost,
            'convention': self.convention,
            'differences': self.differences,
            'notes': self.notes,
        }

    def renderables(self) -> list[str]:
        """What was decided, what was compared, and the files."""
        compared = [
            f'{what}: largest difference {value:.3g}' for what, value in self.differences.items()
        ]
        return [*self.notes, *compared, f'Wrote {self.folder}: {", ".join(self.files)}, {CARD}']


def export(
    source: str | Path | dict | Arch,
    out: str | Path,
    checkpoint: str | Path | None = None,
    scaling_stage: int | None = None,
    config: str | Path | None = None,
    options: Sequence[str] = (),
    formats: Sequence[str] = FORMATS,
    detector: str = 'retinanet',
    fuse: bool = False,
    input_size: Sequence[int] | None = None,
    name: str | None = None,
    overwrite: bool = False,
) -> Exported:
    """Writes a network as a folder that stands alone.

    ``weights.pth``, ``model_card.md`` and, of an ArchNet, ``arch.json`` are always there. The
    folder appears when everything in it is written and checked.

    Args:
        source: What to export, see :func:`mmscale.apis.exports.source.find_source`, as for the
            next four arguments.
        out: The folder.
        checkpoint: The weights.
        scaling_stage: Which network of a ``result.json``.
        config: Config around an Arch.
        options: Overrides of the config.
        formats: Some of :data:`FORMATS`. Of a detector ``mmdet`` is its own config, and there is
            none for mmpretrain; of a network without an Arch there is only its own.
        detector: Which config of mmdet a classifier gets, see
            :data:`mmscale.apis.exports.configs.DETECTORS`.
        fuse: Whether to fold BNs into convolutions in ONNX and ``.pt2``.
        input_size: Height and width of the images of ONNX and ``.pt2``, which the model card's
            cost is of too; by default what the network is made for.
        name: The network's name; by default that of the file it comes from.
        overwrite: Whether to replace an earlier export.

    Raises:
        UsageError: A file cannot be read.
        ValueError: A setting is not allowed, the weights are not the network's, a package is
            missing, or an exported program computes something else.

    Example:
        >>> weights = 'work_dirs/digits-s1/iter_600.pth'
        >>> print(export('configs/scalenet/digits-s1.py', 'out', weights))  # doctest: +SKIP
    """
    if not isinstance(out, (str, Path)):
        raise UsageError(f'out={out!r:.60} must be a folder')
    folder = Path(out)
    formats = [formats] if isinstance(formats, str) else formats
    if folder.is_symlink():
        folder = folder.resolve()  # the link stays
    _check_folder(folder, overwrite)
    check_config_folder(folder)
    _check_formats(formats, fuse)
    if input_size is not None and (
        not isinstance(input_size, Sequence)
        or len(input_size) != 2
        or any(type(side) is not int or side < 1 for side in input_size)
    ):
        raise UsageError(f'input_size={input_size!r} must be two integers of 1 or more')
    with quiet_imports():
        from mmscale.apis.exports import programs
        from mmscale.apis.exports.configs import (
            DETECTORS,
            PRUNED,
            detector_config,
            own_config,
        )

    choice('detector', detector, DETECTORS)
    if 'onnx' in formats and (missing := programs.missing_for_onnx()):
        raise UsageError(
            f'onnx needs {missing}, or leave it out '
            f'with --formats {" ".join(one for one in FORMATS if one != "onnx")}'
        )
    found = find_source(source, checkpoint, scaling_stage, config, options)
    found.name = name or found.name
    if input_size is not None:
        found.image_shape = (found.image_shape[0], *input_size)
    texts = {}
    own = 'mmdet' if found.scope == 'mmdet' else 'mmpretrain'
    if own in formats:
        texts[f'{own}_config.py'] = own_config(found)
    if 'pruned' in found.settings['model']:
        texts[PRUNED] = json.dumps(found.settings['model']['pruned'])
    if own == 'mmpretrain' and 'mmdet' in formats and found.arch is not None:
        texts['mmdet_config.py'] = detector_config(found, detector)
    partial = folder.with_name(f'.{folder.name}.{os.getpid()}.partial')
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for file, text in texts.items():
            (partial / file).write_text(text, encoding='utf-8')
        exported = _write(found, partial, formats, fuse, folder)
        _put(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return exported


def _check_folder(folder: Path, overwrite: bool) -> None:
    """Refuses to write over what is no export.

    Raises:
        ValueError: The folder must not be replaced.
    """
    if not folder.name:
        raise UsageError(f'out={folder}: name a new folder')
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f'{folder} is a file, not a folder')
    others = sorted(path.name for path in folder.iterdir() if path.name not in {*CONTENT, CARD})
    if others:
        raise UsageError(f'{folder} holds {others[0]}, which is of no export: name another folder')
    if any(folder.iterdir()) and not overwrite:
        raise UsageError(f'{folder} exists: name another folder, or give --overwrite')


def _check_formats(formats: Sequence[str], fuse: bool) -> None:
    for one in formats:
        choice('formats', one, FORMATS)
    if fuse and not {'onnx', 'pt2'} & set(formats):
        raise UsageError('fuse is about onnx and pt2, and formats has none of them')


def _write(
    source: Source, folder: Path, formats: Sequence[str], fuse: bool, destination: Path
) -> Exported:
    """Writes all files but the configs, which are there."""
    import torch

    from mmscale.apis.exports import programs
    from mmscale.cost import count_module
    from mmscale.models.checkpoints import write_safetensors
    from mmscale.version import __version__

    weights = {key: tensor.contiguous() for key, tensor in source.model.state_dict().items()}
    content: dict[str, Any] = {'state_dict': weights, 'name': source.name, 'mmscale': __version__}
    if source.arch is not None:
        source.arch.save(folder / 'arch.json')
        content['arch'] = json.dumps(source.arch.to_json())
    torch.save(content, folder / 'weights.pth')
    if 'safetensors' in formats:
        words = {key: content[key] for key in ('arch', 'name', 'mmscale') if key in content}
        write_safetensors(folder / 'weights.safetensors', weights, words)
    program = programs.Program(source.model)
    cost = count_module(program, source.image_shape, convention=_CONVENTION, memory=False).cost
    images = programs.example_images(source.image_shape)
    program.run(images[:1])
    differences = {}
    if fuse:
        fused = programs.Program(source.model, fuse=True)
        differences['BNs folded into convolutions'] = programs.difference(
            'the network with folded BNs', program, images, fused.run
        )
        shipped = fused
    else:
        shipped = program
    if {'onnx', 'pt2'} & set(formats):
        captured = programs.capture(shipped, images)
        for one, save in (('onnx', programs.save_onnx), ('pt2', programs.save_program)):
            if one in formats:
                path = folder / f'model.{one}'
                differences[f'{path.name}'] = save(captured, shipped, images, path)
    files = {name: sha256(folder / name) for name in CONTENT if (folder / name).is_file()}
    card = model_card(source, cost, _CONVENTION, files, differences, program.outputs)
    (folder / CARD).write_text(card, encoding='utf-8')
    return Exported(destination, files, cost, _CONVENTION, differences, source.notes)


def _put(partial: Path, folder: Path) -> None:
    """Puts a whole folder in the place of an earlier one."""
    old = partial.with_suffix('.old')
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    try:
        partial.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
