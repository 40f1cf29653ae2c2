"""A reference for `step_slices` that steps whole parameters."""

import torch

from mmscale.models.backbones import index_of

OPTIMIZERS = {
    'SGD': dict(lr=0.1, momentum=0.9, weight_decay=0.05),
    'nesterov': dict(lr=0.1, momentum=0.9, weight_decay=0.05, nesterov=True, foreach=False),
    'AdamW': dict(lr=0.01, weight_decay=0.1, amsgrad=True),
    'Adagrad': dict(lr=0.01),
}


def make_optimizer(name, parameters):
    cls = torch.optim.SGD if name == 'nesterov' else getattr(torch.optim, name)
    return cls(parameters, **OPTIMIZERS[name])


def element_state(optimizer, parameter):
    """What an optimizer keeps for every element of a parameter."""
    return {
        key: value
        for key, value in optimizer.state.get(parameter, {}).items()
        if torch.is_tensor(value) and value.shape == parameter.shape
    }


def shared_parameters(model):
    """The parameters of which subnets use parts, by the names that their slices have."""
    found = dict(model.backbone.named_parameters())
    if model.shares_head:
        head = model.head.named_parameters()
        found |= {f'classifier.head.{name}': parameter for name, parameter in head}
    return found


def snapshot(model, optimizer):
    """Shared parameters and what an optimizer keeps for their every element, by name."""
    return {
        name: (
            parameter.detach().clone(),
            {key: value.clone() for key, value in element_state(optimizer, parameter).items()},
        )
        for name, parameter in shared_parameters(model).items()
    }


def masks(model, used):
    """Which elements of the shared parameters lie in used slices, by name."""
    found = {}
    for name, parameter in shared_parameters(model).items():
        mask = torch.zeros(parameter.shape, dtype=torch.bool)
        for part in used.get(name, ()):
            mask[index_of(part.region)] = True
        found[name] = mask
    return found


class WholeUpdate:
    """A reference of its own: steps whole parameters, then puts back what was not used."""

    def __init__(self, model, optimizer):
        self.model, self.optimizer = model, optimizer
        self.used = masks(model, {})

    def backward(self, batch, draw, iteration, scale=1.0):
        self.model.set_draw(draw, iteration)
        data = self.model.data_preprocessor(batch, True)
        # Gradients flow to whole parameters; the slices are only told.
        with self.model.backbone.slices(), torch.random.fork_rng():
            statistics = {k: b.clone() for k, b in self.model.named_buffers()}
            self.model.subnet_losses(data['inputs'], data['data_samples'])
        for key, buffer in self.model.named_buffers():
            buffer.copy_(statistics[key])
        for name, mask in masks(self.model, self.model.backbone.used_slices).items():
            self.used[name] |= mask
        gradients = [p.grad for p in self.model.parameters()]
        self.model.backbone.forget_slices()
        for parameter, gradient in zip(self.model.parameters(), gradients, strict=True):
            parameter.grad = gradient
        losses = self.model.subnet_losses(data['inputs'], data['data_samples'])
        (self.model.parse_losses(losses)[0] * scale).backward()

    @torch.no_grad()
    def step(self):
        before = snapshot(self.model, self.optimizer)
        self.optimizer.step()
        for name, parameter in shared_parameters(self.model).items():
            outside = ~self.used[name]
            weights, state = before[name]
            parameter[outside] = weights[outside]
            for key, value in element_state(self.optimizer, parameter).items():
                value[outside] = state.get(key, torch.zeros_like(value))[outside]
        self.optimizer.zero_grad()
        self.used = masks(self.model, {})
