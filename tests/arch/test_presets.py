"""The published family against numbers of the released code, and the digests of its files."""

import json
from pathlib import Path

import pytest

from mmscale.arch import Arch, Scaling, apply_scaling, get_arch, preset_name, preset_names
from mmscale.cost import count

FAMILY = json.loads(
    (Path(__file__).parents[1] / 'data' / 'scalenet_family.json').read_text(encoding='utf-8')
)
RETRAINED = [f'scalenet-s{j}' for j in range(6)]


@pytest.mark.parametrize('name', FAMILY['costs'])
def test_golden_costs(name):
    cost = count(get_arch(name))
    assert {'flops': cost.flops, 'params': cost.params} == FAMILY['costs'][name]


def test_pycls_convention_adds_bias_additions():
    assert count(get_arch('scalenet-s0-search'), 'pycls').flops == 354_943_448


@pytest.mark.parametrize('suffix', ['', '-search'])
def test_family_shapes(suffix):
    family = [get_arch(name + suffix) for name in RETRAINED]
    assert [arch.resolution for arch in family] == FAMILY['resolutions']
    assert [len(arch.blocks) for arch in family] == FAMILY['blocks']
    assert (family[1].stem.out_channels, *family[1].widths) == (34, 17, 34, 42, 84, 100, 200, 333)
    assert family[0].depths == (1, 1, 4, 2, 2, 3, 1)
    assert family[1].depths == (2, 2, 5, 3, 3, 4, 2)
    assert family[2].depths == family[3].depths == (2, 2, 6, 3, 3, 5, 2)
    assert {arch.head.channels for arch in family} == {1280}
    assert all(arch.strides == (2, 4, 8, 16, 16, 32, 32) for arch in family)


def test_family_flops_ratios():
    base, *scaled = [count(get_arch(name)).flops for name in RETRAINED]
    ratios = [f'{flops / base:.3g}' for flops in scaled]
    assert [float(ratio) for ratio in ratios] == [float(r) for r in FAMILY['flops_ratios']]


def test_inner_widths_follow_the_two_rules():
    search, retraining = get_arch('scalenet-s1-search'), get_arch('scalenet-s1')
    # Network stage 3, second block: 40 base channels, 42 scaled.
    assert search.stages[2][1].hidden_channels == 250  # ceil(6 * 40 * 1.04)
    assert search.stages[2][1].se.channels == 62  # 250 // 4
    assert retraining.stages[2][1].hidden_channels == 252  # 6 * 42
    assert retraining.stages[2][1].se.channels == 10  # 42 // 4


def test_extra_blocks_repeat_the_last_kernel():
    base = get_arch('scalenet-s0')
    for name in RETRAINED:
        for few, many in zip(base.stages, get_arch(name).stages, strict=True):
            kernels = [block.kernel for block in few]
            extra = len(many) - len(few)
            assert [block.kernel for block in many] == kernels + kernels[-1:] * extra
            assert all(block.stride == 1 for block in many[1:])
            assert all(block.residual == 'identity' for block in many[1:])


def test_retraining_rule_on_a_searched_base_model():
    searched = get_arch('scalenet-s0-search')
    assert apply_scaling(searched, Scaling(), 'retraining') == get_arch('scalenet-s0')
    assert apply_scaling(searched, Scaling(), 'search') == searched


def test_digests_are_those_of_files_already_written():
    assert {name: get_arch(name).digest for name in FAMILY['digests']} == FAMILY['digests']


def test_presets_are_distinct_and_found_in_any_case():
    archs = [get_arch(name) for name in preset_names()]
    assert len(set(archs)) == len(archs)
    assert get_arch('ScaleNet-S1-Search') == get_arch('scalenet-s1-search')


@pytest.mark.parametrize(
    ('name', 'preset'),
    [
        ('resnet50', 'ResNet-50'),
        ('resnet_18', 'ResNet-18'),
        ('resnet50.a1_in1k', 'ResNet-50'),
        ('resnext50_32x4d', 'ResNeXt-50-32x4d'),
        ('resnext101-32x8d', 'ResNeXt-101-32x8d'),
        ('resnext-50', 'ResNeXt-50-32x4d'),
        ('regnety_040', 'RegNetY-4.0GF'),
        ('regnety_004', 'RegNetY-400MF'),
        ('regnetx_320', 'RegNetX-32GF'),
        ('regnety_016.tv2_in1k', 'RegNetY-1.6GF'),
        ('regnet_y_3_2gf', 'RegNetY-3.2GF'),
        ('regnet_y_32gf', 'RegNetY-32GF'),
        ('regnet_x_400mf', 'RegNetX-400MF'),
        ('regnetx-8.0gf', 'RegNetX-8.0GF'),
        ('RegNetY-4GF', 'RegNetY-4.0GF'),
        ('efficientnet_b0', 'EfficientNet-B0'),
        ('efficientnet_lite4', 'EfficientNet-Lite4'),
        ('mobilenet_v2', 'MobileNetV2'),
        ('mobilenetv2_100', 'MobileNetV2'),
        ('mobilenetv3_large_100', 'MobileNetV3-Large'),
        ('mobilenet_v3_small', 'MobileNetV3-Small'),
        ('mobilenet-v3-large', 'MobileNetV3-Large'),
        ('scalenet_s1', 'scalenet-s1'),
        # timm's, whose padding, eps or head are others than the preset's.
        ('tf_efficientnet_b0', 'tf_efficientnet_b0'),
        ('tf_efficientnet_b0.ns_jft_in1k', 'tf_efficientnet_b0'),
        ('TF-EfficientNet-Lite0', 'tf_efficientnet_lite0'),
        ('tf_mobilenetv3_large_100', 'tf_mobilenetv3_large_100'),
        ('regnetz_005', 'regnetz_005'),
        ('regnetz_040.ra3_in1k', 'regnetz_040'),
        ('regnetz_040_h', 'regnetz_040_h'),
        ('regnety_320.seer', 'RegNetY-32GF'),
        # Networks of their own.
        ('mobilenetv2_140', None),
        ('tf_efficientnet_b8', None),
        ('resnet50.json', None),
        ('resnet50d', None),
    ],
)
def test_presets_are_found_as_timm_torchvision_and_mmpretrain_spell_them(name, preset):
    assert preset_name(name) == preset
    if preset is not None:
        assert get_arch(name) is get_arch(preset)


@pytest.mark.parametrize(
    ('name', 'nearest'),
    [
        ('regnety_041', 'RegNetY-4.0GF'),
        ('resnet55', 'ResNet-50'),
        ('regnetz_041', 'regnetz_040'),
        ('efficientnet_b9', 'Efficient'),
    ],
)
def test_a_name_that_is_not_known_is_answered_by_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=rf"arch='{name}' is neither .*near names are {nearest}"):
        get_arch(name)


def test_every_preset_has_a_key_of_its_own_whatever_the_spelling():
    for name in preset_names():
        assert preset_name(name) == name
        assert preset_name(name.upper().replace('-', '_')) == name


def test_get_arch_takes_archs_mappings_and_files(tmp_path):
    arch = get_arch('scalenet-s1')
    path = tmp_path / 'arch.json'
    arch.save(path)
    assert get_arch(arch) is arch
    assert get_arch(arch.to_json()) == get_arch(path) == get_arch(str(path)) == arch
    assert Arch.from_json(path) == arch


def test_get_arch_names_what_there_is():
    with pytest.raises(ValueError, match=r"arch='scalenet-s6' is neither .*scalenet-s5"):
        get_arch('scalenet-s6')
    with pytest.raises(ValueError, match='expected an object, got int 3'):
        get_arch(3)
