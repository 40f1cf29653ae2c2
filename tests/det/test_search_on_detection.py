"""A super-supernet under a detector: trained, costed, scored by mAP, and searched."""

import copy
import json
import shutil
import uuid
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData

from mmscale.apis.plan import make_plan
from mmscale.arch import HierarchicalSampler
from mmscale.arch.sampling import SIDES
from mmscale.cost import CostTable, count_module
from mmscale.engine import DetectionEvaluator
from mmscale.models import ArchNet, SuperNetDetector
from mmscale.registry import MODELS
from mmscale.search import Score

CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'det'
# As few and as small networks as there can be of two scaling stages.
SCALING_STAGES = [
    dict(depth=[1.0], width=[1.0], resolution=[32]),
    dict(depth=[1.4], width=[1.1, 1.3], resolution=[40, 48]),
]


def load(name, tmp_path):
    """A config of this folder, for a few small images."""
    config = Config.fromfile(CONFIGS / name)
    config.work_dir = str(tmp_path / 'work')
    config.experiment_name = uuid.uuid4().hex
    config.model.detector.backbone.space.scaling_stages = SCALING_STAGES
    config.model.detector.backbone.init_cfg = None
    return config


def shrink(loader, tmp_path):
    data = loader.dataset.dataset
    # A few large digits, so that even untrained detectors score.
    data.update(num_images=8, data_root=str(tmp_path / 'data'), serialize_data=False)
    loader.batch_size = 4


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    init_default_scope('mmdet')
    torch.manual_seed(0)
    config = load('retinanet_supernet_fpn_digits.py', tmp_path_factory.mktemp('model'))
    made = MODELS.build(config.model)
    assert isinstance(made, SuperNetDetector)
    made.init_weights()
    # BN statistics and focal biases that are not those of the start.
    generator = torch.Generator().manual_seed(1)
    for name, buffer in made.named_buffers():
        if 'running' in name:
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return made.eval()


@pytest.fixture(scope='module')
def archs(model):
    sampler = HierarchicalSampler(model.backbone.space, seed=0, distribution='uniform')
    return [sampler.draw(i).arch for i in range(4)]


def samples(count, resolution):
    shape = (resolution, resolution)
    info = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'), shape)
    info['scale_factor'] = (1.0, 1.0)
    return [DetDataSample(metainfo=info) for _ in range(count)]


@pytest.mark.parametrize('side', SIDES)
def test_an_extracted_detector_equals_its_subnet(model, archs, side):
    for arch in archs:
        images = torch.randn(2, 1, arch.resolution, arch.resolution)
        model.backbone.set_arch(arch, side)
        detector = model.extract(arch, side).eval()
        assert type(detector) is type(model.detector)
        assert type(detector.backbone) is ArchNet and detector.backbone.arch == arch
        assert list(detector.backbone.neck.in_channels) == [arch.widths[1], arch.widths[3]]
        with torch.inference_mode():
            wanted, found = model(images), detector(images)
            for maps, own in zip(wanted, found, strict=True):
                for one, other in zip(maps, own, strict=True):
                    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
            # After NMS, too.
            boxes = model(images, samples(2, arch.resolution), mode='predict')
            own = detector(images, samples(2, arch.resolution), mode='predict')
        for one, other in zip(boxes, own, strict=True):
            assert len(one.pred_instances) == len(other.pred_instances)
        # Its weights are its own.
        pointers = {tensor.data_ptr() for tensor in model.state_dict().values()}
        assert not pointers & {t.data_ptr() for t in detector.state_dict().values()}


def test_the_table_counts_the_whole_detector(model, archs):
    table = CostTable(model.backbone.space, after_stages=model.cost_after_stages)
    space = model.backbone.space
    genes = space.sample(np.random.default_rng(0), 2)
    for scaling in (space.scalings(0)[0], space.scalings(1)[-1]):
        costs = table.costs(genes, scaling)
        for i, row in enumerate(genes):
            arch = space.decode(row, scaling)
            shape = (1, arch.resolution, arch.resolution)
            counted = count_module(model.extract(arch), shape, memory=False)
            for metric in ('flops', 'params', 'acts'):
                assert getattr(costs, metric)[i] == getattr(counted, metric)
                assert getattr(table.cost(arch), metric) == getattr(counted, metric)


def test_widths_and_kinds_may_be_choices(tmp_path):
    """Of network stages whose maps the neck takes, and of the head's convolution."""
    config = load('retinanet_supernet_fpn_digits.py', tmp_path)
    backbone = config.model.detector.backbone
    common = dict(depths=[1, 2], kernels=[1, 3])
    del backbone['space'], backbone['out_strides']
    backbone['out_indices'] = (0, 1, 2)
    backbone['space'] = dict(
        in_channels=1,
        num_classes=10,
        resolution=[32, 40],
        stem=dict(channels=[4, 8]),
        stages=[
            dict(channels=[8, 12], stride=2, kind=['mbconv', 'bottleneck'], expands=2, **common),
            dict(channels=[8, 16], stride=2, kind='basic', **common),
        ],
        head=dict(channels=[16, 24]),
    )
    model = MODELS.build(config.model).eval()
    space = model.backbone.space
    table = CostTable(space, after_stages=model.cost_after_stages)
    genes = space.sample(np.random.default_rng(0), 6)
    costs = table.costs(genes)
    archs = [space.decode(row) for row in genes]
    assert len({(arch.widths, arch.head, arch.resolution) for arch in archs}) > 4
    for i, arch in enumerate(archs):
        side = SIDES[i % 2]
        detector = model.extract(arch, side).eval()
        images = torch.randn(2, 1, arch.resolution, arch.resolution)
        model.backbone.set_arch(arch, side)
        with torch.inference_mode():
            for maps, own in zip(model(images), detector(images), strict=True):
                for one, other in zip(maps, own, strict=True):
                    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        counted = count_module(detector, tuple(images.shape[1:]), memory=False)
        for metric in ('flops', 'params', 'acts'):
            assert getattr(costs, metric)[i] == getattr(counted, metric)
            assert getattr(table.cost(arch), metric) == getattr(counted, metric)


def test_a_neck_keeps_what_a_step_did_not_use(tmp_path):
    config = load('retinanet_supernet_fpn_digits.py', tmp_path)
    shrink(config.train_dataloader, tmp_path)
    config.train_dataloader.sampler.batch_size = 4
    config.train_cfg.max_iters = 2
    config.model.update(mode='single', warmup_iters=0)
    config.param_scheduler = None
    config.optim_wrapper.optimizer = dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=0.1)
    config.custom_hooks[0].distribution = 'choices'
    config.default_hooks.checkpoint = None
    runner = Runner.from_cfg(config)
    space = runner.model.backbone.space
    widths = [
        HierarchicalSampler(space, 0, 'choices', ('left',)).draw(i).arch.widths for i in range(2)
    ]
    runner.model.init_weights()
    before = copy.deepcopy(runner.model.backbone.neck.lateral_convs[-1].conv.weight)
    runner.train()
    after = runner.model.backbone.neck.lateral_convs[-1].conv.weight
    used = max(width[-1] for width in widths)
    assert used < after.shape[1]
    assert torch.equal(before[:, used:], after[:, used:])
    assert not torch.equal(before[:, :used], after[:, :used])


@pytest.mark.parametrize('mode', ['single', 'both_sides', 'sandwich'])
def test_losses_of_a_mode(model, mode):
    trained = copy.deepcopy(model).train()
    trained.mode = mode
    sampler = HierarchicalSampler(model.backbone.space, seed=0)
    draw = sampler.draw(0)
    images = torch.randn(1, 1, draw.arch.resolution, draw.arch.resolution)
    sample = samples(1, draw.arch.resolution)
    sample[0].gt_instances = InstanceData(
        bboxes=torch.tensor([[4.0, 4.0, 20.0, 24.0]]), labels=torch.tensor([3])
    )
    with pytest.raises(RuntimeError, match='HierarchicalSamplerHook'):
        trained.subnet_losses(images, sample)
    trained.set_draw(draw, trained.warmup_iters)
    losses = trained.subnet_losses(images, sample)
    names = {key.partition('.')[0] for key in losses}
    assert (
        names
        == {
            'single': {'loss_cls', 'loss_bbox'},
            'both_sides': {'left', 'right'},
            'sandwich': {'largest', 'subnet'},
        }[mode]
    )
    loss, _ = trained.parse_losses(losses)
    loss.backward()
    assert all(
        p.grad is not None for p in trained.detector.bbox_head.parameters() if p.requires_grad
    )
    if mode == 'sandwich':
        trained.set_draw(draw, 0)
        names = set(trained.subnet_losses(images, sample))
        assert names == {'largest.loss_cls', 'largest.loss_bbox'}


def search_config(tmp_path, name, **settings):
    config = load('search-mcea_retinanet_digits.py', tmp_path)
    config.work_dir = str(tmp_path / name)
    config.load_from = None
    config.test_cfg.update(budget=5.8e6, tolerance=0.2, weights=[1, 1], **settings)
    config.test_cfg.search.update(population=2, generations=1, rounds=1, num_base_models=1)
    config.test_cfg.subnet_evaluator.update(calibration_images=4, max_images=None)
    shrink(config.calibration_dataloader, tmp_path)
    shrink(config.test_dataloader, tmp_path)
    return config


def make_search(model, tmp_path, name, **settings):
    runner = Runner.from_cfg(search_config(tmp_path, name, **settings))
    runner.model.load_state_dict(model.state_dict())
    return runner


def test_a_search_replays_to_the_same_bytes(model, tmp_path, monkeypatch):
    # Untrained detectors all score 0: what is replayed should differ.
    monkeypatch.setattr(
        DetectionEvaluator,
        'evaluate',
        lambda self, arch, real=DetectionEvaluator.evaluate: Score(
            real(self, arch).correct + int(arch.digest[:4], 16) % 500, 1000
        ),
    )
    make_search(model, tmp_path, 'once').test()
    result = (tmp_path / 'once' / 'result.json').read_bytes()
    found = json.loads(result)
    assert found['evaluations'] >= 3
    make_search(model, tmp_path, 'again').test()
    assert (tmp_path / 'again' / 'result.json').read_bytes() == result
    # From the archive alone, nothing is evaluated.
    shutil.copytree(tmp_path / 'once' / 'archive', tmp_path / 'replay' / 'archive')
    monkeypatch.setattr(DetectionEvaluator, 'evaluate', None)
    make_search(model, tmp_path, 'replay', resume=True).test()
    assert (tmp_path / 'replay' / 'result.json').read_bytes() == result


def test_a_plan_counts_neck_and_head_and_prints_nothing(model, tmp_path, capsys):
    config = search_config(tmp_path, 'planned')
    config.load_from = str(tmp_path / 'weights.pth')
    config.launcher = 'none'
    torch.save({'state_dict': model.state_dict()}, config.load_from)
    plan = make_plan(config, seconds=0)
    assert capsys.readouterr().out == '' and not (tmp_path / 'planned').exists()
    smallest = model.backbone.space.smallest(0)
    table = CostTable(model.backbone.space, after_stages=model.cost_after_stages)
    assert plan.profile.stages[0].smallest.cost == table.cost(smallest)
    # None would be, without neck and head.
    assert plan.profile.stages[0].admitted.value == 1
    assert len(plan.timed) == 3 and plan.expected_evaluations >= 2


def test_a_score_is_the_metric_of_the_shipped_detector(model, tmp_path):
    runner = make_search(model, tmp_path, 'search')
    evaluator = runner.test_loop.evaluator
    arch = model.backbone.space.smallest(0)
    score = evaluator.evaluate(arch)
    assert score.total == 1000 and score == evaluator.evaluate(arch)
    evaluator.amp = 'bf16'
    assert evaluator.evaluate(arch).total == 1000
    evaluator.amp = None
    # Ground truth as predictions, through the same cached images: a perfect score.

    class Oracle(torch.nn.Module):
        def forward(self, inputs, samples=(), mode='tensor'):
            for sample in samples:
                boxes = sample.metainfo['instances']
                sample.pred_instances = InstanceData(
                    bboxes=torch.tensor([box['bbox'] for box in boxes]),
                    labels=torch.tensor([box['bbox_label'] for box in boxes]),
                    scores=torch.ones(len(boxes)),
                )
            return samples

    evaluator._raw = lambda arch, side: Oracle()
    assert evaluator.evaluate(arch) == Score(1000, 1000)


def test_one_late_box_makes_another_fingerprint(model, tmp_path):
    def fingerprint(name):
        return make_search(model, tmp_path, name).test_loop.evaluator.fingerprint

    before = fingerprint('before')
    assert fingerprint('same') == before and str(tmp_path) not in str(before)
    (path,) = (tmp_path / 'data').glob('search-*/annotations.json')
    coco = json.loads(path.read_text())
    # Its own check looks at the first, the middle and the last image.
    box = next(one for one in coco['annotations'] if one['image_id'] == len(coco['images']) - 1)
    box['bbox'][2] -= 1
    path.write_text(json.dumps(coco))
    after = fingerprint('after')
    assert {key for key in before if before[key] != after[key]} == {'images'}


def test_what_cannot_be_searched_is_refused(model, tmp_path):
    config = load('retinanet_supernet_fpn_digits.py', tmp_path)
    detector = config.model.detector
    with pytest.raises(ValueError, match='last network stage'):
        backbone = {**detector.backbone, 'out_strides': (2, 4)}
        SuperNetDetector({**detector, 'backbone': backbone})
    with pytest.raises(TypeError, match='backbone must be a SuperNet'):
        space = model.backbone.space
        backbone = dict(
            type='mmscale.ArchNet', arch=space.largest().to_json(), neck=detector.backbone.neck,
            out_strides=(4, 8),
        )  # fmt: skip
        SuperNetDetector({**detector, 'backbone': backbone})
    with pytest.raises(ValueError, match='side'):
        DetectionEvaluator(model, {}, {}, side='both')
    with pytest.raises(TypeError, match='SuperNetDetector'):
        DetectionEvaluator(model.detector, {}, {})
