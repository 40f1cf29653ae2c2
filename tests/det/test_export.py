"""Exported classifiers under mmdet's detectors, and exported detectors."""

import pytest
import torch
from mmdet.utils import register_all_modules
from mmengine.config import Config

from mmscale.apis.cost import build_module, build_network
from mmscale.apis.export import export, programs
from mmscale.apis.export.configs import DETECTORS
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
