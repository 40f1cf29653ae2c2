"""Several processes: SliceParallel for training, Ranks for searching."""

from __future__ import annotations

import json
from datetime import timedelta

import torch
from mmengine.dist import get_dist_info
from mmengine.optim import OptimWrapper
from torch import distributed, nn
from torch.optim import Optimizer

from mmscale.errors import UsageError
from mmscale.models import SuperNetTraining
from mmscale.registry import MODEL_WRAPPERS

# A rank may wait for another's evaluations; of a dead one the launcher tells.
_PATIENCE = timedelta(days=7)


@MODEL_WRAPPERS.register_module()
class SliceParallel(nn.Module):
    """Wraps a super-supernet's model for training on several processes.

    DistributedDataParallel fails when the subnet changes, and reduces every gradient whole with
    ``find_unused_parameters``. All ranks train the same subnet, so this wrapper packs the
    gradients of the used slices and averages them in one all-reduce per optimizer step. It needs
    no device ids and works with gloo and NCCL.

    Args:
        module: A :class:`mmscale.models.SuperNetClassifier` or ``SuperNetDetector``.

    Raises:
        TypeError: The module is of another kind.
        ValueError: The config sets ``sync_bn``, which would do nothing.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        if not isinstance(module, SuperNetTraining):
            raise TypeError(
                f'SliceParallel wraps a SuperNetClassifier or SuperNetDetector, got '
                f'{type(module).__name__}'
            )
        synchronised = any(isinstance(part, nn.SyncBatchNorm) for part in module.modules())
        if synchronised and not module.backbone.is_synchronised:
            raise UsageError(
                'sync_bn does not reach the subnets of a super-supernet: set '
                "model.backbone.norm_cfg=dict(type='SyncBN') instead"
            )
        self.module = module
        self._synchronised = False

    def forward(self, *args: object, **kwargs: object) -> object:
        """Calls the module."""
        return self.module(*args, **kwargs)

    def train_step(self, data: dict, optim_wrapper: OptimWrapper) -> dict[str, torch.Tensor]:
        """Trains the subnets of one iteration, on a batch of its own per rank."""
        if not self._synchronised:
            for tensor in self.module.state_dict().values():
                distributed.broadcast(tensor, 0)
            self._synchronised = True
        log_vars = self.module.backward_step(data, optim_wrapper)
        self.module.update_step(optim_wrapper, self.reduce_gradients)
        return log_vars

    def val_step(self, data: dict) -> list:
        """Predicts on a batch."""
        return self.module.val_step(data)

    def test_step(self, data: dict) -> list:
        """Predicts on a batch."""
        return self.module.test_step(data)

    @torch.no_grad()
    def reduce_gradients(self, optimizer: Optimizer) -> int:
        """Averages the gradients of what an optimizer is to step over all ranks.

        All ranks train the same subnets, so their optimizers hold the same slices in one order.

        Returns:
            Number of elements that were reduced.
        """
        gradients = [
            parameter.grad
            for group in optimizer.param_groups
            for parameter in group['params']
            if parameter.grad is not None
        ]
        packed = torch.cat([gradient.reshape(-1) for gradient in gradients])
        distributed.all_reduce(packed)
        packed /= distributed.get_world_size()
        for gradient, part in zip(
            gradients, packed.split([gradient.numel() for gradient in gradients]), strict=True
        ):
            gradient.copy_(part.view_as(gradient))
        return packed.numel()


class Ranks:
    """The processes of torch.distributed, for the search; one process is rank 0 of 1.

    They exchange text, on the CPU whatever evaluates, and a rank without work waits long enough
    for the others: the default groups give up after minutes.
    """

    def __init__(self) -> None:
        self.rank, self.world_size = get_dist_info()
        self._group = None
        if self.world_size > 1:
            self._group = distributed.new_group(timeout=_PATIENCE, backend='gloo')

    def gather(self, items: list[str]) -> list[list[str]]:
        """Waits for all ranks; gives each of them every rank's items."""
        if self._group is None:
            return [items]
        data = bytearray(json.dumps(items).encode())
        length = torch.tensor([len(data)])
        lengths = [torch.zeros_like(length) for _ in range(self.world_size)]
        distributed.all_gather(lengths, length, self._group)
        longest = int(max(lengths))
        padded = torch.frombuffer(data.ljust(longest), dtype=torch.uint8)
        parts = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.world_size)]
        distributed.all_gather(parts, padded, self._group)
        return [
            json.loads(part[: int(size)].numpy().tobytes())
            for part, size in zip(parts, lengths, strict=True)
        ]
