"""Networks as programs that run without mmscale: ONNX and torch.export, each checked."""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mmscale.errors import UsageError
from mmscale.models import ArchNet
from mmscale.quiet import quiet_imports

ONNX_PACKAGES = ('onnx', 'onnxruntime', 'onnxscript')
# 2.4 does not take what torch.export has captured; 2.5 and 2.6 do not translate its norms.
ONNX_TORCH = (2, 7)
# Largest difference that rounding explains, relative to the largest output.
_TOLERANCE = 1e-3


class Program(nn.Module):
    """What of a model is exported: images to logits, or to feature maps.

    Args:
        model: An mmpretrain classifier, an mmdet detector, a backbone, or any other module that
            maps images alone. It is copied.
        fuse: Whether to fold every BN into the convolution before it.

    Attributes:
        outputs: Names of the outputs: ``logits``; of a detector and of a network without head
            ``feature_0``, ..., what the detector's head gets.
    """

    def __init__(self, model: nn.Module, fuse: bool = False) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self.model.eval()
        self.model.requires_grad_(False)
        for module in self.model.modules():
            if isinstance(module, ArchNet):
                module.channels_last = False  # a layout of training, not part of a program
        if fuse:
            from mmcv.cnn import fuse_conv_bn

            self.model = fuse_conv_bn(self.model)
        self.outputs: list[str] = []

    @property
    def is_classifier(self) -> bool:
        """Whether the model ends in logits."""
        from mmpretrain.models import BaseClassifier

        return isinstance(self.model, BaseClassifier) and self.model.with_head

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Maps normalised images (N, channels, H, W)."""
        from mmpretrain.models import BaseClassifier

        if self.is_classifier:
            return self.model(images)
        if isinstance(self.model, BaseClassifier):
            return tuple(self.model.extract_feat(images, stage='backbone'))
        if hasattr(self.model, 'extract_feat'):
            return tuple(self.model.extract_feat(images))
        found = self.model(images)
        return found if isinstance(found, Tensor) else tuple(found)

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


def difference(
    what: str, expected: Program, images: Tensor, run: Callable[[Tensor], Sequence[Tensor]]
) -> float:
    """The largest difference between a program's outputs and another way to compute them.

    Batches of one and of all images are compared.

    Args:
        what: The other way, for the message.
        expected: The program.
        images: Two or more.
        run: The other way.

    Raises:
        ValueError: The outputs differ by more than rounding explains.
    """
    largest = 0.0
    for batch in (images, images[:1]):
        wanted, found = expected.run(batch), run(batch)
        if [one.shape for one in wanted] != [one.shape for one in found]:
            raise UsageError(f'{what}: shapes of the outputs differ from the network')
        for one, other in zip(wanted, found, strict=True):
            distance = (one - other).abs().max().item()
            if not distance <= _TOLERANCE * max(1.0, one.abs().max().item()):
                raise UsageError(f'{what}: outputs differ from the network by {distance:.3g}')
            largest = max(largest, distance)
    return largest


def capture(program: Program, images: Tensor) -> torch.export.ExportedProgram:
    """The program as torch.export sees it, for batches of any size.

    Args:
        program: What to capture.
        images: Two or more; height and width stay as they are.
    """
    program.run(images)  # names the outputs
    batch = {'images': {0: torch.export.Dim('batch')}}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter('ignore')
        return torch.export.export(program, (images,), dynamic_shapes=batch)


def save_program(
    captured: torch.export.ExportedProgram, program: Program, images: Tensor, path: Path
) -> float:
    """Writes a ``.pt2`` file, loads it again and compares.

    Args:
        captured: See :func:`capture`.
        program: What it was captured from.
        images: To compare with.
        path: The file.

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

    return difference(path.name, program, images, run)


def save_onnx(
    captured: torch.export.ExportedProgram, program: Program, images: Tensor, path: Path
) -> float:
    """Writes an ONNX file, runs it with onnxruntime and compares, as :func:`save_program` does."""
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
            dynamic_shapes={'images': {0: 'batch'}},
            external_data=False,
            verbose=False,
        )
    onnx.checker.check_model(str(path))
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), settings, providers=['CPUExecutionProvider'])

    def run(batch: Tensor) -> list[Tensor]:
        return [torch.from_numpy(one) for one in session.run(None, {'images': batch.numpy()})]

    return difference(path.name, program, images, run)
