"""Latency measured by a fake clock, and the runtime model. No test looks at a real time."""

import itertools
import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mmscale.cost import Cost, Costs, LatencyModel, LatencySetting, measure_latency
from mmscale.cost.scaled import check_metric
from mmscale.errors import UsageError

SETTING = LatencySetting('cpu', 'a processor', threads=2, batch=8)


class FakeClock:
    """Each run takes the next of the given times, in milliseconds."""

    def __init__(self, *milliseconds):
        self.ticks = itertools.chain.from_iterable((0.0, ms / 1000) for ms in milliseconds)

    def __call__(self):
        return next(self.ticks)


class Recorder(nn.Module):
    """Notes how it is called."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 1)
        self.norm = nn.BatchNorm2d(2)
        self.calls = []

    def __deepcopy__(self, memo):
        twin = Recorder()
        twin.calls = self.calls
        return twin

    def train(self, mode=True):
        super().train(mode)  # and returns None, as mmpretrain's backbones do

    def forward(self, x):
        mode = 'inference' if torch.is_inference_mode_enabled() else 'grad'
        self.calls.append((tuple(x.shape), x.dtype, mode, self.training))
        return {'features': (self.norm(self.layer(x)),), 'size': 3}


def test_median_and_quartiles_of_the_timed_runs():
    net = Recorder()
    latency = measure_latency(
        net, (3, 8, 6), batch=4, warmup=2, repeats=5, clock=FakeClock(50, 10, 20, 1000, 30)
    )
    assert latency.median_ms == pytest.approx(30)
    assert (latency.low_ms, latency.high_ms) == (pytest.approx(20), pytest.approx(50))
    assert net.calls == [((4, 3, 8, 6), torch.float32, 'inference', False)] * 7
    setting = latency.setting
    assert (setting.batch, setting.dtype, setting.device) == (4, 'float32', 'cpu')
    assert setting.threads == torch.get_num_threads()
    assert setting.device_name


def test_network_is_left_as_it_is():
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    measure_latency(net, (3, 8, 8), dtype='bfloat16', warmup=0, repeats=1)
    measure_latency(net, (3, 8, 8), train=True, batch=2, warmup=0, repeats=2)
    assert net.training
    for key, value in net.state_dict().items():
        assert value.dtype == before[key].dtype
        assert torch.equal(value, before[key])
    assert all(parameter.grad is None for parameter in net.parameters())


def test_training_step_runs_backward_through_nested_outputs():
    net = Recorder()
    measure_latency(net, (3, 4, 4), train=True, batch=2, dtype='bfloat16', warmup=1, repeats=1)
    assert net.calls == [((2, 3, 4, 4), torch.float32, 'grad', True)] * 2


def test_half_precision_inference_computes_in_it():
    net = Recorder()
    measure_latency(net, (3, 4, 4), dtype='bfloat16', warmup=0, repeats=1)
    assert net.calls[0][1] == torch.bfloat16


def test_bad_settings_are_refused_before_anything_runs(refuses):
    net = Recorder()
    refuses(
        partial(measure_latency, net, (3, 4, 4)),
        device=['tpu'],
        dtype=['int8'],
        batch=[0],
        repeats=[0, 1.5],
        warmup=[-1],
    )
    assert net.calls == []


@pytest.mark.skipif(torch.cuda.is_available(), reason='needs a machine without a GPU')
def test_missing_gpu_is_named():
    with pytest.raises(ValueError, match='device=cuda: torch finds no GPU here'):
        measure_latency(Recorder(), (3, 4, 4), device='cuda')


def costs_of(*flops_and_acts):
    return [
        Cost(int(flops), 1000 + i, int(acts)) for i, (flops, acts) in enumerate(flops_and_acts)
    ]


NETWORKS = costs_of((4e8, 7e6), (8e8, 8e6), (1e9, 3e7), (4e9, 1e7), (3e9, 9e7))


@settings(max_examples=50, deadline=None)
@given(
    a=st.floats(0, 100),
    b=st.floats(1e-9, 1e-4),
    c=st.floats(1e-12, 1e-7),
)
def test_fit_recovers_the_model_that_made_the_times(a, b, c):
    times = [a + b * cost.acts + c * cost.flops for cost in NETWORKS]
    model = LatencyModel.fit(NETWORKS, times, SETTING)
    for cost, ms in zip(NETWORKS, times, strict=True):
        assert model.predict(cost) == pytest.approx(ms, rel=1e-6)
    assert model.error < 1e-6


def test_the_relative_errors_are_least():
    """Whoever changes a coefficient of a noisy fit makes the sum of their squares larger."""
    noise = np.random.default_rng(0).uniform(0.8, 1.25, len(NETWORKS))
    times = [
        n * (5 + 1e-6 * c.acts + 5e-9 * c.flops) for n, c in zip(noise, NETWORKS, strict=True)
    ]
    model = LatencyModel.fit(NETWORKS, times, SETTING)

    def squares(**changes):
        changed = replace(model, **changes)
        pairs = zip(NETWORKS, times, strict=True)
        return sum((changed.predict(cost) / ms - 1) ** 2 for cost, ms in pairs)

    for key in 'abc':
        value = getattr(model, key)
        assert value > 0
        for factor in (0.99, 1.01):
            assert squares(**{key: factor * value}) > squares()


def test_no_coefficient_is_negative_whatever_was_measured():
    generator = np.random.default_rng(0)
    for _ in range(50):
        times = generator.uniform(1, 100, len(NETWORKS))
        model = LatencyModel.fit(NETWORKS, times, SETTING)
        assert min(model.a, model.b, model.c) >= 0
    # Time falls as flops rise: the best non-negative slope is none.
    model = LatencyModel.fit(NETWORKS, [1e10 / cost.flops for cost in NETWORKS], SETTING)
    assert model.c == 0


def test_pearson_is_numpys_and_tells_what_time_follows():
    times = [cost.acts * 1e-6 for cost in NETWORKS]
    pearson = LatencyModel.fit(NETWORKS, times, SETTING).pearson
    assert pearson['acts'] == pytest.approx(1)
    for key in ('flops', 'params'):
        values = [getattr(cost, key) for cost in NETWORKS]
        assert pearson[key] == pytest.approx(np.corrcoef(values, times)[0, 1])
        assert pearson[key] < 0.95
    same = [Cost(cost.flops, 5, cost.acts) for cost in NETWORKS]
    assert LatencyModel.fit(same, times, SETTING).pearson['params'] == 0


def test_predicts_populations():
    model = LatencyModel.fit(NETWORKS, [1, 2, 5, 4, 9], SETTING)
    flops, params, acts = np.array([(c.flops, c.params, c.acts) for c in NETWORKS]).T
    assert model.predict(Costs(flops, params, acts)).tolist() == pytest.approx(
        [model.predict(cost) for cost in NETWORKS]
    )


def test_saved_model_is_read_back(tmp_path):
    names = ['one', 'two', 'three', 'four', 'five']
    model = LatencyModel.fit(NETWORKS, [1.25, 2.5, 5.0, 4.0, 9.5], SETTING, names)
    model.save(tmp_path / 'model.json')
    assert LatencyModel.load(tmp_path / 'model.json') == model
    # As it was saved before there were checksums.
    data = json.loads((tmp_path / 'model.json').read_text())
    del data['checksum']
    (tmp_path / 'model.json').write_text(json.dumps(data))
    assert LatencyModel.load(tmp_path / 'model.json') == model
    assert [network.name for network in model.networks] == names
    assert [path.name for path in tmp_path.iterdir()] == ['model.json']


def test_unusable_measurements_are_refused():
    for costs, times, message in (
        (NETWORKS[:2], [1, 2], '2 networks are measured, a fit needs 3'),
        (NETWORKS, [1, 2], '5 costs, 2 times and 5 names must be equally many'),
        (NETWORKS, [1, 2, 0, 4, 5], '2: ms=0.0 must be a number above 0'),
        (NETWORKS, [1, 2, float('nan'), 4, 5], '2: ms=nan must be a number above 0'),
        ([NETWORKS[0]] * 5, [1, 2, 3, 4, 5], 'needs 3 networks that differ in flops or acts'),
    ):
        with pytest.raises(ValueError, match=message):
            LatencyModel.fit(costs, times, SETTING)


def test_bad_files_are_refused(tmp_path):
    """What is wrong by itself is left to the fuzz tests."""
    path = tmp_path / 'model.json'
    LatencyModel.fit(NETWORKS, [1.25, 2.5, 5.0, 4.0, 9.5], SETTING).save(path)
    good = json.loads(path.read_text())
    for change, message in (
        ({'schema': 2}, 'schema=2 is not supported, expected 1'),
        ({'d': 1}, 'unknown key d; allowed are a, b, c'),
        ({'c': 1.0}, 'its checksum does not match'),
        ({'a': -1.0}, 'a=-1.0 must be a number in 0'),
        ({'networks': []}, 'its checksum does not match'),
        ({'pearson': {}}, 'pearson: missing key flops, params, acts'),
        ({'setting': {'device': 'tpu'}}, "setting: latency: device='tpu'"),
    ):
        path.write_text(json.dumps({**good, **change}))
        with pytest.raises(ValueError, match=message) as error:
            LatencyModel.load(path)
        assert str(error.value).startswith(str(path))


def test_a_correlation_has_an_interval_by_bootstrap():
    times = [2e-6 * network.acts * (1 + 0.2 * (-1) ** i) for i, network in enumerate(NETWORKS)]
    model = LatencyModel.fit(NETWORKS, times, SETTING)
    low, high = model.pearson_interval('acts')
    assert -1 <= low < model.pearson['acts'] < high <= 1
    assert (low, high) == model.pearson_interval('acts')
    # Scatter widens it, and exact proportion leaves none.
    exact = LatencyModel.fit(NETWORKS, [2e-6 * n.acts for n in NETWORKS], SETTING)
    assert exact.pearson_interval('acts') == pytest.approx((1, 1))
    assert model.pearson_interval('acts')[0] > model.pearson_interval('params')[0]
    same = [replace(network, params=7) for network in NETWORKS]
    assert LatencyModel.fit(same, times, SETTING).pearson_interval('params') is None
    with pytest.raises(ValueError, match="metric='ms' is not one of"):
        model.pearson_interval('ms')


def test_a_model_that_tells_no_sizes_apart_answers_no_budget():
    costs = [Cost(flops=n * 1000, params=1, acts=n * 10) for n in (1, 2, 3)]
    model = LatencyModel.fit(costs, [5.0, 5.0, 5.0], SETTING)
    with pytest.raises(UsageError, match=r'predicts 5 ms for every network.*more repeats'):
        check_metric('latency', model)
