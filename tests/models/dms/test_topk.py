"""The operator against its formula, its closed-form gradient and finite differences."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmscale.models import DifferentiableTopK
from mmscale.models.dms.topk import TopKStack


def gate_of(n, ratio, importance=None, **kwargs):
    gate = DifferentiableTopK(n, **kwargs).double()
    gate.pruning_ratio.data.fill_(ratio)
    if importance is not None:
        gate.importance.copy_(torch.as_tensor(importance, dtype=torch.double))
    return gate


def test_formula():
    gate = gate_of(4, 0.3, [3.0, 1.0, 2.0, 8.0])
    expected = [1 / (1 + torch.tensor(-4 * (r / 4 - 0.3)).exp()) for r in (2, 0, 1, 3)]
    torch.testing.assert_close(gate(), torch.tensor(expected).double(), rtol=1e-6, atol=0)


@given(
    st.lists(st.floats(0, 9), min_size=1, max_size=12),
    st.floats(0.02, 0.98),
    st.sampled_from([None, 7.0, 40.0]),
    st.integers(1, 3),
)
def test_gradient(importance, ratio, hardness, divisor):
    n = len(importance)
    gate = gate_of(n, ratio, importance, hardness=hardness, divisor=divisor)
    mask = gate()
    incoming = torch.linspace(-1, 2, n).double()
    (mask * incoming).sum().backward()
    closed_form = -(gate.hardness * mask * (1 - mask) * incoming).sum()
    torch.testing.assert_close(gate.pruning_ratio.grad, closed_form.detach())
    values = []
    for step in (1e-6, -1e-6):
        other = copy.deepcopy(gate)
        other.pruning_ratio.data += step
        values.append((other() * incoming).sum().item())
    difference = (values[0] - values[1]) / 2e-6
    assert gate.pruning_ratio.grad.item() == pytest.approx(difference, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize('n', [2, 5, 64])
@pytest.mark.parametrize('ratio', [0.0, 0.5])
def test_first_step_has_a_gradient(n, ratio):
    gate = gate_of(n, ratio)
    gate().sum().backward()
    assert gate.pruning_ratio.grad.item() < -0.01


def test_mass_follows_the_ratio():
    """In the interior one element's worth of ratio takes one element's worth of mask."""
    gate = gate_of(256, 0.5)
    mask = gate()
    mask.sum().backward()
    assert gate.pruning_ratio.grad.item() == pytest.approx(-256, rel=1e-3)
    assert ((mask > 0.05) & (mask < 0.95)).sum() <= 6


@given(st.integers(1, 60), st.integers(0, 60), st.integers(1, 9), st.integers(0, 3), st.randoms())
def test_hard_count(n, dropped, divisor, minimum, random):
    importance = [random.random() for _ in range(n)]
    gate = gate_of(n, 0.0, importance, divisor=divisor, minimum=min(minimum, n))
    dropped = min(dropped, gate.elements)
    gate.pruning_ratio.data.fill_((dropped - 0.5) / gate.elements if dropped else 0)
    gate.clamp()
    kept = gate.keep_mask()
    runs = [kept[start : start + divisor] for start in range(0, n, divisor)]
    assert all(run.all() or not run.any() for run in runs)
    assert sum(bool(run.all()) for run in runs) == gate.elements - min(
        dropped, gate.elements - gate.minimum
    )
    assert gate.keep_count == kept.sum() == len(gate.keep_indices)
    soft = gate() >= 0.5
    assert (kept == soft).all() or kept.sum() > soft.sum()
    values = [sum(importance[i : i + divisor]) for i in range(0, n, divisor)]
    if divisor == 1 and 0 < kept.sum() < n:
        lost = max(v for v, run in zip(values, runs, strict=True) if not run.any())
        assert min(v for v, run in zip(values, runs, strict=True) if run.all()) >= lost


@given(st.lists(st.floats(0, 1e3), min_size=2, max_size=20, unique=True), st.floats(0, 1))
def test_only_the_order_of_importance_matters(importance, ratio):
    gate = gate_of(len(importance), ratio, importance)
    other = gate_of(len(importance), ratio, [7 * value + 1e4 for value in importance])
    order = sorted(range(len(importance)), key=lambda i: 7 * importance[i] + 1e4)
    if len({7 * value + 1e4 for value in importance}) == len(importance):
        torch.testing.assert_close(gate(), other())
        assert gate()[order].diff().ge(0).all()


def test_ties_and_permutation():
    gate = gate_of(3, 0.4)
    assert gate()[0] < gate()[1] < gate()[2]
    mask = gate_of(3, 0.4, [2.0, 5.0, 1.0])()
    assert torch.equal(mask[[2, 0, 1]], gate_of(3, 0.4, [1.0, 2.0, 5.0])())


def test_normalisation():
    importance = [0.01, 0.5, 0.03, 0.21]
    for normalise, places in (
        ('rank', [0, 3 / 4, 1 / 4, 2 / 4]),
        ('minmax', [0, 1, 0.02 / 0.49, 0.2 / 0.49]),
        ('none', importance),
    ):
        gate = gate_of(4, 0.2, importance, normalise=normalise)
        expected = torch.sigmoid(4 * (torch.tensor(places).double() - 0.2))
        torch.testing.assert_close(gate(), expected, rtol=1e-6, atol=1e-6)
        kept = gate.keep_mask()
        assert torch.equal(kept, gate() >= 0.5)
        gate.pruning_ratio.data.copy_(gate.ratio_of_one_more())
        assert gate.keep_count == kept.sum() + 1
    assert gate_of(3, 0.0, normalise='minmax')().tolist() == [0.5, 0.5, 0.5]


def test_importance_is_a_moving_average():
    gradient = torch.tensor([1.0, -2.0, 4.0]).double()
    mask = torch.tensor([0.5, 0.5, 1.0]).double()
    for kind, value in (
        ('taylor', (mask * gradient) ** 2),
        ('snip', (mask * gradient).abs()),
        ('fisher', gradient**2),
    ):
        gate = DifferentiableTopK(3, importance=kind).double()
        gate.update_importance(gradient, mask)
        gate.update_importance(2 * gradient, mask)
        power = 1 if kind == 'snip' else 2
        torch.testing.assert_close(gate.importance, 0.01 * value * (0.99 + 2**power))
        before = gate.importance.clone()
        gate.update_importance(torch.tensor([1.0, float('nan'), 1.0]).double(), mask)
        assert torch.equal(gate.importance, before)
    index = DifferentiableTopK(3, importance='index')
    index.update_importance(gradient)
    assert index.importance.tolist() == [2, 1, 0]
    weights = DifferentiableTopK(3, importance='l1')
    weights.set_importance(torch.tensor([4.0, 2.0, 3.0]))
    assert weights.ranks().tolist() == [2, 0, 1]


def test_hard_mask_is_frozen_and_saved():
    gate = DifferentiableTopK(4)
    gate.importance.copy_(torch.tensor([4.0, 1.0, 2.0, 3.0]))
    gate.pruning_ratio.data.fill_(0.4)
    gate.harden()
    resumed = DifferentiableTopK(4)
    resumed.load_state_dict(gate.state_dict())
    for each in (gate, resumed):
        each.pruning_ratio.data.fill_(0.9)
        each.update_importance(torch.ones(4))
        each.set_importance(torch.arange(4.0))
        assert each().tolist() == [1, 0, 0, 1]
        assert each.keep_indices.tolist() == [0, 3]
        each().sum().backward()
        assert each.pruning_ratio.grad == 0


def test_minimum():
    gate = DifferentiableTopK(5, minimum=2)
    gate.pruning_ratio.data.fill_(1.0)
    assert gate.keep_count == 2
    gate.clamp()
    assert gate.pruning_ratio.item() == pytest.approx(0.6)
    depth = DifferentiableTopK(3, hardness=12, minimum=0)
    depth.pruning_ratio.data.fill_(1.5)
    depth.clamp()
    assert depth.pruning_ratio == 1
    assert depth.keep_count == 0


def test_bad_arguments(refuses):
    refuses(DifferentiableTopK, n=[0, True])
    refuses(
        partial(DifferentiableTopK, 4),
        minimum=[5],
        importance=['l2'],
        normalise=['max'],
        decay=[1],
        hardness=[0],
        divisor=[0],
    )


@pytest.mark.parametrize(
    'settings',
    [dict(n=1), dict(n=6, divisor=8), dict(n=5, minimum=5), dict(n=9, divisor=4, minimum=9)],
)
def test_what_nothing_of_can_go_is_whole_from_the_start(settings):
    gate = DifferentiableTopK(**settings)
    assert gate().tolist() == [1.0] * gate.n == gate.keep_mask().tolist()
    gate.pruning_ratio.data.fill_(0.9)
    gate.clamp()
    assert gate().tolist() == [1.0] * gate.n == TopKStack([gate])().tolist()
    # One block alone can go.
    assert DifferentiableTopK(1, minimum=0)().item() < 1


@pytest.mark.parametrize('ratio', [0.0, 0.31, 0.6, 0.9])
def test_ratios_of_one_more_and_one_less(ratio):
    gate = gate_of(7, ratio, [3, 1, 4, 1, 5, 9, 2], minimum=0, midpoint=True)
    before = gate.keep_count
    for neighbour, step in ((gate.ratio_of_one_more(), 1), (gate.ratio_of_one_less(), -1)):
        other = copy.deepcopy(gate)
        other.pruning_ratio.data.copy_(neighbour)
        assert other.keep_count == min(7, max(0, before + step))
    for _ in range(7):
        gate.pruning_ratio.data.copy_(gate.ratio_of_one_less())
    assert gate.keep_count == 0


def test_slopes_of_a_stack_are_those_of_autograd():
    gates = [
        gate_of(7, 0.3),
        gate_of(4, 0.5, hardness=16.0, midpoint=True),
        gate_of(9, 0.2, divisor=2),
    ]
    stack = TopKStack(gates)
    masks = stack()
    gradients = torch.linspace(-1, 2, masks.numel()).double()
    (masks * gradients).sum().backward()
    expected = torch.stack([gate.pruning_ratio.grad for gate in gates])
    torch.testing.assert_close(stack.slopes(gradients, masks.detach()), expected)


@pytest.mark.parametrize('others', [{}, {'divisor': 4}, {'normalise': 'minmax'}])
def test_a_stack_has_the_masks_of_its_gates(others):
    generator = torch.Generator().manual_seed(0)
    gates = [
        DifferentiableTopK(7),
        DifferentiableTopK(1),
        DifferentiableTopK(3, hardness=12.0, midpoint=True, minimum=0),
        DifferentiableTopK(30, **others),
        DifferentiableTopK(5, importance='index'),
    ]
    for number, gate in enumerate(gates):
        # Some are equal: ties go by index.
        gate.importance.copy_(torch.randint(5, (gate.n,), generator=generator))
        gate.pruning_ratio.data.fill_(0.2 * number)
    gates[0].harden()
    stack = TopKStack(gates)
    weights = torch.rand(sum(stack.sizes), generator=generator)
    packed = stack()
    # Sigmoid may differ in the last bit with the place in a vector.
    expected = torch.cat([gate() for gate in gates])
    torch.testing.assert_close(packed, expected, rtol=1e-6, atol=1e-7)
    assert torch.equal(packed >= 0.5, expected >= 0.5)
    (packed @ weights).backward()
    found = [gate.pruning_ratio.grad.clone() for gate in gates]
    for gate, part in zip(gates, weights.split(stack.sizes), strict=True):
        gate.pruning_ratio.grad = None
        (gate() @ part).backward()
    for gate, gradient in zip(gates, found, strict=True):
        torch.testing.assert_close(gradient, gate.pruning_ratio.grad)


@pytest.mark.parametrize('kind', ['taylor', 'snip', 'fisher', 'index'])
def test_a_stack_has_the_importances_of_its_gates(kind):
    torch.manual_seed(0)
    gates = [DifferentiableTopK(n, importance=kind, decay=0.9) for n in (3, 1, 4, 2, 5)]
    for gate in gates:
        gate.importance.uniform_(0.1, 1)
    gates[1].harden()
    twins = copy.deepcopy(gates)
    masks = [gate().detach() for gate in gates]
    gradients = [torch.randn(gate.n) for gate in gates]
    gradients[2][1] = float('inf')
    taken = [True, True, True, False, True]
    TopKStack(gates).update_importance(torch.cat(gradients), torch.cat(masks), taken)
    for number, twin in enumerate(twins):
        before = twin.importance.clone()
        if taken[number]:
            twin.update_importance(gradients[number], masks[number])
        assert torch.equal(gates[number].importance, twin.importance)
        moves = kind != 'index' and number in (0, 4)
        assert torch.equal(twin.importance, before) != moves


def test_a_stack_clamps_as_its_gates_do():
    gates = [DifferentiableTopK(n, minimum=min(n, 2), divisor=2) for n in (1, 3, 8, 8, 8)]
    for gate, ratio in zip(gates, (0.5, 1.5, -0.1, 0.4, float('nan')), strict=True):
        gate.pruning_ratio.data.fill_(ratio)
    twins = copy.deepcopy(gates)
    TopKStack(gates).clamp()
    for twin in twins:
        twin.clamp()
    found, expected = ([gate.pruning_ratio.item() for gate in part] for part in (gates, twins))
    np.testing.assert_array_equal(found, expected)
    assert found[:4] == pytest.approx([0, 0.5, 0, 0.4])


def test_a_stack_averages_each_gate_in_its_own_way():
    settings = (
        dict(n=3, importance='index'),
        dict(n=4, decay=0.5),
        dict(n=2, importance='snip'),
        dict(n=5),
    )
    gates = [DifferentiableTopK(**options) for options in settings]
    alone = copy.deepcopy(gates)
    stack = TopKStack(gates)
    gradients = torch.linspace(-1, 1, sum(stack.sizes))
    for _ in range(2):
        stack.update_importance(gradients, stack().detach(), [True] * 4)
        for gate, part in zip(alone, gradients.split(stack.sizes), strict=True):
            gate.update_importance(part)
    for one, other in zip(gates, alone, strict=True):
        torch.testing.assert_close(one.importance, other.importance)
    assert gates[0].importance.tolist() == [2, 1, 0]
