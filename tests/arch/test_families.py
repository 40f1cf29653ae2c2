"""Families by name and by parameters, against the numbers that were published with them."""

import json

import pytest

from mmscale.arch import (
    Arch,
    efficientnet,
    get_arch,
    mobilenet_v2,
    mobilenet_v3,
    preset_name,
    preset_names,
    regnet,
    resnet,
)
from mmscale.arch.families import make_divisible
from mmscale.cost import count

# Millions of params and of acts (model zoo of pycls) of the RegNets that no golden row covers.
REGNETS = {
    'RegNetX-6.4GF': ('26.2', '16.4'),
    'RegNetY-600MF': ('6.1', '4.3'),
    'RegNetY-1.6GF': ('11.2', '8.0'),
    'RegNetY-12GF': ('51.8', '21.4'),
}

# Params of torchvision's models of these names.
PARAMS = {
    'ResNet-18': 11_689_512,
    'ResNet-34': 21_797_672,
    'ResNet-50': 25_557_032,
    'ResNet-101': 44_549_160,
    'ResNet-152': 60_192_808,
    'ResNeXt-50-32x4d': 25_028_904,
    'ResNeXt-101-32x8d': 88_791_336,
    'MobileNetV2': 3_504_872,
    'MobileNetV3-Large': 5_483_032,
    'MobileNetV3-Small': 2_542_856,
    'EfficientNet-B0': 5_288_548,
    'EfficientNet-B3': 12_233_232,
    'EfficientNet-B4': 19_341_616,
    'EfficientNet-B6': 43_040_704,
}

# Millions of params, as published with the code of EfficientNet-Lite.
LITE_PARAMS = ('4.7', '5.4', '6.1', '8.2', '13.0')


def test_regnets_cost_what_was_published():
    for name, published in REGNETS.items():
        cost = count(get_arch(name))
        assert (f'{cost.params / 1e6:.1f}', f'{cost.acts / 1e6:.1f}') == published
        size = name.partition('-')[2]
        flops = float(size[:-2]) * (1e6 if size.endswith('MF') else 1e9)
        assert cost.flops == pytest.approx(flops, rel=0.02)


def test_params_are_those_of_torchvision():
    assert {name: count(get_arch(name)).params for name in PARAMS} == PARAMS


def test_lite_params_and_unscaled_ends():
    for index, params in enumerate(LITE_PARAMS):
        arch = get_arch(f'EfficientNet-Lite{index}')
        assert f'{count(arch).params / 1e6:.1f}' == params
        assert (arch.stem.out_channels, arch.head.channels) == (32, 1280)
        assert (arch.depths[0], arch.depths[-1]) == (1, 1)
        assert all(block.se is None and block.act == 'relu6' for block in arch.blocks)


def test_mobilenets_flops_are_the_papers():
    # arXiv 1801.04381, Table 4; arXiv 1905.02244, Table 3 (56 M for Small; 219 M for Large).
    assert f'{count(get_arch("MobileNetV2")).flops / 1e6:.0f}' == '301'
    assert f'{count(get_arch("MobileNetV3-Small")).flops / 1e6:.0f}' == '57'
    assert count(get_arch('MobileNetV3-Large')).flops == pytest.approx(219e6, rel=0.02)


def test_strides_and_stages_of_every_name():
    for name in preset_names():
        arch = get_arch(name)
        assert arch.strides[-1] == 32, name
        assert arch.head.num_classes == 1000
        assert sorted(arch.strides) == list(arch.strides)


def test_parameters_make_the_named_networks():
    z = dict(depth=21, w0=16, wa=10.7, wm=2.51, group_width=4)
    assert regnet('z', **z) == get_arch('RegNetZ-500MF')
    assert regnet('z', **z, bottleneck_ratio=4, se_ratio=0.25, head_channels=1000) == regnet(
        'z', **z
    )
    assert get_arch({'family': 'regnet', 'kind': 'z', **z}) == regnet('z', **z)
    assert get_arch({'family': 'efficientnet', 'width': 1.1, 'depth': 1.2, 'resolution': 260}) == (
        get_arch('EfficientNet-B2')
    )
    assert resnet(50, groups=32, base_width=4) == get_arch('ResNeXt-50')
    assert mobilenet_v3() == get_arch('MobileNetV3-Large')
    assert mobilenet_v2(num_classes=10).head.num_classes == 10


def test_a_file_may_hold_the_parameters_of_a_family(tmp_path):
    path = tmp_path / 'net.json'
    parameters = dict(family='regnet', kind='y', depth=13, w0=24, wa=36.44, wm=2.49, group_width=8)
    path.write_text(json.dumps(parameters), encoding='utf-8')
    assert get_arch(path) == get_arch('RegNetY-200MF')
    path.write_text(json.dumps({**parameters, 'w0': 25}), encoding='utf-8')
    with pytest.raises(ValueError, match=r'net\.json: regnet: w0=25 must be a multiple of 8'):
        get_arch(path)
    path.write_text('{', encoding='utf-8')
    with pytest.raises(ValueError, match='not a JSON file'):
        get_arch(path)


def test_regnet_parameters_change_what_they_say():
    plain = regnet('y', 13, 24, 36.44, 2.49, 8)
    assert plain == get_arch('RegNetY-200MF')
    without = regnet('y', 13, 24, 36.44, 2.49, 8, se_ratio=0)
    assert without == get_arch('RegNetX-200MF')
    narrow = regnet('x', 13, 24, 36.44, 2.49, 8, bottleneck_ratio=0.5)
    assert all(2 * b.hidden_channels == b.out_channels for b in narrow.blocks)
    headed = regnet('x', 13, 24, 36.44, 2.49, 8, head_channels=640, resolution=128, num_classes=0)
    assert (headed.head.channels, headed.resolution) == (640, 128)


def test_eps_and_padding_reach_every_layer():
    arch = efficientnet(padding='same', eps=1e-3)
    assert {block.padding for block in arch.blocks} == {arch.stem.padding} == {'same'}
    parts = (arch.stem, arch.head, *arch.blocks)
    assert {part.eps for part in parts} == {1e-3}
    for made in (regnet('y', 13, 24, 36.44, 2.49, 8, eps=1e-3), resnet(50, eps=1e-3)):
        assert {part.eps for part in (made.stem, made.head, *made.blocks)} == {1e-3}


def test_spellings():
    for spelling, name in {
        'regnety-400mf': 'RegNetY-400MF',
        'RegNetY-4GF': 'RegNetY-4.0GF',
        'regnetx_8.0gf': 'RegNetX-8.0GF',
        'REGNETZ-4.0GF': 'RegNetZ-4GF',
        'resnext-152': 'ResNeXt-152-32x4d',
        'SCALENET-S1-SEARCH': 'scalenet-s1-search',
    }.items():
        assert preset_name(spelling) == name
        assert name in preset_names()
        assert get_arch(spelling) is get_arch(name)


def test_unknown_names_offer_the_nearest():
    for name, near in {
        'RegNetY-5GF': 'RegNetY-',
        'mobilenet': 'MobileNetV2',
        'resnet51': 'ResNet-50',
        'xyz': 'presets are scalenet-s0',
    }.items():
        expected = f"arch='{name}' is neither a file nor a preset; .*{near}"
        with pytest.raises(ValueError, match=expected):
            get_arch(name)


def test_a_missing_file_is_told_as_such():
    with pytest.raises(ValueError, match=r"arch='archs/s0.json' is not a file"):
        get_arch('archs/s0.json')


def test_bad_parameters(refuses):
    good = dict(kind='x', depth=13, w0=24, wa=36, wm=2.5, group_width=8)
    refuses(
        lambda **bad: regnet(**{**good, **bad}),
        kind=['w', ['x']],
        depth=[0],
        w0=[20],  # no multiple of 8
        wa=[-1],
        wm=[1],
        group_width=[0],
        bottleneck_ratio=[1e-9, '4'],
        se_ratio=[-0.5],
    )
    refuses(efficientnet, width=[0, None], padding=['valid'])
    refuses(mobilenet_v3, size=['medium'])
    refuses(resnet, depth=[42])
    for bad, message in (
        (dict(family=['resnet']), r"family=\['resnet'\] is not one of"),
        (dict(family='resnet', depth=18, groups=32, base_width=4), 'depth=18 has basic blocks'),
        (dict(family='resnet', depth=50, bot_mul=1), 'arch: resnet: unknown key bot_mul; allowed'),
        (dict(family='regnet', kind='z', depth=21, w0=16), 'missing key wa, wm, group_width'),
    ):
        with pytest.raises(ValueError, match=message):
            get_arch(bad)


def test_make_divisible_never_takes_a_tenth_away():
    assert [make_divisible(c) for c in (3, 12, 17.6, 11, 100)] == [8, 16, 16, 16, 104]
    for channels in range(1, 500):
        assert make_divisible(channels) % 8 == 0
        assert make_divisible(channels) >= 0.9 * channels


def test_networks_survive_json():
    for name in preset_names():
        arch = get_arch(name)
        assert Arch.from_json(json.loads(json.dumps(arch.to_json()))) == arch
