"""Networks as programs that run without mmscale: ONNX and torch.export, each checked."""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mmscale.errors import FOREIGN_ERRORS, UsageError, one_line
from mmscale.models import ArchNet
from mmscale.quiet import quiet_imports

ONNX_PACKAGES = ('onnx', 'onnxruntime', 'onnxscript')
# 2.4 does not take what torch.export has captured; 2.5 and 2.6 do not translate its norms.
ONNX_TORCH = (2, 7)
# Largest difference that rounding explains, relative to the largest output.
TOLERANCES = {'float32': 1e-3, 'float16': 2e-2}
# Programs of dynamic size take multiples of it; torch.export keeps the rounding of the very size
# that it sees in a pooling layer, and with these there is none.
_STEP = 32


class Program(nn.Module):
    """What of a model is exported: images to logits, or to feature maps.

    Args:
        model: An mmpretrain classifier, an mmdet detector, a backbone, or any other module that
            maps images alone. It is copied.
        fuse: Whether to fold every BN into the convolution before it.
        dtype: What it computes in; images and outputs are float32 whatever it is.

    Attributes:
        outputs: Names of the outputs: ``logits``; of a detector and of a network without head
            ``feature_0``, ..., what the detector's head gets.
    """

    def __init__(self, model: nn.Module, fuse: bool = False, dtype: str = 'float32') -> None:
        super().__init__()
        self.dtype = dtype
        self.model = _copied(model)
        self.model.eval()
        self.model.requires_grad_(False)
        for module in self.model.modules():
            if isinstance(module, ArchNet):
                module.channels_last = False  # a layout of training, not part of a program
        if fuse:
            from mmcv.cnn import fuse_conv_bn

            self.model = fuse_conv_bn(self.model)
        self.model.to(getattr(torch, dtype))
        self.outputs: list[str] = []

    @property
    def is_classifier(self) -> bool:
        """Whether the model ends in logits."""
        from mmpretrain.models import BaseClassifier

        return isinstance(self.model, BaseClassifier) and self.model.with_head

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Maps normalised images (N, channels, H, W)."""
        found = self._outputs(images.to(getattr(torch, self.dtype)))
        if isinstance(found, Tensor):
            return found.float()
        return tuple(one.float() for one in found)

    def _outputs(self, images: Tensor) -> Tensor | Sequence[Tensor]:
        from mmpretrain.models import BaseClassifier

        if self.is_classifier:
            return self.model(images)
        if isinstance(self.model, BaseClassifier):
            return self.model.extract_feat(images, stage='backbone')
        if hasattr(self.model, 'extract_feat'):
            return self.model.extract_feat(images)
        return self.model(images)

    @torch.no_grad()
    def run(self, images: Tensor) -> list[Tensor]:
        """The outputs for images, as a list."""
        found = self(images)
        outputs = [found] if isinstance(found, Tensor) else list(found)
        if self.is_classifier:
            self.outputs = ['logits']
        else:
            self.outputs = [f'feature_{i}' for i in range(len(outputs))]
        return outputs


def _copied(model: nn.Module) -> nn.Module:
    """A copy of a model; what it has computed of its weights and keeps is copied as values."""
    computed = {
        id(value): value.detach().clone()
        for module in model.modules()
        for part in vars(module).values()
        for value in (part if isinstance(part, (list, tuple)) else [part])
        if isinstance(value, Tensor) and not value.is_leaf
    }
    try:
        return copy.deepcopy(model, computed)
    except RuntimeError as error:
        raise UsageError(
            f'{type(model).__name__} cannot be copied: {one_line(error):.300}'
        ) from error


def missing_for_onnx() -> str | None:
    """What an export to ONNX needs and what is not there, in words; None if all is."""
    if torch.__version__ < ONNX_TORCH:
        return f'torch {".".join(map(str, ONNX_TORCH))} or newer, found {torch.__version__}'
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    return f'{", ".join(missing)}: pip install {" ".join(missing)}' if missing else None


def example_images(shape: Sequence[int], batch: int = 3) -> Tensor:
    """Random images, always the same ones.

    Args:
        shape: Of one image.
        batch: How many.
    """
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0))


def larger_images(images: Tensor) -> Tensor:
    """Larger random images of another aspect ratio, to check programs of dynamic size with."""
    channels, height, width = images.shape[1:]
    shape = (channels, (height // _STEP + 2) * _STEP, (width // _STEP + 3) * _STEP)
    return example_images(shape, batch=2)


def difference(
    what: str,
    expected: Program,
    images: Tensor,
    run: Callable[[Tensor], Sequence[Tensor]],
    dtype: str = 'float32',
    larger: Tensor | None = None,
) -> float:
    """The largest difference between a program's outputs and another way to compute them.

    Batches of one and of all images are compared, and the larger images if there are some.

    Args:
        what: The other way, for the message.
        expected: The program.
        images: Two or more.
        run: The other way.
        dtype: What it computes in.
        larger: Images of another size.

    Raises:
        UsageError: The outputs differ by more than rounding explains, or there are none.
    """
    largest = 0.0
    for batch in (images, images[:1], *([] if larger is None else [larger])):
        wanted = expected.run(batch)
        try:
            found = run(batch)
        except FOREIGN_ERRORS as error:
            is_larger = batch is larger
            raise UsageError(
                f'{"dynamic_size: " if is_larger else ""}{what} fails with images of '
                f'{tuple(batch.shape)}: {one_line(error):.300}'
                f'{"; the network wants one size, leave the option out" if is_larger else ""}'
            ) from error
        if [one.shape for one in wanted] != [one.shape for one in found]:
            raise UsageError(f'{what}: shapes of the outputs differ from the network')
        for one, other in zip(wanted, found, strict=True):
            distance = (one - other).abs().max().item()
            if not distance <= TOLERANCES[dtype] * max(1.0, one.abs().max().item()):
                raise UsageError(f'{what}: outputs differ from the network by {distance:.3g}')
            largest = max(largest, distance)
    return largest


def capture(
    program: Program, images: Tensor, dynamic_size: bool = False
) -> torch.export.ExportedProgram:
    """The program as torch.export sees it, for batches of any size.

    Args:
        program: What to capture.
        images: Two or more.
        dynamic_size: Whether height and width may be others too: multiples of 32, and any if no
            layer rounds them.

    Raises:
        UsageError: The network cannot be captured, or not for images of any size.
    """
    if dynamic_size:
        images = larger_images(images)
    program.run(images)  # names the outputs
    dims = {0: torch.export.Dim('batch')}
    if dynamic_size:
        if not hasattr(torch.export.Dim, 'DYNAMIC'):
            raise UsageError(f'dynamic_size needs torch 2.6 or newer, found {torch.__version__}')
        # Its range is found out: feature maps must not shrink to one pixel.
        dims |= dict.fromkeys((2, 3), torch.export.Dim.DYNAMIC)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter('ignore')
        try:
            return torch.export.export(program, (images,), dynamic_shapes={'images': dims})
        except FOREIGN_ERRORS as error:
            asked = 'dynamic_size: not for images of any size: ' if dynamic_size else ''
            raise UsageError(f'{asked}torch.export: {one_line(error):.300}') from error


def save_program(
    captured: torch.export.ExportedProgram,
    program: Program,
    images: Tensor,
    path: Path,
    larger: Tensor | None = None,
) -> float:
    """Writes a ``.pt2`` file, loads it again and compares.

    Args:
        captured: See :func:`capture`.
        program: What it was captured from.
        images: To compare with.
        path: The file.
        larger: Images of another size, if the program takes them.

    Returns:
        The largest difference.

    Raises:
        ValueError: See :func:`difference`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # about buffers of its own that are not writable
        torch.export.save(captured, path)
        loaded = torch.export.load(path).module()

    def run(batch: Tensor) -> list[Tensor]:
        with torch.no_grad():
            found = loaded(batch)
        return [found] if isinstance(found, Tensor) else list(found)

    return difference(path.name, program, images, run, program.dtype, larger)


def save_onnx(
    captured: torch.export.ExportedProgram,
    program: Program,
    images: Tensor,
    path: Path,
    larger: Tensor | None = None,
) -> float:
    """Writes an ONNX file, runs it with onnxruntime and compares, as :func:`save_program` does."""
    names = {0: 'batch'}
    if larger is not None:
        names |= {2: 'height', 3: 'width'}
    with quiet_imports(), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        import onnx
        import onnxruntime

        torch.onnx.export(
            captured,
            f=str(path),
            dynamo=True,
            input_names=['images'],
            output_names=program.outputs,
            dynamic_shapes={'images': names},
            external_data=False,
            verbose=False,
        )
    onnx.checker.check_model(str(path))
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), settings, providers=['CPUExecutionProvider'])

    def run(batch: Tensor) -> list[Tensor]:
        return [torch.from_numpy(one) for one in session.run(None, {'images': batch.numpy()})]

    return difference(path.name, program, images, run, program.dtype, larger)
