"""Exports without weights, of other sizes, in half precision and of any source."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
import yaml
from mmengine.config import Config
from mmpretrain import ImageClassificationInferencer
from safetensors import safe_open
from torch import nn

from mmscale.apis.exports.export import export
from mmscale.apis.exports.programs import Program
from mmscale.apis.networks import build_module, build_network
from mmscale.arch import Arch, Block, Head, Stem
from mmscale.arch.origin import Origin, read_origin
from mmscale.errors import UsageError

# Of strides 4 and 8.
ARCH = Arch(
    24,
    Stem(4, in_channels=1, max_pool=True),
    ((Block('basic', 3, 2, 4, 6, 6, 1, residual='projection'),),),
    Head(10, 0, 7),
)
ORIGIN = Origin('search.py', 'FashionMNIST', (70.0,), (90.0,))
CONFIGS = ['mmpretrain']


def front_matter(out):
    _, matter, card = (out / 'model_card.md').read_text().split('---\n', 2)
    return yaml.safe_load(matter), card


def test_a_network_is_exported_before_it_is_trained(tmp_path):
    ARCH.save(tmp_path / 'mine.json', ORIGIN)
    first, second = (
        export(tmp_path / 'mine.json', tmp_path / name, random_weights=True, formats=CONFIGS)
        for name in 'ab'
    )
    assert first.files['weights.pth'] and first.notes == second.notes
    states = [
        torch.load(tmp_path / name / 'weights.pth', weights_only=True)['state_dict']
        for name in 'ab'
    ]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    matter, card = front_matter(tmp_path / 'a')
    assert 'The weights are random' in card and 'Score' not in card
    assert matter == dict(
        library_name='mmscale',
        tags=['mmscale', 'mmpretrain'],
        pipeline_tag='image-classification',
    )
    assert '| found by | search.py, data: FashionMNIST |' in card
    # Nothing is said twice.
    lines = [line for line in card.splitlines() if line[:1].isalnum() and '```' not in line]
    assert len(set(lines)) == len(lines)
    # What is remembered goes on.
    assert read_origin(tmp_path / 'a' / 'arch.json') == ORIGIN
    export(tmp_path / 'a' / 'weights.pth', tmp_path / 'again', formats=CONFIGS)
    assert read_origin(tmp_path / 'again' / 'arch.json') == ORIGIN


@pytest.mark.parametrize('channels', [1, 3])
def test_mmpretrains_inferencer_runs_an_arch(channels, randomise, tmp_path):
    arch = replace(ARCH, stem=replace(ARCH.stem, in_channels=channels))
    origin = replace(ORIGIN, mean=(70.0,) * channels, std=(90.0,) * channels, to_rgb=channels > 1)
    network = randomise(build_network(arch), weights=True).eval()
    torch.save(network.state_dict(), tmp_path / 'a.pth')
    arch.save(tmp_path / 'a.json', origin)
    out = tmp_path / 'out'
    export(tmp_path / 'a.json', out, tmp_path / 'a.pth', formats=CONFIGS)
    assert front_matter(out)[0]['datasets'] == ['fashion_mnist']
    infer = ImageClassificationInferencer(
        str(out / 'mmpretrain_config.py'), str(out / 'weights.pth')
    )
    picture = np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    if channels == 1:
        picture[:] = picture[..., :1]
    cv2.imwrite(str(tmp_path / 'a.png'), picture)
    (found,) = infer(str(tmp_path / 'a.png'))
    pixels = torch.from_numpy(picture.astype(np.float32)).permute(2, 0, 1)
    pixels = pixels[:1] if channels == 1 else pixels.flip(0)
    expected = network((pixels[None] - 70) / 90).softmax(1)[0]
    np.testing.assert_allclose(found['pred_scores'], expected.detach().numpy(), atol=1e-4)
    wide = infer(np.zeros((30, 50, 3), np.uint8))
    assert wide[0]['pred_scores'].shape == (7,)


def test_a_rectangle_is_height_by_width(tmp_path):
    export(ARCH, tmp_path / 'a', random_weights=True, formats=['pt2', 'mmpretrain'],
           input_size=(24, 40))  # fmt: skip
    program = torch.export.load(tmp_path / 'a' / 'model.pt2').module()
    assert program(torch.zeros(5, 1, 24, 40)).shape == (5, 7)
    with pytest.raises((AssertionError, RuntimeError)):
        program(torch.zeros(5, 1, 40, 24))
    config = Config.fromfile(tmp_path / 'a' / 'mmpretrain_config.py')
    resize = config.test_dataloader.dataset.pipeline[1]
    assert (resize.type, resize.scale) == ('Resize', (40, 24))  # MMCV's (width, height)
    assert '1 x 24 x 40 (channels, height, width)' in front_matter(tmp_path / 'a')[1]
    config.test_dataloader.dataset.pipeline[1] = dict(type='CenterCrop', crop_size=(40, 24))
    config.model.backbone = dict(type='ResNet', depth=18, in_channels=1, base_channels=8)
    config.model.backbone.update(stem_channels=8)
    config.model.head.in_channels = 64
    found = export(config, tmp_path / 'b', random_weights=True, formats=['pt2'])
    assert found.files.keys() == {'weights.pth', 'model.pt2'}
    program = torch.export.load(tmp_path / 'b' / 'model.pt2').module()
    assert program(torch.zeros(1, 1, 24, 40)).shape == (1, 7)


@pytest.mark.parametrize('dtype', ['float32', 'float16'])
def test_images_of_other_sizes_and_half_precision(dtype, randomise, tmp_path):
    onnx, onnxruntime = pytest.importorskip('onnx'), pytest.importorskip('onnxruntime')
    network = randomise(build_network(ARCH), weights=True).eval()
    torch.save(network.state_dict(), tmp_path / 'a.pth')
    out = tmp_path / 'out'
    found = export(
        ARCH, out, tmp_path / 'a.pth', formats=['onnx', 'pt2'], dynamic_size=True, dtype=dtype,
        fuse=dtype == 'float16',
    )  # fmt: skip
    names = {'BNs folded into convolutions', 'float16'} if dtype == 'float16' else set()
    assert found.differences.keys() == {'model.onnx', 'model.pt2', *names}
    session = onnxruntime.InferenceSession(out / 'model.onnx')
    assert session.get_inputs()[0].shape == ['batch', 1, 'height', 'width']
    assert session.get_inputs()[0].type == 'tensor(float)'
    program = torch.export.load(out / 'model.pt2').module()
    within = 1e-3 if dtype == 'float32' else 2e-2
    for batch, height, width in ((1, 24, 24), (2, 32, 128), (1, 96, 64)):
        images = torch.randn(batch, 1, height, width)
        expected = network(images).detach()
        (by_onnx,) = session.run(None, {'images': images.numpy()})
        for one in (torch.from_numpy(by_onnx), program(images)):
            assert one.dtype == torch.float32
            assert (one - expected).abs().max() < within * expected.abs().max().clamp(min=1)
    kinds = {one.data_type for one in onnx.load(out / 'model.onnx').graph.initializer}
    is_half = onnx.TensorProto.FLOAT16 in kinds
    assert is_half == (dtype == 'float16')
    kept = torch.load(out / 'weights.pth', weights_only=True)['state_dict']
    assert torch.equal(kept['head.fc.weight'], network.state_dict()['head.fc.weight'])
    _, card = front_matter(out)
    assert 'images of multiples of 32 pixels' in card and ('in float16' in card) == is_half


def test_what_takes_one_size_only_is_refused_in_one_line(tmp_path):
    network = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 2))
    network.default_cfg = dict(input_size=(3, 8, 8))
    found = export(network, tmp_path / 'a', formats=['pt2', 'mmpretrain'])
    assert found.files.keys() == {'weights.pth', 'model.pt2'}
    assert found.notes == ['No config describes the network: there is none for mmpretrain, mmdet.']
    saved = torch.load(tmp_path / 'a' / 'weights.pth', weights_only=True)['state_dict']
    assert torch.equal(saved['2.weight'], network[2].weight)
    fixed = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    fixed.default_cfg = dict(input_size=(3, 8, 8))
    with pytest.raises(UsageError, match='dynamic_size: the network fails on images of') as error:
        export(fixed, tmp_path / 'b', formats=['pt2'], dynamic_size=True)
    assert '\n' not in str(error.value) and not (tmp_path / 'b').exists()
    with pytest.raises(UsageError, match=r'^the network fails on images of \(3, 9, 9\)'):
        export(fixed, tmp_path / 'b', formats=['pt2'], input_size=(9, 9))


def test_a_config_around_an_arch_is_for_its_images(tmp_path):
    config = tmp_path / 'around.py'
    model = dict(
        type='ImageClassifier',
        backbone=dict(type='mmscale.ArchNet', arch='ResNet-18'),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=3, in_channels=512),
    )
    text = f"default_scope = 'mmpretrain'\nmodel = {model!r}\n"
    config.write_text(f'{text}data_preprocessor = dict(mean=[70.0], std=[90.0])\n')
    out = tmp_path / 'out'
    export(ARCH, out, config=config, random_weights=True, formats=CONFIGS)
    written = Config.fromfile(out / 'mmpretrain_config.py')
    assert (written.model.head.in_channels, written.model.head.num_classes) == (10, 3)
    assert Arch.from_json(out / 'arch.json').head.num_classes == 3
    with pytest.raises(UsageError, match=r'around\.py: its images have 1 channels, and'):
        export('ResNet-18', out, config=config, random_weights=True, overwrite=True)


def test_weights_of_what_was_around_the_network(randomise, tmp_path, monkeypatch):
    network = randomise(build_network(ARCH), weights=True).eval()
    wrapped = torch.compile(nn.DataParallel(network)).state_dict()
    torch.save(dict(state_dict=wrapped), tmp_path / 'a.pth')
    average = torch.optim.swa_utils.AveragedModel(network).state_dict()
    torch.save(dict(ema_state_dict=average), tmp_path / 'b.pth')
    for name in 'ab':
        out = tmp_path / name
        export(ARCH, out, tmp_path / f'{name}.pth', formats=['safetensors'], license='mit')
        with safe_open(out / 'weights.safetensors', framework='pt') as file:
            assert set(file.keys()) == set(network.state_dict())
            key = 'backbone.stem.conv.weight'
            assert torch.equal(file.get_tensor(key), network.state_dict()[key])
            words = file.metadata()
        assert (words['format'], words['name']) == ('pt', 'arch')
        assert Arch.from_json(json.loads(words['arch'])) == ARCH
    matter, card = front_matter(tmp_path / 'a')
    assert matter['license'] == 'mit' and 'safetensors' in matter['tags']
    # The card's own words load it.
    code = next(part for part in card.split('```python\n') if 'load_file' in part).split('```')[0]
    here = {}
    monkeypatch.chdir(tmp_path / 'a')
    exec(code, here)
    images = torch.randn(1, 1, 24, 24)
    assert torch.equal(here['network'](images), network(images))


LAZY = """
from mmcv.transforms import CenterCrop
from mmpretrain.datasets import CustomDataset, LoadImageFromFile, PackInputs
from mmpretrain.evaluation import Accuracy
from mmpretrain.models import GlobalAveragePooling, ImageClassifier, LinearClsHead, ResNet

default_scope = 'mmpretrain'
model = dict(
    type=ImageClassifier,
    backbone=dict(type=ResNet, depth=18, base_channels=8, stem_channels=8),
    neck=dict(type=GlobalAveragePooling),
    head=dict(type=LinearClsHead, num_classes=2, in_channels=64, topk=(1, 5)),
)
crop = dict(type=CenterCrop, crop_size=(48, 32))
pipeline = [dict(type=LoadImageFromFile), crop, dict(type=PackInputs)]
test_dataloader = dict(dataset=dict(type=CustomDataset, data_root="o'neil", pipeline=pipeline))
test_evaluator = [dict(type=Accuracy, topk=(1, 5))]
"""


def test_a_pure_python_config_in_a_folder_with_an_apostrophe(tmp_path):
    folder = tmp_path / "o'neil {x}"
    folder.mkdir()
    (folder / 'lazy.py').write_text(LAZY)
    found = export(folder / 'lazy.py', folder / 'out', random_weights=True, formats=CONFIGS)
    assert '3 x 32 x 48' in front_matter(folder / 'out')[1] and not found.to_json()['notes'][1:]
    config = Config.fromfile(folder / 'out' / 'mmpretrain_config.py')
    assert config.load_from == str(folder / 'out' / 'weights.pth')
    assert config.test_dataloader.dataset.data_root == "o'neil"
    # Of two classes there are no five best ones.
    assert config.test_evaluator[0].topk == config.model.head.topk == (1,)
    state = torch.load(config.load_from, weights_only=True)['state_dict']
    build_module(config.model).load_state_dict(state)
    for name in ('back\\slash', '{{ x }}'):
        with pytest.raises(UsageError, match='MMEngine cannot read configs'):
            export(folder / 'lazy.py', tmp_path / name, random_weights=True, formats=CONFIGS)
        assert not (tmp_path / name).exists()


def test_what_a_module_has_computed_of_its_weights_is_copied():
    network = nn.Linear(2, 2)
    network.kept = [network.weight * 2]
    program = Program(network)
    assert torch.equal(program.model.kept[0], network.weight * 2)
    network.parts = {'deeper': network.weight * 2}
    with pytest.raises(UsageError, match='Linear cannot be copied: RuntimeError: Only Tensors'):
        Program(network)


def test_a_bare_backbone_whose_eval_returns_nothing_is_exported(tmp_path):
    from mmpretrain.models import ResNet

    backbone = ResNet(18, base_channels=8, stem_channels=8)
    assert backbone.eval() is None
    found = export(
        backbone, tmp_path / 'a', formats=['pt2'], random_weights=True, input_size=(32, 32)
    )
    assert found.files.keys() == {'weights.pth', 'model.pt2'}
