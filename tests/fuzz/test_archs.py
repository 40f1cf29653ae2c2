"""Bad Archs, search spaces, scalings and runtime models."""

import json

import pytest
from small_inputs import SPACE

from mmscale.arch import Arch, Scaling, SearchSpace, get_arch
from mmscale.arch.rules import scaling_rule
from mmscale.cost import CostTable, LatencyModel, LatencySetting, count

FAMILIES = [
    dict(
        family='regnet', kind='y', depth=13, w0=24, wa=36.44, wm=2.49, group_width=8,
        bottleneck_ratio=1.0, se_ratio=0.25, head_channels=0, resolution=224,
    ),
    dict(family='efficientnet', width=1.1, depth=1.2, resolution=224),
    dict(family='resnet', depth=50, groups=32, base_width=4),
    dict(family='mobilenet_v3', size='large'),
]  # fmt: skip


@pytest.fixture
def arch():
    return SearchSpace(**SPACE).largest(1).to_json()


def use_arch(data):
    arch = Arch.from_json(data)
    assert Arch.from_json(json.loads(json.dumps(arch.to_json()))) == arch
    str(arch)
    count(arch)


def test_archs_as_data(fuzz, arch):
    fuzz(0.16, arch, use_arch)


def test_archs_as_files(fuzz, arch, inputs, unchanged):
    path = inputs / 'arch.json'

    def use(text):
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with unchanged(inputs):
            use_arch(get_arch(path).to_json())

    fuzz(0.1, arch, use, text=json.dumps)


@pytest.mark.parametrize('family', FAMILIES, ids=lambda family: family['family'])
def test_families(fuzz, family):
    fuzz(0.02, family, lambda data: use_arch(get_arch(data).to_json()))


def test_search_spaces(fuzz):
    def use(data):
        space = SearchSpace(**data)
        assert space.size > 0
        CostTable(space).cost(space.largest(0))

    fuzz(0.16, SPACE, use)


def test_scalings(fuzz):
    valid = dict(depth=1.2, width=1.3, resolution=1.4, group_width=1.0)
    fuzz(0.03, valid, lambda data: Scaling(**data).to_json())


def test_scaling_rules(fuzz):
    def use(data):
        rule = scaling_rule(data['strategy'], data['alpha'])
        rule.scaling(data['factor'])

    valid = dict(strategy='dWr', alpha=0.8, factor=4.0)
    fuzz(0.02, valid, lambda data: use({**dict.fromkeys(valid), **data}))


@pytest.fixture
def latency(inputs):
    archs = [SearchSpace(**SPACE).smallest(0), *map(SearchSpace(**SPACE).largest, (0, 1))]
    model = LatencyModel.fit(
        [count(arch) for arch in archs], [1.5, 2.5, 5.0], LatencySetting(device_name='one')
    )
    model.save(inputs / 'latency.json')
    return json.loads((inputs / 'latency.json').read_text())


def test_runtime_models(fuzz, latency, inputs, unchanged):
    def use(data):
        (inputs / 'latency.json').write_text(json.dumps(data))
        with unchanged(inputs):
            str(LatencyModel.load(inputs / 'latency.json').setting)

    fuzz(0.06, latency, use)


def test_runtime_models_as_texts(fuzz, latency, inputs, unchanged):
    def use(text):
        (inputs / 'latency.json').write_bytes(text if isinstance(text, bytes) else text.encode())
        with unchanged(inputs):
            LatencyModel.load(inputs / 'latency.json')

    fuzz(0.03, latency, use, text=json.dumps)
