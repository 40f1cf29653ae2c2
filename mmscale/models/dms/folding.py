"""Norm layers that can take over the masks of the layers which they feed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from mmscale.models.dms.layers import copy_for_inference

# What only asks for the form of a tensor.
_QUESTIONS = {
    torch.Tensor.dim,
    torch.Tensor.size,
    torch.Tensor.is_floating_point,
    *(
        getattr(torch.Tensor, name).__get__
        for name in ('shape', 'ndim', 'dtype', 'device', 'requires_grad', 'is_cuda')
    ),
}


class _Uses(TorchFunctionMode):
    """Who uses the outputs of norm layers: consumers by name, everything else as None."""

    def __init__(self) -> None:
        super().__init__()
        # Outputs are held, so that no other tensor gets the same id.
        self.outputs: dict[int, tuple[str, torch.Tensor]] = {}
        self.users: dict[str, set[str | None]] = defaultdict(set)
        self.feeders: dict[str, set[str | None]] = defaultdict(set)
        self.running: str | None = None

    def source(self, tensor: Any) -> str | None:
        """The norm layer that a tensor is the output of."""
        return self.outputs.get(id(tensor), (None,))[0]

    def enter(self, name: str, args: tuple) -> None:
        """A consumer starts to run."""
        self.running = name
        self.feeders[name].add(self.source(args[0]) if len(args) == 1 else None)

    def leave(self) -> None:
        """A consumer has run."""
        self.running = None

    def add_output(self, name: str, output: Any) -> None:
        """A norm layer has run."""
        if isinstance(output, torch.Tensor):
            self.outputs[id(output)] = name, output

    def note(self, value: Any) -> None:
        """Something is used by what is running."""
        for leaf in tree_leaves(value):
            source = self.source(leaf)
            if source is not None:
                self.users[source].add(self.running)

    def __torch_function__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function not in _QUESTIONS:
            self.note((args, kwargs))
        return function(*args, **kwargs)


@torch.no_grad()
def fed_alone(
    model: nn.Module,
    inputs: Sequence[torch.Tensor],
    norms: Collection[str],
    consumers: Collection[str],
) -> dict[str, tuple[str, ...]]:
    """Norm layers whose outputs go to linear layers that nothing else feeds, and these layers.

    Args:
        model: Any model; it is left as it is.
        inputs: Positional arguments of one forward pass.
        norms: Names of norm layers.
        consumers: Names of layers whose inputs are asked about.
    """
    uses = _Uses()
    twin = copy_for_inference(model)
    for name in consumers:
        layer = twin.get_submodule(name)
        layer.register_forward_pre_hook(lambda _, args, name=name: uses.enter(name, args))
        layer.register_forward_hook(lambda *_: uses.leave())
    for name in norms:
        twin.get_submodule(name).register_forward_hook(
            lambda _module, _args, output, name=name: uses.add_output(name, output)
        )
    with uses:
        result = twin(*inputs)
    uses.note(result)
    return {
        name: tuple(sorted(users))
        for name, users in uses.users.items()
        if None not in users and all(uses.feeders[user] == {name} for user in users)
    }
