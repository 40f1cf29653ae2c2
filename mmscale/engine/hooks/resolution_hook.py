"""InputResolutionHook: the pipelines' input size follows the backbone's Arch."""

from __future__ import annotations

from collections.abc import Iterator

from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import DataLoader, Dataset

from mmscale.datasets import ResolutionSampler
from mmscale.engine.wrappers import unwrapped_model
from mmscale.models import ArchNet
from mmscale.registry import HOOKS


def _transforms(dataset: Dataset) -> Iterator[object]:
    """Every transform of a dataset, wrappers and concatenations included."""
    for part in getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]:
        if part is not None:
            yield from _transforms(part)
    pipeline = getattr(dataset, 'pipeline', None)
    yield from getattr(pipeline, 'transforms', ())


@HOOKS.register_module()
class InputResolutionHook(Hook):
    """Gives every transform with a ``resolution`` the resolution of the backbone's Arch.

    So a new scale is a child config that changes ``model.backbone`` alone. A transform that the
    config gives a ``resolution`` of its own keeps it.
    """

    def _apply(self, runner: Runner, loader: DataLoader) -> None:
        model = unwrapped_model(runner)
        if not isinstance(model.backbone, ArchNet):
            raise TypeError(
                f'InputResolutionHook needs model.backbone.type=mmscale.ArchNet, got '
                f'{type(model.backbone).__name__}'
            )
        if isinstance(loader.sampler, ResolutionSampler):
            loader.sampler.batch_size = loader.batch_size
        for transform in _transforms(loader.dataset):
            if getattr(transform, 'resolution', 0) is None:
                transform.resolution = model.backbone.resolution

    def before_train(self, runner: Runner) -> None:
        """Sets the training pipeline."""
        self._apply(runner, runner.train_dataloader)

    def before_val(self, runner: Runner) -> None:
        """Sets the validation pipeline."""
        self._apply(runner, runner.val_dataloader)

    def before_test(self, runner: Runner) -> None:
        """Sets the test pipeline."""
        self._apply(runner, runner.test_dataloader)
