"""Types are named, and nested datasets found, in configs of both of MMEngine's styles."""

import pytest
from mmcv.transforms import CenterCrop
from mmengine.config import Config, ConfigDict
from mmengine.config.lazy import LazyObject

from mmscale.config_parts import (
    innermost_datasets,
    nested_datasets,
    nested_transforms,
    type_name,
    type_scope,
)

TEXT = """
part = dict(type='CustomDataset', pipeline=[dict(type='mmcv.CenterCrop', crop_size=8)])
both = dict(type='ConcatDataset', datasets=[part, dict(type='RepeatDataset', dataset=part)])
mixed = dict(type='MultiImageMixDataset', dataset=both, pipeline=[dict(type='Mosaic')])
dataset = dict(type='mmscale.SeededDataset', dataset=mixed)
"""
LAZY = """
from mmengine.dataset import ConcatDataset, RepeatDataset
from mmcv import transforms
from mmpretrain.datasets import CustomDataset

from mmscale.datasets import SeededDataset

part = dict(type=CustomDataset, pipeline=[dict(type=transforms.CenterCrop, crop_size=8)])
both = dict(type=ConcatDataset, datasets=[part, dict(type=RepeatDataset, dataset=part)])
mixed = dict(type='MultiImageMixDataset', dataset=both, pipeline=[dict(type='Mosaic')])
dataset = dict(type=SeededDataset, dataset=mixed)
"""


@pytest.mark.parametrize(
    ('kind', 'scope'),
    [
        ('CenterCrop', ''),
        ('mmcv.CenterCrop', 'mmcv'),
        ('mmcv.transforms.processing.CenterCrop', 'mmcv'),
        (CenterCrop, 'mmcv'),
        (LazyObject('mmcv.transforms', 'CenterCrop'), 'mmcv'),
        (LazyObject('mmcv.transforms').CenterCrop, 'mmcv'),
        (LazyObject(['mmcv', 'mmcv.transforms']).transforms.CenterCrop, 'mmcv'),
    ],
)
def test_a_type_is_named_whichever_way_it_is_written(kind, scope):
    for part in (kind, dict(type=kind), ConfigDict(type=kind)):
        assert (type_name(part), type_scope(part)) == ('CenterCrop', scope)


def test_what_has_no_type_has_no_name():
    assert [(type_name(part), type_scope(part)) for part in (None, {})] == [('', '')] * 2


@pytest.mark.parametrize('text', [TEXT, LAZY])
def test_datasets_are_found_at_any_depth_and_can_be_changed(text, tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(text, encoding='utf-8')
    config = Config.fromfile(path)
    names = [type_name(part) for part in nested_datasets(config.dataset)]
    assert names == [
        'CustomDataset',
        'CustomDataset',
        'RepeatDataset',
        'ConcatDataset',
        'MultiImageMixDataset',
        'SeededDataset',
    ]
    inner = list(innermost_datasets(config.dataset))
    assert [type_name(part) for part in inner] == ['CustomDataset'] * 2
    assert [type_name(t) for t in nested_transforms(inner[0].pipeline)] == ['CenterCrop']
    inner[1]['pipeline'] = []
    assert config.dataset.dataset.dataset.datasets[1].dataset.pipeline == []
    assert len(config.dataset.dataset.dataset.datasets[0].pipeline) == 1


def test_datasets_that_are_none_or_built_have_no_parts():
    assert list(nested_datasets(None)) == list(nested_datasets(object())) == []


def test_transforms_are_found_in_transforms():
    inner = dict(type='Resize', scale=8)
    pipeline = [
        dict(type='RandomApply', transforms=[inner], prob=0.5),
        dict(type='MultiBranch', branch_field=['a'], a=[inner], b=dict(type='Pack')),
        dict(type='TestTimeAug', transforms=[[inner, inner], [dict(type='Pack')]]),
    ]
    names = [type_name(part) for part in nested_transforms(pipeline)]
    assert names == [
        *('RandomApply', 'Resize', 'MultiBranch', 'Resize', 'Pack'),
        *('TestTimeAug', 'Resize', 'Resize', 'Pack'),
    ]
