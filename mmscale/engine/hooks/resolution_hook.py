"""InputResolutionHook: the pipelines' input size follows the backbone's Arch."""

from __future__ import annotations

from collections.abc import Iterator

from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmscale.datasets import ResolutionSampler
from mmscale.engine.train_data import TrainDataHook
from mmscale.engine.wrappers import is_stand_in, unwrapped_model
from mmscale.models import ArchNet
from mmscale.registry import HOOKS

# Where datasets keep what they wrap, and pipelines and transforms what they run.
_INSIDE = ('dataset', 'datasets', '_dataset', 'pipeline', 'transforms')


def _parts(part: object) -> Iterator[object]:
    """A dataset and all inside it: wrapped datasets, pipelines, transforms in transforms."""
    if isinstance(part, (list, tuple)):
        for item in part:
            yield from _parts(item)
        return
    yield part
    for name in _INSIDE:
        inside = getattr(part, '__dict__', {}).get(name)
        if inside is not None:
            yield from _parts(inside)


@HOOKS.register_module()
class InputResolutionHook(TrainDataHook):
    """Gives every transform with a ``resolution`` the resolution of the backbone's Arch.

    So a new scale is a child config that changes ``model.backbone`` alone. A transform that the
    config gives a ``resolution`` of its own keeps it.

    Raises:
        TypeError: The backbone is no ArchNet.
    """

    def _apply(self, runner: Runner, loader: DataLoader) -> None:
        model = unwrapped_model(runner)
        if is_stand_in(runner, model):
            return
        if not isinstance(model.backbone, ArchNet):
            raise TypeError(
                f'InputResolutionHook needs model.backbone.type=mmscale.ArchNet, got '
                f'{type(model.backbone).__name__}'
            )
        for part in _parts(loader.dataset):
            if getattr(part, 'resolution', 0) is None:
                part.resolution = model.backbone.resolution

    def _apply_to_test(self, runner: Runner, loader: DataLoader) -> None:
        self._apply(runner, loader)
        if isinstance(loader.sampler, ResolutionSampler):
            loader.sampler.batch_size = loader.batch_size
            loader.sampler.run_in_epochs(len(loader))

    def before_train(self, runner: Runner) -> None:
        """Sets the training pipeline."""
        super().before_train(runner)
        self._apply(runner, runner.train_dataloader)

    def before_val(self, runner: Runner) -> None:
        """Sets the validation pipeline."""
        self._apply_to_test(runner, runner.val_dataloader)

    def before_test(self, runner: Runner) -> None:
        """Sets the test pipeline."""
        self._apply_to_test(runner, runner.test_dataloader)
