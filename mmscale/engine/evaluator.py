"""Scores subnets of a super-supernet as the stand-alone networks that would be shipped."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from mmengine.model import BaseModel
from torch.nn.modules.batchnorm import _BatchNorm

from mmscale.arch import Arch
from mmscale.arch.checks import choice, integer
from mmscale.arch.sampling import SIDES
from mmscale.engine.calibration import Recalibration
from mmscale.engine.candidates import (
    Candidate,
    OutOfMemoryError,
    RightAnswers,
    Tally,
    are_decided,
    each,
    out_of_memory_is_of_the_candidate,
)
from mmscale.engine.content import Targets, bytes_of
from mmscale.engine.images import HANDLING, PLACES, Images, content_of
from mmscale.engine.single_images import archs_of_smallest_maps, refusal_of_one
from mmscale.errors import UsageError
from mmscale.models import SuperNetTraining
from mmscale.registry import TASK_UTILS
from mmscale.search import EvaluationError, Score
from mmscale.search.scoring import Communicator
from mmscale.shown import shortly

_STATISTICS = ('recalibrated', 'batch')
_AMP = {'bf16': torch.bfloat16, 'fp16': torch.float16}

# Of BN statistics that are kept: those of hundreds of large networks.
_MOST_STATISTICS_BYTES = 2**26


def weights_digest(model: torch.nn.Module) -> str:
    """SHA-256 of a model's parameters and buffers, independent of file formats."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()


@TASK_UTILS.register_module()
class SubnetEvaluator:
    """Extracts a subnet, recalibrates its BN statistics and counts the images it gets right.

    The statistics of the super-supernet belong to no subnet, so they are measured anew on a
    fixed set of training images. The images that score are none of those, and no test images.

    With ``bn='batch'`` every batch of scored images is normalised by its own statistics, as the
    released ScaleNet does, and nothing is calibrated. This is for comparison: it is transductive
    (an image's prediction depends on the other images of its batch), so the score depends on
    the batch size and is not that of a network that could be shipped.

    Args:
        model: The trained super-supernet.
        dataloader: Config of the loader of scoring images.
        calibration_dataloader: Config of the loader of training images for the statistics.
        calibration_images: Number of those images.
        max_images: Number of scoring images; None for all.
        side: Side of the channel coupling, ``left`` or ``right``; or ``both``: two networks are
            extracted, and their logits averaged.
        bn: Statistics that BN layers normalise with, ``recalibrated`` or ``batch``.
        threads: CPU threads; float results depend on it, so it is fixed and recorded.
        cache: Whether to keep the images of every resolution in memory, normalised; or ``disk``:
            decoded once by all ranks together, as uint8, and shared by them and by later runs.
        cache_dir: Folder of the images on the disk; a search takes ``images`` in its work dir.
        cache_bytes: What they may take; a resolution that goes beyond is decoded every time.
        amp: ``bf16`` or ``fp16`` to calibrate and score in mixed precision; recorded if set.
        channels_last: Whether networks compute with channels innermost in memory; by default as
            the super-supernet does. Recorded if set.
        candidates_per_pass: So many candidates of one resolution share a pass over the images.

    Attributes:
        counts_answers: Whether scores count right answers, so that they have a binomial error.
        images_seen: Images that were scored so far.
        images_saved: Images that were not, because enough others were wrong.

    Raises:
        ValueError: A setting is not allowed.
    """

    counts_answers: ClassVar[bool] = True

    def __init__(
        self,
        model: SuperNetTraining,
        dataloader: dict[str, Any],
        calibration_dataloader: dict[str, Any],
        calibration_images: int = 1024,
        max_images: int | None = None,
        side: str = 'left',
        bn: str = 'recalibrated',
        threads: int = 1,
        cache: bool | str = True,
        cache_dir: str | Path = 'work_dirs/images',
        cache_bytes: int = 2**36,
        amp: str | None = None,
        channels_last: bool | None = None,
        candidates_per_pass: int = 1,
    ) -> None:
        choice('side', side, (*SIDES, 'both'))
        choice('bn', bn, _STATISTICS)
        integer('threads', threads)
        if not isinstance(cache, bool) and cache != 'disk':
            raise UsageError(f'cache={shortly(cache):.60} is not one of True, False, disk')
        if not isinstance(cache_dir, (str, Path)) or '\0' in str(cache_dir):
            raise UsageError(f'cache_dir={shortly(cache_dir):.60} must be a path')
        integer('cache_bytes', cache_bytes, 0)
        if amp is not None:
            choice('amp', amp, _AMP)
        if channels_last is not None and not isinstance(channels_last, bool):
            raise UsageError(f'channels_last={channels_last!r:.60} must be True, False or None')
        self.candidates_per_pass = integer('candidates_per_pass', candidates_per_pass)
        self.model = model
        self.sides = SIDES if side == 'both' else (side,)
        if not set(self.sides) <= set(model.backbone.sides):
            raise UsageError(
                f'subnet_evaluator.side={side!r} does not fit '
                f'backbone.sides={model.backbone.sides!r}: allowed is {model.backbone.sides[0]!r}'
            )
        self.bn = bn
        self.threads = threads
        self.amp = amp
        self.channels_last = channels_last
        self.images_seen = self.images_saved = 0
        # Of the networks scored last, so that what is shipped is not calibrated again.
        self._statistics: dict[Arch, dict[str, torch.Tensor]] = {}
        self._weights: list[tuple[int, int]] = []
        # What is read is known by its content, see :attr:`fingerprint`.
        unsaid = HANDLING | PLACES
        self._settings = {
            'dataloader': content_of(dataloader, unsaid),
            'max_images': max_images,
            'side': side,
            'bn': bn,
            'threads': threads,
        }
        if bn == 'recalibrated':
            self._settings |= {
                'calibration_dataloader': content_of(calibration_dataloader, unsaid),
                'calibration_images': calibration_images,
            }
        # Only what is set: archives from before there were such settings go on.
        chosen = {'amp': amp, 'evaluation_channels_last': channels_last}
        self._settings |= {key: value for key, value in chosen.items() if value is not None}
        kept = dict(cache=cache, cache_dir=Path(cache_dir), cache_bytes=cache_bytes)
        self._make_images = partial(
            Images,
            dataloader,
            model.data_preprocessor,
            name='test_dataloader',
            targets_of=self.targets_of,
            even=bn == 'batch',
            **kept,
        )
        self._images = self._make_images(max_images, 'max_images')
        self._calibration = Images(
            calibration_dataloader,
            model.data_preprocessor,
            calibration_images,
            'calibration_images',
            'calibration_dataloader',
            self.targets_of,
            even=True,
            **kept,
        )
        for images in self._images, self._calibration:
            images.check_sizes(model.backbone.space.resolutions)
        for name, images in (
            ('test_dataloader', self._images if bn == 'batch' else None),
            ('calibration_dataloader', self._calibration),
        ):
            if images is not None and images.has_single_images:
                self._check_single_images(name)

    def on_images(self, count: int, key: str) -> SubnetEvaluator:
        """The same evaluator with another number of scoring images; they share the others.

        Args:
            count: Number of scoring images.
            key: The setting that it comes from, for the error.

        Raises:
            UsageError: There are not so many.
        """
        other = copy.copy(self)
        other._images = self._make_images(count, key)
        other._settings = {**self._settings, 'max_images': count}
        other.images_seen = other.images_saved = 0
        return other

    @property
    def num_images(self) -> int:
        """How many images a network is scored on."""
        return len(self._images)

    def _check_single_images(self, name: str) -> None:
        """Refuses batches of one image where maps of 1 x 1 leave BN layers one value each."""
        for arch in archs_of_smallest_maps(self.model.backbone.space):
            part = self.normalised_part(self._raw(arch, self.sides[0]))
            error = refusal_of_one(part, arch.stem.in_channels, arch.resolution)
            if error:
                raise UsageError(
                    f'{name}: BN layers cannot take statistics of one image at '
                    f'{arch.resolution} px ({error}): take a batch_size of 2 or more, and as '
                    'many images'
                )

    @staticmethod
    def targets_of(data_samples: list) -> Targets:
        """What is to be predicted: labels (N,)."""
        return torch.cat([sample.gt_label for sample in data_samples])

    @staticmethod
    def normalised_part(net: BaseModel) -> torch.nn.Module:
        """The part of a network whose BN statistics are recalibrated; maps images to anything."""
        return net.backbone

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What the scores depend on: weights, data, settings, kind of device, torch.

        Data are the contents of all images and annotation files, see :meth:`Images.digest`, and
        the pipelines as the config has them. With ``cache=False`` every image is read for it once.
        """
        backbone = self.model.backbone
        resolution = backbone.space.resolution
        images = {'images': self._images.digest(resolution)}
        if self.bn == 'recalibrated':
            images['calibration'] = self._calibration.digest(resolution)
        return {
            **self._settings,
            **images,
            'channels_last': backbone.channels_last,
            'weights': weights_digest(self.model),
            'device': next(self.model.parameters()).device.type,
            'torch': torch.__version__,
        }

    def extract(self, arch: Arch) -> BaseModel:
        """The stand-alone network to ship: own weights, recalibrated BN statistics of its own.

        It is the network that is scored, unless the settings say that the scored one cannot be
        shipped: of two sides it is the left one, and its statistics are never a batch's.

        Raises:
            ValueError: The Arch is not in the super-supernet's space.
        """
        net = self._raw(arch, self.sides[0])
        known = self._known_statistics().get(arch)
        if known is None:
            statistics = Recalibration(self.normalised_part(net))
            with self._precision():
                for inputs, _ in self._calibration.batches(arch.resolution):
                    statistics.see(inputs)
            statistics.finish()
        else:
            for name, buffer in net.named_buffers():
                buffer.copy_(known[name])
        net.eval()
        return net

    def _known_statistics(self) -> dict[Arch, dict[str, torch.Tensor]]:
        """Statistics that are kept, of the weights as they are now: others are let go of."""
        tensors = (*self.model.parameters(), *self.model.buffers())
        # PyTorch's count of the changes of a tensor in place: a digest takes too long.
        weights = [(tensor.data_ptr(), tensor._version) for tensor in tensors]
        if weights != self._weights:
            self._weights, self._statistics = weights, {}
        return self._statistics

    def _keep_statistics(self, arch: Arch, net: BaseModel) -> None:
        """Keeps what a network's BN layers have measured, and lets go of the oldest."""
        self._known_statistics().pop(arch, None)
        self._statistics[arch] = dict(net.named_buffers())
        size = sum(tensor.nbytes for tensor in self._statistics[arch].values())
        while size * len(self._statistics) > _MOST_STATISTICS_BYTES and len(self._statistics) > 1:
            del self._statistics[next(iter(self._statistics))]

    @property
    def _used(self) -> list[Images]:
        return [self._images, *([self._calibration] if self.bn == 'recalibrated' else [])]

    def prepare(self, resolution: int) -> int:
        """Reads the images of a resolution into memory or onto the disk, if they are kept there.

        Returns:
            Bytes of memory that they take.
        """
        return sum(images.prepare(resolution) for images in self._used)

    def prepare_together(self, resolution: int, ranks: Communicator) -> None:
        """Makes the images of a resolution, if they are kept on the disk; each rank its share.

        All ranks call it at the same time.

        Raises:
            UsageError: An image cannot be decoded, or is of a kind that cannot be kept.
        """
        for images in self._used:
            images.store(resolution, ranks)

    def _raw(self, arch: Arch, side: str) -> BaseModel:
        torch.set_num_threads(self.threads)
        net = self.model.extract(arch, side).to(next(self.model.parameters()).device)
        if self.channels_last is not None:
            net.backbone.channels_last = self.channels_last
        if self.channels_last:
            net.to(memory_format=torch.channels_last)
        return net

    def _precision(self) -> AbstractContextManager[object]:
        if self.amp is None:
            return nullcontext()
        device = next(self.model.parameters()).device.type
        return torch.autocast(device, _AMP[self.amp])

    def tally(self, needed: Fraction | None) -> Tally:
        """What counts the right answers of one network."""
        return RightAnswers(len(self._images), needed)

    def evaluate(self, arch: Arch, needed: Fraction | None = None) -> Score | None:
        """Counts the images that a subnet gets right.

        Args:
            arch: The subnet.
            needed: The score that is of interest at least; by default any.

        Returns:
            The score; or None, once so many images are wrong that it is below `needed`.

        Raises:
            EvaluationError: This network cannot be scored: memory is out, or its logits are not
                finite.
            OSError: Images cannot be read.
            ValueError: The Arch is not in the super-supernet's space.
        """
        with out_of_memory_is_of_the_candidate():
            (outcome,) = self._pass([arch], [needed])
        if isinstance(outcome, EvaluationError):
            raise outcome
        return outcome

    def evaluate_together(
        self, archs: Sequence[Arch], needed: Sequence[Fraction | None]
    ) -> list[Score | EvaluationError | None]:
        """Scores subnets of one resolution in one pass over the images, as :meth:`evaluate`.

        Args:
            archs: The subnets.
            needed: Of each the score that is of interest at least; None for any.

        Returns:
            Of each what :meth:`evaluate` returns or raises. What runs out of memory beside the
            others is tried again alone.

        Raises:
            OSError: Images cannot be read.
            ValueError: An Arch is not in the super-supernet's space, or has another resolution.
        """
        if len({arch.resolution for arch in archs}) > 1:
            raise ValueError('networks that share a pass must have one resolution')
        try:
            with out_of_memory_is_of_the_candidate():
                outcomes = self._pass(archs, needed)
        except OutOfMemoryError as error:
            outcomes = [error.with_traceback(None)] * len(archs)
        for index, outcome in enumerate(outcomes):
            if isinstance(outcome, OutOfMemoryError) and len(archs) > 1:
                (outcomes[index],) = self.evaluate_together([archs[index]], [needed[index]])
        return outcomes

    def _pass(
        self, archs: Sequence[Arch], needed: Sequence[Fraction | None]
    ) -> list[Score | EvaluationError | None]:
        candidates = [
            Candidate(arch, self.tally(bound)) for arch, bound in zip(archs, needed, strict=True)
        ]
        with self._precision():
            self._make_ready(candidates)
            self._score(candidates)
        return [candidate.outcome for candidate in candidates]

    def _make_ready(self, candidates: Sequence[Candidate]) -> None:
        """Extracts networks, and gives them the statistics that they are scored with."""

        def extract(candidate: Candidate) -> None:
            candidate.nets = [self._raw(candidate.arch, side) for side in self.sides]
            if self.bn == 'recalibrated':
                parts = map(self.normalised_part, candidate.nets)
                candidate.statistics = [Recalibration(part) for part in parts]

        def see(candidate: Candidate, inputs: torch.Tensor) -> None:
            for one in candidate.statistics:
                one.see(inputs)

        def finish(candidate: Candidate) -> None:
            for one in candidate.statistics:
                one.finish()
            candidate.statistics = []
            self._keep_statistics(candidate.arch, candidate.nets[0])

        each(candidates, extract)
        if self.bn == 'recalibrated' and not are_decided(candidates):
            for inputs, _ in self._calibration.batches(candidates[0].arch.resolution):
                each(candidates, see, inputs)
            each(candidates, finish)
        for candidate in candidates:
            for net in candidate.nets:
                net.eval()
                if self.bn == 'batch':
                    for module in net.modules():
                        if isinstance(module, _BatchNorm):
                            module.train()

    @torch.inference_mode()
    def _score(self, candidates: Sequence[Candidate]) -> None:
        """Decides all candidates."""
        total, seen = len(self._images), 0

        def drop(candidate: Candidate) -> None:
            if candidate.tally.is_lost(seen):
                self.images_saved += total - seen
                candidate.decide(None)

        def count(candidate: Candidate, inputs: torch.Tensor, targets: Targets) -> None:
            candidate.tally.count(candidate.nets, inputs, targets)
            self.images_seen += len(inputs)

        if are_decided(candidates):
            return
        for inputs, targets in self._images.batches(candidates[0].arch.resolution):
            each(candidates, drop)
            if are_decided(candidates):
                return
            each(candidates, count, inputs, targets)
            seen += len(inputs)
        each(candidates, lambda candidate: candidate.decide(candidate.tally.score()))
