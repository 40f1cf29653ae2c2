"""Exported classifiers under mmdet's detectors, and exported detectors."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from mmcv.transforms import Compose
from mmdet.apis import inference_detector, init_detector
from mmdet.registry import DATASETS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import set_random_seed

from mmscale.apis.exports import programs
from mmscale.apis.exports.configs import DETECTORS
from mmscale.apis.exports.export import export
from mmscale.apis.networks import build_module, build_network
from mmscale.arch import Arch, Block, Head, Stem

# Strides 4, 8, 16 and 32, and hardly any channels.
ARCH = Arch(
    64,
    Stem(4),
    tuple((Block('mbconv', 3, 2, 4, 8, 4, 8),) for _ in range(4)),
    Head(channels=8, num_classes=3),
)


@pytest.fixture(scope='module', autouse=True)
def modules():
    register_all_modules(init_default_scope=False)


@pytest.fixture
def network(randomise):
    return randomise(build_network(ARCH), weights=True).eval()


@pytest.fixture
def exported(network, tmp_path):
    """A function that exports the network for a detector, and reads the config."""
    checkpoint = tmp_path / 'classifier.pth'
    torch.save(network.state_dict(), checkpoint)

    def call(detector):
        out = tmp_path / detector
        export(ARCH, out, checkpoint, formats=['mmdet'], detector=detector)
        return Config.fromfile(out / 'mmdet_config.py')

    return call


@pytest.mark.parametrize('detector', DETECTORS)
def test_the_backbone_of_a_detector_has_the_exported_weights(detector, exported, network):
    config = exported(detector)
    assert config.model.neck is None
    with torch.device('meta'):
        model = build_module(config.model, 'mmdet')
    assert model.backbone.neck is not None and config.train_dataloader.dataset.type
    # The backbone as the detector's init_weights() leaves it.
    backbone = build_module(config.model.backbone, 'mmdet')
    backbone.init_weights()
    for key, tensor in network.backbone.state_dict().items():
        assert torch.equal(backbone.state_dict()[key], tensor), key
    images = torch.randn(1, 3, 64, 64)
    maps = backbone.eval()(images)
    assert len(maps) == (3 if detector == 'rtmdet' else 5)
    assert {one.shape[1] for one in maps} == {256}


@pytest.mark.parametrize('detector', DETECTORS)
def test_gray_images_need_no_change_of_the_config(detector, tmp_path, coco):
    gray = replace(ARCH, stem=replace(ARCH.stem, in_channels=1))
    torch.save(build_network(gray).state_dict(), tmp_path / 'a.pth')
    name = 'x\nimport nothing_of_that_name'  # it is in a comment
    out = tmp_path / 'out'
    found = export(gray, out, tmp_path / 'a.pth', formats=['mmdet'], detector=detector, name=name)
    assert 'not known' in found.notes[0]
    config = Config.fromfile(out / 'mmdet_config.py')
    switched = [hook.switch_pipeline for hook in config.get('custom_hooks', ())[1:]]
    assert len(switched) == (detector == 'rtmdet')
    data = dict(data_root=str(coco), ann_file='annotations.json', data_prefix=dict(img=''))
    data['metainfo'] = dict(classes=('blue', 'green'))
    set_random_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        preprocess = build_module(config.model.data_preprocessor, 'mmdet')
        for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
            dataset = DATASETS.build({**loader.dataset, **data})
            pipelines = [dataset.pipeline, *map(Compose, [] if dataset.test_mode else switched)]
            # From the second image on RTMDet mixes images.
            for dataset.pipeline in pipelines * 2:
                packed = dataset[1]
                batch = dict(inputs=[packed['inputs']], data_samples=[packed['data_samples']])
                images = preprocess(batch)['inputs']
                assert images.shape[1] == 1 and images.std() > 0


def test_inference_of_gray_images_by_mmdet(tmp_path):
    gray = replace(ARCH, stem=replace(ARCH.stem, in_channels=1))
    torch.save(build_network(gray).state_dict(), tmp_path / 'a.pth')
    export(gray, tmp_path / 'out', tmp_path / 'a.pth', formats=['mmdet'])
    config = Config.fromfile(tmp_path / 'out' / 'mmdet_config.py')
    config.model.test_cfg.score_thr = 0.0
    config.test_pipeline[1].scale = config.test_dataloader.dataset.pipeline[1].scale = (64, 64)
    model = init_detector(config, device='cpu')
    picture = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / 'gray.png'), picture)
    by_file = inference_detector(model, str(tmp_path / 'gray.png')).pred_instances
    by_array = inference_detector(model, np.dstack([picture] * 3)).pred_instances
    assert len(by_file) and torch.equal(by_file.scores, by_array.scores)


def test_a_search_on_detection(exported, tmp_path):
    """Its networks are detectors, around which the search's own config says what is."""
    head = exported('atss').model.bbox_head
    head.update(in_channels=32, feat_channels=32, stacked_convs=1, num_classes=2)
    neck = dict(type='FPN', out_channels=32, num_outs=5, add_extra_convs='on_output')
    backbone = dict(out_strides=(8, 16, 32), neck=neck)
    preprocess = dict(type='DetDataPreprocessor', mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0])
    around = dict(type='ATSS', neck=None, bbox_head=head, data_preprocessor=preprocess)
    build = dict(around, backbone=dict(type='mmscale.ArchNet', arch=ARCH.to_json(), **backbone))
    model = build_module(Config(build), 'mmdet').eval()
    super_net = dict(type='mmscale.SuperNet', space={}, init_cfg=None, **backbone)
    pipeline = [dict(type='mmscale.ResizeToResolution'), dict(type='PackDetInputs')]
    folder = tmp_path / 'search'
    (folder / 'weights').mkdir(parents=True)
    torch.save(dict(state_dict=model.state_dict()), folder / 'weights' / 'scaling_stage_0.pth')
    dataset = dict(type='mmscale.DigitsDetection', split='search', pipeline=pipeline)
    Config(
        dict(
            default_scope='mmdet',
            model=dict(type='mmscale.SuperNetDetector', detector=dict(around, backbone=super_net)),
            test_dataloader=dict(dataset=dict(type='mmscale.SeededDataset', dataset=dataset)),
        )
    ).dump(folder / 'search.py')
    score, cost = dict(correct=225, total=1000), dict(flops=1, params=1, acts=1)
    member = dict(scaling_stage=0, score=score, cost=cost, arch=ARCH.to_json())
    result = dict(schema=1, scaling_stages=[member], settings={}, seed=5)
    (folder / 'result.json').write_text(json.dumps(result))
    found = export(folder / 'result.json', tmp_path / 'out', formats=['mmdet', 'mmpretrain'])
    assert sorted(found.files) == ['arch.json', 'mmdet_config.py', 'weights.pth']
    card = (tmp_path / 'out' / 'model_card.md').read_text()
    assert 'COCO mAP 0.225' in card and 'images right' not in card
    written = Config.fromfile(tmp_path / 'out' / 'mmdet_config.py')
    assert written.test_dataloader.dataset.pipeline[0].resolution == ARCH.resolution
    again = build_module(written.model, 'mmdet').eval()
    again.load_state_dict(torch.load(written.load_from, weights_only=True)['state_dict'])
    images = torch.randn(1, 3, 64, 64)
    for one, other in zip(again.extract_feat(images), model.extract_feat(images), strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
def test_onnx_of_a_backbone_with_its_neck(exported, tmp_path, randomise):
    pytest.importorskip('onnxruntime')
    config = exported('retinanet')
    config.model.backbone.neck.out_channels = 8
    backbone = randomise(build_module(config.model.backbone, 'mmdet'), weights=True)
    program = programs.Program(backbone)
    images = programs.example_images((3, 64, 64))
    captured = programs.capture(program, images)
    programs.save_onnx(captured, program, images, tmp_path / 'model.onnx')
    assert program.outputs == [f'feature_{i}' for i in range(5)]


@pytest.mark.slow
def test_a_detector_is_exported_with_its_own_config(exported, tmp_path):
    config = exported('atss')
    config.model.backbone.init_cfg = None
    config.model.backbone.neck.out_channels = 32
    config.model.bbox_head.update(in_channels=32, feat_channels=32, stacked_convs=1)
    config.model.data_preprocessor.pad_size_divisor = 32
    path = tmp_path / 'train.py'
    config.dump(path)
    model = build_module(config.model, 'mmdet').eval()
    checkpoint = tmp_path / 'epoch_1.pth'
    torch.save(dict(state_dict=model.state_dict()), checkpoint)
    found = export(
        path,
        tmp_path / 'out',
        checkpoint,
        formats=['mmdet', 'mmpretrain', 'pt2'],
        input_size=(64, 96),
    )
    assert sorted(found.files) == ['arch.json', 'mmdet_config.py', 'model.pt2', 'weights.pth']
    written = Config.fromfile(tmp_path / 'out' / 'mmdet_config.py')
    again = build_module(written.model, 'mmdet').eval()
    again.load_state_dict(torch.load(written.load_from, weights_only=True)['state_dict'])
    images = torch.randn(2, 3, 64, 64)
    expected = model.extract_feat(images)
    for one, other in zip(again.extract_feat(images), expected, strict=True):
        assert torch.equal(one, other)
    images = torch.randn(2, 3, 64, 96)
    program = torch.export.load(tmp_path / 'out' / 'model.pt2').module()
    for one, other in zip(program(images), model.extract_feat(images), strict=True):
        torch.testing.assert_close(one, other)
    assert 'init_detector' in (tmp_path / 'out' / 'model_card.md').read_text()
