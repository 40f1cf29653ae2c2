"""A dataset wrapper that makes any pipeline a pure function of the sampler's draw."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset

from mmscale.datasets.draws import Draw, item_of
from mmscale.registry import DATASETS


@DATASETS.register_module()
class SeededDataset(Dataset):
    """Loads the items of any dataset at the resolution and with the random seed of each draw.

    Indexed with a :class:`~mmscale.datasets.Draw`, it sets the resolution that our transforms
    read, and seeds the global random generators around the whole item: stock transforms, too,
    become a function of the draw, in any process, and so does whatever wrappers inside it choose
    at random. Indexed with an integer, it is the dataset itself, all of whose attributes are its
    own. A data loader with a :class:`~mmscale.datasets.ResolutionSampler` needs none.

    Args:
        dataset: A dataset or wrapper, or its config.
        pipeline: Takes the place of the dataset's own pipeline.
    """

    def __init__(self, dataset: Dataset | dict, pipeline: list | None = None) -> None:
        if isinstance(dataset, dict):
            own = {} if pipeline is None else {'pipeline': pipeline}
            dataset = DATASETS.build({**dataset, **own})
        elif pipeline is not None:
            raise TypeError('SeededDataset: pipeline needs the config of a dataset, not a dataset')
        self.dataset = dataset

    def __getitem__(self, draw: Draw | int) -> Any:
        """The item of a draw, or of an integer, after the pipeline."""
        return item_of(self.dataset, draw) if isinstance(draw, Draw) else self.dataset[draw]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        # Not of special methods, which copying and pickling look for before there is a dataset.
        if name.startswith('__') or name == 'dataset':
            raise AttributeError(name)
        return getattr(self.dataset, name)

    @property
    def pipeline(self) -> Any:
        """Pipeline of the wrapped dataset."""
        return self.dataset.pipeline

    @pipeline.setter
    def pipeline(self, pipeline: Any) -> None:
        self.dataset.pipeline = pipeline
