"""Exports networks: weights, configs, ONNX, programs of torch.export, and a model card."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmscale.apis.exports.card import CONTENT, model_card
from mmscale.apis.exports.source import Source, find_source
from mmscale.apis.exports.weights import sha256
from mmscale.arch import Arch
from mmscale.arch.checks import choice
from mmscale.errors import FOREIGN_ERRORS, UsageError, one_line
from mmscale.launch.config_text import check_config_folder
from mmscale.memory import check_memory
from mmscale.quiet import quiet_imports
from mmscale.tables import Printed

if TYPE_CHECKING:
    from mmengine.config import Config
    from torch import Tensor, nn

    from mmscale.apis.exports.programs import Program
    from mmscale.cost import Cost

FORMATS = ('mmpretrain', 'mmdet', 'onnx', 'pt2', 'safetensors')
CARD = 'model_card.md'
_CONVENTION = 'mmscale'
_LICENSE = re.compile(r'[A-Za-z0-9][A-Za-z0-9.+-]{0,60}')


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
    source: str | Path | dict | Arch | Config | nn.Module,
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
    *,
    random_weights: bool = False,
    dynamic_size: bool = False,
    dtype: str = 'float32',
    license: str | None = None,
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
            none for mmpretrain; of a network without an Arch there is only its own, and of a
            module that no config describes none.
        detector: Which config of mmdet a classifier gets, see
            :data:`mmscale.apis.exports.configs.DETECTORS`.
        fuse: Whether to fold BNs into convolutions in ONNX and ``.pt2``.
        input_size: Height and width of the images of ONNX and ``.pt2``, which the model card's
            cost is of too; by default what the network is made for.
        name: The network's name; by default that of the file it comes from.
        overwrite: Whether to replace an earlier export.
        random_weights: Whether to export the network without weights, to measure it.
        dynamic_size: Whether ONNX and ``.pt2`` take images of other heights and widths, multiples
            of 32; they are checked with larger ones of another aspect ratio too.
        dtype: What ONNX and ``.pt2`` compute in, ``float32`` or ``float16``; they take and give
            float32, and the weights in the other files stay as they were trained.
        license: The license of the weights for the model card, as model hubs name it, such as
            ``apache-2.0``; by default none is said.

    Raises:
        UsageError: A file cannot be read, a setting is not allowed, the weights are not the
            network's, a package is missing, or an exported program computes something else.

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
    _check_formats(formats, fuse=fuse, dynamic_size=dynamic_size, dtype=dtype != 'float32')
    if license is not None and not _LICENSE.fullmatch(license):
        raise UsageError(f'license={license!r:.60} must be an identifier such as apache-2.0')
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
    choice('dtype', dtype, programs.TOLERANCES)
    if 'onnx' in formats and (missing := programs.missing_for_onnx()):
        raise UsageError(
            f'onnx needs {missing}, or leave it out with formats (--formats) '
            f'{" ".join(one for one in FORMATS if one != "onnx")}'
        )
    found = find_source(source, checkpoint, scaling_stage, config, options, random_weights)
    found.name = name or found.name
    if input_size is not None:
        found.image_shape = (found.image_shape[0], *input_size)
    texts = {}
    own = 'mmdet' if found.scope == 'mmdet' else 'mmpretrain'
    if not found.settings:
        found.notes.append('No config describes the network: there is none for mmpretrain, mmdet.')
    elif own in formats:
        texts[f'{own}_config.py'] = own_config(found)
    if 'pruned' in found.settings.get('model', ()):
        texts[PRUNED] = json.dumps(found.settings['model']['pruned'])
    if own == 'mmpretrain' and 'mmdet' in formats and found.arch is not None:
        texts['mmdet_config.py'] = detector_config(found, detector)
    partial = folder.with_name(f'.{folder.name}.{os.getpid()}.partial')
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for file, text in texts.items():
            (partial / file).write_text(text, encoding='utf-8')
        exported = _write(found, partial, formats, (fuse, dynamic_size, dtype), license, folder)
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
        raise UsageError(f'{folder} exists: name another folder, or give overwrite (--overwrite)')


def _check_formats(formats: Sequence[str], **of_programs: bool) -> None:
    for one in formats:
        choice('formats', one, FORMATS)
    given = [name for name, value in of_programs.items() if value]
    if given and not {'onnx', 'pt2'} & set(formats):
        raise UsageError(f'{given[0]} is about onnx and pt2, and formats has none of them')


def _write(
    source: Source,
    folder: Path,
    formats: Sequence[str],
    how: tuple[bool, bool, str],
    license_name: str | None,
    destination: Path,
) -> Exported:
    """Writes all files but the configs, which are there.

    Args:
        source: The network.
        folder: Where to.
        formats: Some of :data:`FORMATS`.
        how: ``fuse``, ``dynamic_size`` and ``dtype`` of ONNX and ``.pt2``.
        license_name: For the model card.
        destination: Where the folder will lie at last.
    """
    import torch

    from mmscale.apis.exports import programs
    from mmscale.cost import count_module
    from mmscale.models.checkpoints import write_safetensors
    from mmscale.version import __version__

    weights = {key: tensor.contiguous() for key, tensor in source.model.state_dict().items()}
    content: dict[str, Any] = {'state_dict': weights, 'name': source.name, 'mmscale': __version__}
    if source.arch is not None:
        source.arch.save(folder / 'arch.json', source.origin)
        content['arch'] = (folder / 'arch.json').read_text(encoding='utf-8')
    torch.save(content, folder / 'weights.pth')
    if 'safetensors' in formats:
        words = {key: content[key] for key in ('arch', 'name', 'mmscale') if key in content}
        write_safetensors(folder / 'weights.safetensors', weights, words)
    fuse, dynamic_size, dtype = how
    program = programs.Program(source.model)
    _check_images(source)
    images = programs.example_images(source.image_shape)
    larger = programs.larger_images(images) if dynamic_size else None
    for what, batch in (('', images[:1]), ('dynamic_size: ', larger)):
        if batch is not None:
            _try(program, batch, what)
    cost = count_module(program, source.image_shape, convention=_CONVENTION, memory=False).cost
    differences = {}
    if fuse:
        fused = programs.Program(source.model, fuse=True)
        differences['BNs folded into convolutions'] = programs.difference(
            'the network with folded BNs', program, images, fused.run
        )
    shipped = program
    if fuse or dtype != 'float32':
        shipped = programs.Program(source.model, fuse, dtype)
    if dtype != 'float32':
        differences[dtype] = programs.difference(
            f'the network in {dtype}', program, images, shipped.run, dtype
        )
    if {'onnx', 'pt2'} & set(formats):
        captured = programs.capture(shipped, images, dynamic_size)
        for one, save in (('onnx', programs.save_onnx), ('pt2', programs.save_program)):
            if one in formats:
                path = folder / f'model.{one}'
                differences[f'{path.name}'] = save(captured, shipped, images, path, larger)
    files = {name: sha256(folder / name) for name in CONTENT if (folder / name).is_file()}
    card = model_card(
        source, cost, _CONVENTION, files, differences, shipped, dynamic_size, license_name
    )
    (folder / CARD).write_text(card, encoding='utf-8')
    return Exported(destination, files, cost, _CONVENTION, differences, source.notes)


def _check_images(source: Source) -> None:
    """Refuses images that do not fit into memory, with what the first layer makes of them.

    Raises:
        UsageError: They do not.
    """
    channels, height, width = source.image_shape
    numbers = channels * height * width
    if source.arch is not None:
        stem = source.arch.stem
        numbers += stem.out_channels * -(-height // stem.stride) * -(-width // stem.stride)
    check_memory(f'{source.name}: running it on {height} x {width} px', 3 * 4 * numbers)


def _try(program: Program, images: Tensor, what: str) -> None:
    """Checks that a network takes images.

    Raises:
        UsageError: It does not.
    """
    try:
        program.run(images)
    except FOREIGN_ERRORS as error:
        raise UsageError(
            f'{what}the network fails on images of {tuple(images.shape[1:])}: '
            f'{one_line(error):.300}'
        ) from error


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
