"""The ImageNet recipes do what those do that they are named after: timm's scripts."""

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.optim import LinearLR, MultiStepLR, build_optim_wrapper
from mmengine.registry import DefaultScope
from mmpretrain.registry import TRANSFORMS
from timm.data.auto_augment import _RAND_TRANSFORMS, LEVEL_TO_ARG
from timm.optim import RMSpropTF, create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn

import mmscale.engine  # noqa: F401
from mmscale.models import DropoutClsHead

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
SEARCH = 'dms/dms-efficientnet-b4-390mf_8xb96-30e_in1k-224px.py'
# What timm's command says: images of a batch, and their learning rate.
RECIPES = {
    'scalenet/scalenet-s0_8xb128_in1k.py': (1024, 0.064),
    SEARCH: (768, 0.048),
}
SUPERNET = 'scalenet/supernet_32xb8_in1k.py'
SCALES = [f'scalenet/scalenet-s{scale}_8xb128_in1k.py' for scale in range(6)]


IMAGENET = [
    path.relative_to(CONFIGS).as_posix()
    for path in sorted(CONFIGS.glob('*/*_in1k*.py'))
    if not path.name.startswith('search-')
]


def load(name):
    return Config.fromfile(CONFIGS / name, import_custom_modules=False)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, groups=6), nn.Linear(6, 4)
    )


@pytest.mark.parametrize('name', RECIPES)
def test_twenty_steps_are_timms(name):
    ours, theirs = network(), network()
    wrapper = build_optim_wrapper(ours, load(name).optim_wrapper)
    assert isinstance(wrapper.optimizer, RMSpropTF)
    optimizer = create_optimizer_v2(
        theirs, 'rmsproptf', lr=RECIPES[name][1], weight_decay=1e-5, momentum=0.9, eps=1e-3
    )
    random = torch.Generator().manual_seed(1)
    for _ in range(20):
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            mine.grad = torch.randn(mine.shape, generator=random)
            other.grad = mine.grad.clone()
        wrapper.step()
        optimizer.step()
    start = network()
    for mine, other, first in zip(
        ours.parameters(), theirs.parameters(), start.parameters(), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)
        assert (mine - first).abs().min() > 1e-4


def test_the_structure_is_stepped_by_timms_optimizer_too():
    settings = load(SEARCH).model
    assert settings.structure_optimizer == dict(
        type='mmscale.RMSpropTF', lr=2e-5, alpha=0.9, momentum=0.9, eps=1e-3
    )


@pytest.mark.parametrize('name', RECIPES)
def test_the_learning_rate_of_every_epoch_is_timms(name):
    config = load(name)
    batch, lr = RECIPES[name]
    iterations = 1_281_167 // batch
    epochs = config.train_cfg.max_iters // iterations
    assert config.train_cfg.max_iters == epochs * iterations
    assert config.auto_scale_lr.base_batch_size == batch
    settings = dict(decay_epochs=2.4, decay_rate=0.97, warmup_lr=1e-6, warmup_epochs=5, min_lr=0)
    theirs, _ = create_scheduler_v2(
        torch.optim.SGD(network().parameters(), lr), 'step', num_epochs=epochs, **settings
    )
    optimizer = torch.optim.SGD(network().parameters(), config.optim_wrapper.optimizer.lr)
    kinds = {'LinearLR': LinearLR, 'MultiStepLR': MultiStepLR}
    schedulers = [
        kinds[part.type](optimizer, **{key: part[key] for key in part if key != 'type'})
        for part in config.param_scheduler
    ]
    assert optimizer.param_groups[0]['lr'] == pytest.approx(1e-6)
    for epoch in range(min(epochs, 13)):
        if epoch >= 5:  # The warm-up rises with every iteration, not with every epoch.
            expected = theirs._get_lr(epoch)[0]
            assert optimizer.param_groups[0]['lr'] == pytest.approx(expected), epoch
        for _ in range(iterations):
            for scheduler in schedulers:
                scheduler.step()
    last = lr * 0.97 ** len(config.param_scheduler[1].milestones)
    assert last == pytest.approx(theirs._get_lr(epochs - 1)[0])


def test_the_augmentation_is_timms_rand_m9_mstd05():
    pipeline = load(SCALES[0]).train_dataloader.dataset.dataset.pipeline
    settings = next(part for part in pipeline if part.type == 'RandAugment')
    level = (settings.magnitude_level, settings.magnitude_std, settings.num_policies)
    assert level == (9, 0.5, 2)
    names = dict(
        ColorTransform='Color',
        Shear='Shear{}',
        Translate='Translate{}Rel',
        horizontal='X',
        vertical='Y',
    )
    assert len(settings.policies) == len(_RAND_TRANSFORMS)
    for policy, name in zip(settings.policies, _RAND_TRANSFORMS, strict=True):
        axis = names.get(policy.get('direction'))
        assert names.get(policy.type, policy.type).format(axis) == name
        if LEVEL_TO_ARG[name] is None:
            assert 'magnitude_range' not in policy
            continue
        for strength in (0.0, 7.3, 8.9, 9.0, 10.0):
            given = dict(magnitude_level=strength, total_level=10)
            operation = TRANSFORMS.build({**policy.to_dict(), **given})
            magnitude = operation.random_magnitude()
            (argument,) = LEVEL_TO_ARG[name](strength, {})
            if name == 'Posterize':
                magnitude = math.ceil(magnitude)
            elif name in ('Color', 'Contrast', 'Brightness', 'Sharpness'):
                assert operation.random_negative_prob == 0
                magnitude += 1
            elif 'Solarize' in name:
                magnitude = int(magnitude)
            assert abs(argument) == pytest.approx(abs(magnitude)), (name, strength)


@pytest.mark.parametrize(
    ('name', 'dropout'),
    # Dropout of EfficientNet-B0 to B5, and of the released search.
    zip([*SCALES, SEARCH], (0.2, 0.2, 0.3, 0.3, 0.4, 0.4, 0.5), strict=True),
)
def test_the_rest_of_the_recipe(name, dropout):
    config = load(name)
    model = config.model.get('model', config.model)
    assert model.backbone.drop_path_rate == 0.2
    assert model.head.dropout == dropout
    assert model.head.loss == dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')
    train, test = config.train_dataloader.dataset.dataset, config.test_dataloader.dataset
    assert train.pipeline[-2].type == 'RandomErasing' and train.pipeline[-2].erase_prob == 0.2
    assert train.pipeline[1].interpolation == test.pipeline[1].interpolation == 'bicubic'
    assert test.pipeline[1].crop_ratio == timm.get_pretrained_cfg('efficientnet_b0').crop_pct
    if name in SCALES:
        (ema,) = [hook for hook in config.custom_hooks if hook.type == 'EMAHook']
        assert ema.momentum == pytest.approx(1 - 0.9999) and ema.update_buffers


def test_dropout_is_before_the_classifier_and_in_training_alone():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        head = DropoutClsHead(dropout=0.5, in_channels=4000, num_classes=2)
    features = torch.ones(1, 4000)
    assert torch.equal(head.eval().pre_logits((features,)), features)
    dropped = head.train().pre_logits((features,))
    assert np.unique(dropped).tolist() == [0, 2]
    assert 0.4 < (dropped == 0).float().mean() < 0.6
    assert set(head.state_dict()) == {'fc.weight', 'fc.bias'}
    with pytest.raises(ValueError, match=r'dropout=1 must be a number of 0 or more and below 1'):
        DropoutClsHead(dropout=1, in_channels=4, num_classes=2)


def pipelines():
    """Every different train pipeline of the ImageNet configs, by the first config that has it."""
    found = {}
    for name in IMAGENET:
        part = load(name).train_dataloader.dataset
        while 'pipeline' not in part:
            part = part.dataset
        if part.pipeline not in found.values():
            found[name] = part.pipeline
    return found


PIPELINES = pipelines()


def test_only_the_super_supernet_decodes_images_smaller():
    assert len(IMAGENET) > 15 and len(PIPELINES) > 3
    for name, pipeline in PIPELINES.items():
        reduced = 'mmscale.LoadRandomResizedCropToResolution'
        first = reduced if name == SUPERNET else 'LoadImageFromFile'
        assert [part.type for part in pipeline if 'Load' in part.type] == [first], name


@pytest.mark.parametrize('name', PIPELINES)
def test_a_sample_is_one_crop_of_an_image_that_is_decoded_once(name, tmp_path, monkeypatch):
    calls = []

    def counted(name, function):
        def call(*args, **settings):
            calls.append(name)
            return function(*args, **settings)

        return call

    path = tmp_path / 'image.jpg'
    path.write_bytes(cv2.imencode('.jpg', np.zeros((90, 120, 3), np.uint8))[1].tobytes())
    monkeypatch.setattr(cv2, 'imdecode', counted('decode', cv2.imdecode))
    # What draws a crop takes these, and nothing else of the pipeline does.
    monkeypatch.setattr(math, 'exp', counted('crop', math.exp))
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        steps = [TRANSFORMS.build(part) for part in PIPELINES[name]]
    item = {'img_path': str(path), 'gt_label': 3, 'resolution': 32}
    for step in steps:
        item = step(item)
    assert sorted(set(calls)) == ['crop', 'decode'] and calls.count('decode') == 1
    # Those at a resolution of their own say it themselves.
    sides = {32, *(part.get('scale') for part in PIPELINES[name])}
    assert item['inputs'].shape[0] == 3 and item['inputs'].shape[1] in sides


def test_the_super_supernet_is_set_to_be_fast_and_takes_steps_on_a_cpu():
    config = load(SUPERNET)
    assert config.model.backbone.channels_last
    loader = config.train_dataloader
    assert loader.num_workers and loader.persistent_workers and loader.pin_memory
    model = network()
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    assert wrapper.optimizer.defaults['foreach'] and not wrapper.optimizer.defaults['fused']
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with wrapper.optim_context(model):
        output = model(torch.randn(2, 3, 10, 10))
    assert output.dtype == torch.bfloat16
    wrapper.update_params(output.float().square().mean())
    for parameter, start in zip(model.parameters(), before, strict=True):
        assert parameter.dtype == torch.float32 and not torch.equal(parameter, start)
