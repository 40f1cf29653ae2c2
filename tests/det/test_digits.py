"""The detection data under mmdet, and the configs that learn from it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.datasets import CocoDataset
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from mmscale.datasets import DetectionFiles, Draw
from mmscale.registry import DATASETS, MODELS

CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'det'


@pytest.fixture(scope='module')
def data_root(tmp_path_factory):
    return str(tmp_path_factory.mktemp('digits'))


def load(name):
    init_default_scope('mmdet')
    return Config.fromfile(CONFIGS / name)


def few(dataset, data_root):
    """The innermost data set of a config, with few images."""
    inner = dataset
    while 'dataset' in inner:
        inner = inner.dataset
    inner.update(num_images=6, data_root=data_root)
    return dataset


def test_items_are_those_of_the_files(data_root):
    config = load('retinanet_digits-s2_fpn_digits.py')
    dataset = DATASETS.build(few(config.test_dataloader.dataset, data_root))
    assert isinstance(dataset, CocoDataset) and len(dataset) == 6
    assert dataset.metainfo['classes'] == tuple('0123456789')
    files = DetectionFiles('test', 6, data_root=data_root)
    coco = json.loads(files.annotation_file.read_text(encoding='utf-8'))
    for i in range(6):
        item = dataset[i]
        wanted = [a for a in coco['annotations'] if a['image_id'] == i + 1]
        assert item['inputs'].shape == (1, 96, 96)
        instances = item['data_samples'].metainfo['instances']
        boxes = np.array([a['bbox'] for a in wanted])
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_array_equal([one['bbox'] for one in instances], boxes)
        assert [one['bbox_label'] for one in instances] == [a['category_id'] - 1 for a in wanted]


def test_boxes_go_with_the_drawn_resolution(data_root):
    config = load('retinanet_supernet_fpn_digits.py')
    dataset = DATASETS.build(few(config.train_dataloader.dataset, data_root))
    small, large = (dataset[Draw(2, resolution, 0)]['data_samples'] for resolution in (64, 128))
    assert small.img_shape == (64, 64) and large.img_shape == (128, 128)
    boxes = [sample.gt_instances.bboxes.tensor for sample in (small, large)]
    torch.testing.assert_close(2 * boxes[0], boxes[1])
    assert large.scale_factor == (1.0, 1.0)
    assert torch.equal(boxes[1], boxes[1].round())


@pytest.mark.parametrize(
    'name',
    [
        'retinanet_digits-s2_fpn_digits.py',
        'retinanet_supernet_fpn_digits.py',
        'dms-retinanet_r18-w16_fpn_digits.py',
    ],
)
def test_it_trains_and_is_tested(name, data_root, tmp_path):
    config = load(name)
    config.work_dir = str(tmp_path)
    config.experiment_name = name
    # The super-supernet starts from that of the classification data, which is not trained here.
    if 'detector' in config.model:
        config.model.detector.backbone.init_cfg = None
    few(config.train_dataloader.dataset, data_root)
    config.train_dataloader.batch_size = config.train_dataloader.sampler.batch_size = 2
    config.train_cfg.max_iters = 2
    config.default_hooks.checkpoint = None
    if 'val_interval' in config.train_cfg:
        config.train_cfg.val_interval = 2
        few(config.val_dataloader.dataset, data_root)
    runner = Runner.from_cfg(config)
    runner.train()
    assert all(p.isfinite().all() for p in runner.model.parameters())
    losses = [key for key in runner.message_hub.log_scalars if key.endswith('loss_bbox')]
    assert losses


def test_channel_groups_reach_through_the_pyramid_and_the_head():
    model = MODELS.build(load('dms-retinanet_r18-w16_fpn_digits.py').model)
    members = {
        group.name: {member.module for member in group.members} for group in model.groups.widths
    }
    # Laterals add up, so that they share their channels; both branches of the head use the output.
    assert {f'neck.lateral_convs.{i}.conv' for i in range(3)} <= members[
        'neck.lateral_convs.0.conv'
    ]
    outputs = members['neck.fpn_convs.0.conv']
    assert {'bbox_head.cls_convs.0.conv', 'bbox_head.reg_convs.0.conv'} <= outputs
    assert {'bbox_head.cls_convs.1.conv', 'bbox_head.reg_convs.1.conv'} <= set(members)
    assert 'neck.lateral_convs.1.conv' in members['backbone.layer2.0.conv2']
    assert 'bbox_head.retina_cls' not in members
