import pytest

from mmscale.apis.networks import find_network
from mmscale.apis.packaged_configs import packaged_config
from mmscale.cost import count
from mmscale.errors import UsageError


@pytest.mark.parametrize(
    ('name', 'config'),
    [
        ('resnet50_8xb32_in1k', 'mmpretrain::resnet/resnet50_8xb32_in1k.py'),
        ('resnet50_8xb32_in1k.py', 'mmpretrain::resnet/resnet50_8xb32_in1k.py'),
        ('resnet/resnet50_8xb32_in1k', 'mmpretrain::resnet/resnet50_8xb32_in1k.py'),
        ('resnet/resnet50_8xb32_in1k.py', 'mmpretrain::resnet/resnet50_8xb32_in1k.py'),
        ('configs/resnet/resnet50_8xb32_in1k.py', 'mmpretrain::resnet/resnet50_8xb32_in1k.py'),
        ('mmpretrain::resnet50_8xb32_in1k', 'mmpretrain::resnet/resnet50_8xb32_in1k.py'),
        ('mmpretrain::resnet/resnet50_8xb32_in1k', 'mmpretrain::resnet/resnet50_8xb32_in1k.py'),
        ('mmpretrain::_base_/models/resnet50', 'mmpretrain::_base_/models/resnet50.py'),
        ('levit-128_8xb256_in1k', 'mmpretrain::levit/levit-128_8xb256_in1k.py'),
        # By the name of its weights, as mmpretrain's tools take it.
        (
            'efficientnet-b0_3rdparty_8xb32_in1k',
            'mmpretrain::efficientnet/efficientnet-b0_8xb32_in1k.py',
        ),
        ('own/fashion_s1.py', None),
        ('resnet50_8xb32_in1k.json', None),
        ('configs/../resnet_x.py', None),
        ('resnet50_*', None),
        ('../resnet_x', None),
        ('resnet50', None),
    ],
)
def test_configs_are_found_as_mmpretrains_tools_name_them(name, config):
    assert packaged_config(name) == config


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('resnet50_8xb32_in2k', 'near ones are mmpretrain::resnet/resnet50_8xb32_in1k.py'),
        (
            'own/resnet50_8xb32_in1k.py',
            'no such file, .*mmpretrain::resnet/resnet50_8xb32_in1k.py',
        ),
        ('mmpretrain::resnet_50_8xb32_in1k', 'near ones are .*resnet50_8xb32_in1k.py'),
        ('mmpretrain::zzz', 'write mmpretrain::FOLDER/NAME.py'),
        (
            'vit-base-p16_8xb128-coslr-100e_in1k',
            'several configs have this name; write .*::mae/benchmarks/vit-base.* or mmpretrain::',
        ),
    ],
)
def test_a_config_that_is_not_there_ends_in_what_to_write(name, message):
    with pytest.raises(UsageError, match=message) as caught:
        find_network(name)
    assert str(caught.value).startswith(f'{name}: ')
    assert '\n' not in str(caught.value)


def test_such_a_name_is_a_network_everywhere():
    network = find_network('resnet101_8xb16_cifar10')
    assert network.source == 'mmpretrain::resnet/resnet101_8xb16_cifar10.py'
    assert network.name == 'resnet101_8xb16_cifar10'
    assert network.config.model.backbone.depth == 101
    changed = find_network('resnet101_8xb16_cifar10', ['model.backbone.depth=50'])
    assert changed.config.model.backbone.depth == 50


def test_count_takes_what_get_arch_takes():
    assert count('regnety_004') == count('RegNetY-400MF')
    assert count({'family': 'resnet', 'depth': 50}).params == 25_557_032
    with pytest.raises(ValueError, match="arch='scalenet-s9' is neither a file nor a preset"):
        count('scalenet-s9')
