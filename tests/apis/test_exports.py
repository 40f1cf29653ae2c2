"""Exports: programs that compute what the network does, files that stand alone, mistakes named."""

import itertools
import json
import random
from dataclasses import asdict, replace

import pytest
import torch
from mmengine.config import Config
from safetensors.torch import load_file

from mmscale.apis.exports import programs
from mmscale.apis.exports.export import export
from mmscale.apis.exports.programs import Program, capture, example_images
from mmscale.apis.networks import build_module, build_network, image_shape
from mmscale.arch import Arch, Block, Head, SqueezeExcite, Stem
from mmscale.cost import count
from mmscale.models.dms import apply_pruning, channel_groups, plan_pruning

CONFIG_FORMATS = ('mmpretrain', 'mmdet')


def block(kind, rng, in_channels, out_channels, stride, padding):
    hidden = {'dsconv': in_channels, 'basic': out_channels}.get(kind, 2 * in_channels)
    depthwise = kind in ('mbconv', 'dsconv')
    same = stride == 1 and in_channels == out_channels
    squeezed = kind != 'basic' and rng.random() < 0.5
    squeeze = SqueezeExcite(3, rng.choice(['relu', 'silu']), rng.choice(['sigmoid', 'hsigmoid']))
    return Block(
        kind,
        rng.choice([3, 5]),
        stride,
        in_channels,
        hidden,
        out_channels,
        groups=hidden if depthwise else rng.choice([1, 2]),
        se=squeeze if squeezed else None,
        act=rng.choice(['relu', 'relu6', 'hswish', 'silu']),
        residual=rng.choice(['none', 'identity'] if same else ['none', 'projection']),
        padding=padding,
        eps=rng.choice([1e-5, 1e-3]),
    )


def random_arch(seed, stages=2):
    """A network of very few layers of any kinds."""
    rng = random.Random(seed)
    padding = rng.choice(['half', 'same'])
    kinds = ['mbconv', 'dsconv', 'fused_mbconv', 'bottleneck', 'basic']
    widths = [rng.choice([4, 6]) for _ in range(stages + 1)]
    stem = Stem(widths[0], rng.choice([1, 3]), padding=padding, max_pool=rng.random() < 0.3)
    blocks = tuple(
        (block(kinds[(seed + i) % 5], rng, one, other, rng.choice([1, 2]), padding),)
        for i, (one, other) in enumerate(itertools.pairwise(widths))
    )
    hidden = rng.choice([0, 0, 7])
    head = Head(rng.choice([0, 9]), hidden, 5)
    return Arch(rng.choice([19, 24]), stem, blocks, head)


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(6))
def test_onnx_computes_what_the_network_does(seed, randomise, tmp_path):
    pytest.importorskip('onnxruntime')
    arch = random_arch(seed, stages=4)
    network = randomise(build_network(arch), weights=True).eval()
    program = Program(network, fuse=seed % 3 == 0)
    images = example_images(image_shape(arch))
    captured = capture(program, images)
    path = tmp_path / 'model.onnx'
    programs.save_onnx(captured, program, images, path)
    assert program.outputs == ['logits']
    # Against the network itself, in another batch size than it was captured with.
    import onnxruntime

    more = torch.randn(5, *image_shape(arch))
    (found,) = onnxruntime.InferenceSession(path).run(None, {'images': more.numpy()})
    expected = network(more).detach()
    assert (expected[0] - expected[1]).abs().max() > 1e-4  # images matter
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-3, atol=1e-4)


def test_feature_maps_of_a_backbone(randomise, tmp_path):
    pytest.importorskip('onnxruntime')
    arch = random_arch(3)
    backbone = build_module(dict(type='mmscale.ArchNet', arch=arch, out_indices=(0, 1)))
    program = Program(randomise(backbone, weights=True))
    images = example_images(image_shape(arch))
    captured = capture(program, images)
    programs.save_onnx(captured, program, images, tmp_path / 'a.onnx')
    assert programs.save_program(captured, program, images, tmp_path / 'a.pt2') == 0
    assert program.outputs == ['feature_0', 'feature_1']


def test_a_difference_is_an_error(randomise):
    network = build_network(random_arch(0))
    program, other = Program(network), Program(randomise(network))
    images = example_images(image_shape(random_arch(0)))
    with pytest.raises(ValueError, match=r'model\.onnx: outputs differ from the network by'):
        programs.difference('model.onnx', program, images, other.run)
    with pytest.raises(ValueError, match='by nan'):
        programs.difference('it', program, images, lambda x: [program(x) * float('nan')])

    def of_one_size(batch):
        assert batch.shape == images.shape or len(batch) == 1, 'a guard'
        return program.run(batch)

    message = r'^dynamic_size: it fails with images of .* a guard.*; the network wants one size'
    with pytest.raises(ValueError, match=message):
        programs.difference('it', program, images, of_one_size, larger=images.repeat(1, 1, 2, 2))


# ---------------------------------------------------------------------- folders


@pytest.fixture
def arch():
    """A network with feature maps of strides 4 and 8, for gray images."""
    stages = tuple(
        (Block('mbconv', 3, 2, before, 8, after, 8),)
        for before, after in ((4, 6), (6, 8))
    )  # fmt: skip
    return Arch(24, Stem(4, in_channels=1), stages, Head(10, 0, 7))


@pytest.fixture
def network(arch, randomise):
    return randomise(build_network(arch), weights=True).eval()


@pytest.fixture
def checkpoint(network, tmp_path):
    path = tmp_path / 'epoch_3.pth'
    meta = dict(epoch=3, seed=4, experiment_name='machine-x')
    torch.save(dict(meta=meta, state_dict=network.state_dict(), optimizer={}), path)
    return path


@pytest.fixture
def result(arch, network, checkpoint, tmp_path):
    """A work dir as a search leaves it."""
    folder = tmp_path / 'search'
    (folder / 'weights').mkdir(parents=True)
    cost = asdict(count(arch))
    members = [
        dict(scaling_stage=j, score=dict(correct=3, total=4), cost=cost, arch=arch.to_json())
        for j in range(2)
    ]
    data = dict(schema=1, scaling_stages=members, settings={}, seed=5, config_hash='c0ffee')
    (folder / 'result.json').write_text(json.dumps(data))
    checkpoint.rename(folder / 'weights' / 'scaling_stage_1.pth')
    dataset = "dict(type='mmscale.ClutteredDigits', split='search', data_root='/home/me')"
    (folder / 'search-mcea_digits.py').write_text(
        f'data_preprocessor = dict(mean=[52.7], std=[53.6], num_classes=7)\n'
        f'test_dataloader = dict(dataset={dataset})\n'
    )
    return folder / 'result.json'


def plain(value):
    if isinstance(value, dict):
        return all(isinstance(key, str) and plain(one) for key, one in value.items())
    return isinstance(value, (torch.Tensor, int, float, str))


def test_of_a_search(result, arch, network, tmp_path):
    out = tmp_path / 'exported'
    exported = export(result, out, scaling_stage=1, formats=CONFIG_FORMATS)
    assert sorted(path.name for path in out.iterdir()) == [
        'arch.json',
        'mmdet_config.py',
        'mmpretrain_config.py',
        'model_card.md',
        'weights.pth',
    ]
    assert sorted(exported.files) == sorted({p.name for p in out.iterdir()} - {'model_card.md'})
    content = torch.load(out / 'weights.pth', weights_only=True)
    assert plain(content)
    assert Arch.from_json(json.loads(content['arch'])) == Arch.from_json(out / 'arch.json') == arch
    card = (out / 'model_card.md').read_text()
    for text in ('3 of 4', 'ClutteredDigits, split search', 'c0ffee', 'epoch 3', '[52.7]',
                 '`mmscale` convention', exported.files['weights.pth']):  # fmt: skip
        assert text in card
    for text in (str(tmp_path), '/home/me', 'machine-x'):
        assert text not in card
    # The folder can be moved, and its config then builds the network with its weights.
    moved = out.rename(tmp_path / 'moved')
    config = Config.fromfile(moved / 'mmpretrain_config.py')
    assert config.load_from == str(moved / 'weights.pth')
    assert config.data_preprocessor == dict(mean=[52.7], std=[53.6], num_classes=7)
    built = build_module(config.model).eval()
    built.load_state_dict(torch.load(config.load_from, weights_only=True)['state_dict'])
    images = example_images(image_shape(arch))
    assert torch.equal(built(images), network(images))
    # What was exported can be exported again.
    export(moved / 'weights.pth', tmp_path / 'again', formats=[])
    for wrong in (dict(options=['a=1']), dict(random_weights=True), dict(scaling_stage=0)):
        with pytest.raises(ValueError, match=r'weights\.pth'):
            export(moved / 'weights.pth', tmp_path / 'no', formats=[], **wrong)
    again = torch.load(tmp_path / 'again' / 'weights.pth', weights_only=True)
    assert all(torch.equal(again['state_dict'][k], v) for k, v in content['state_dict'].items())


def test_all_formats_with_folded_norms(arch, checkpoint, network, tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    exported = export(arch, tmp_path / 'out', checkpoint, fuse=True)
    assert set(exported.differences) == {
        'BNs folded into convolutions',
        'model.onnx',
        'model.pt2',
    }
    assert max(exported.differences.values()) < 1e-4
    assert (exported.cost.flops, exported.convention) == (exported.to_json()['flops'], 'mmscale')
    images = torch.randn(2, *image_shape(arch))
    session = onnxruntime.InferenceSession(tmp_path / 'out' / 'model.onnx')
    assert session.get_inputs()[0].shape == ['batch', 1, 24, 24]
    (found,) = session.run(None, {'images': images.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), network(images), rtol=1e-3, atol=1e-4)
    loaded = torch.export.load(tmp_path / 'out' / 'model.pt2').module()
    torch.testing.assert_close(loaded(images), network(images), rtol=1e-3, atol=1e-4)
    # Weights stay as they were trained.
    content = torch.load(tmp_path / 'out' / 'weights.pth', weights_only=True)
    assert content['state_dict'].keys() == network.state_dict().keys()


def test_of_a_config(arch, checkpoint, network, tmp_path):
    config = tmp_path / 'train.py'
    model = dict(
        type='ImageClassifier',
        backbone=dict(
            type='mmscale.ArchNet',
            arch='arch.json',
            init_cfg=dict(type='Pretrained', checkpoint='gone.pth'),
        ),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=7, in_channels=10, topk=(1,)),
    )
    dataset = dict(type='CIFAR10', data_root='/data')
    settings = f'model = {model!r}\nload_from = "gone.pth"\n'
    resize = dict(type='mmscale.ResizeToResolution')
    test_data = dict(dataset=dict(dataset, pipeline=[resize, dict(type='PackInputs')]))
    config.write_text(
        f'{settings}train_dataloader = dict(dataset={dataset!r})\n'
        f'test_dataloader = {test_data!r}\n'
    )
    arch.save(tmp_path / 'other.json')
    options = [f'model.backbone.arch={tmp_path}/other.json']
    export(config, tmp_path / 'out', checkpoint, options=options, formats=CONFIG_FORMATS)
    written = Config.fromfile(tmp_path / 'out' / 'mmpretrain_config.py')
    assert written.model.backbone.arch == str(tmp_path / 'out' / 'arch.json')
    assert 'init_cfg' not in written.model.backbone
    assert written.train_dataloader.dataset == dataset
    # mmpretrain's inferencers know nothing of the hook that would say it.
    assert written.test_dataloader.dataset.pipeline[0].resolution == arch.resolution
    assert Arch.from_json(tmp_path / 'out' / 'arch.json') == arch
    assert 'trained on | CIFAR10' in (tmp_path / 'out' / 'model_card.md').read_text()
    # An Arch with a config around it is the same.
    export(arch, tmp_path / 'arch', checkpoint, config=config, formats=['mmpretrain'])
    other = Config.fromfile(tmp_path / 'arch' / 'mmpretrain_config.py')
    assert other.model.head == written.model.head
    with pytest.raises(ValueError, match=r'head\.fc\.weight \(7, 10\), expected \(3, 10\)'):
        options.append('model.head.num_classes=3')
        export(config, tmp_path / 'bad', checkpoint, options=options, formats=[])


def test_classes_are_those_of_the_weights(arch, checkpoint, tmp_path):
    preset = replace(arch, head=replace(arch.head, num_classes=1000))
    exported = export(preset, tmp_path / 'out', checkpoint, formats=[])
    assert exported.notes == ['The head has the 7 classes of the weights, not 1000.']
    assert Arch.from_json(tmp_path / 'out' / 'arch.json') == arch


def test_a_backbone_alone(arch, network, tmp_path):
    path = tmp_path / 'backbone.pth'
    torch.save(network.backbone.state_dict(), path)
    exported = export(arch, tmp_path / 'out', path, formats=['mmpretrain', 'mmdet', 'pt2'])
    assert 'no head' in exported.notes[0]
    program = torch.export.load(tmp_path / 'out' / 'model.pt2').module()
    images = example_images(image_shape(arch), 2)
    (found,) = program(images)
    torch.testing.assert_close(found, network.backbone(images)[0])


def test_a_failed_check_leaves_everything_as_it_was(arch, checkpoint, tmp_path, monkeypatch):
    out = tmp_path / 'out'
    export(arch, out, checkpoint, formats=[], name='first')

    def differ(*_):
        raise ValueError('model.pt2: outputs differ')

    monkeypatch.setattr(programs, 'capture', differ)  # when weights and configs are written
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(ValueError, match='outputs differ'):
        export(arch, out, checkpoint, formats=['pt2'], name='second', overwrite=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    with pytest.raises(ValueError, match='outputs differ'):
        export(arch, tmp_path / 'new', checkpoint, formats=['pt2'])
    monkeypatch.undo()
    export(arch, out, checkpoint, formats=[], name='second', overwrite=True)
    assert '\n# second\n' in (out / 'model_card.md').read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ['epoch_3.pth', 'out']


def test_only_an_export_is_overwritten(arch, checkpoint, tmp_path):
    out = tmp_path / 'out'
    export(arch, out, checkpoint, formats=[])
    with pytest.raises(ValueError, match=r'out exists: name another folder, or give overwrite'):
        export(arch, out, checkpoint)
    (tmp_path / 'link').symlink_to(out)
    export(arch, tmp_path / 'link', checkpoint, formats=[], name='other', overwrite=True)
    assert (tmp_path / 'link').is_symlink() and 'other' in (out / 'model_card.md').read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ['epoch_3.pth', 'link', 'out']
    (out / 'notes.txt').write_text('mine')
    with pytest.raises(ValueError, match=r'out holds notes\.txt, which is of no export'):
        export(arch, out, checkpoint, overwrite=True)
    assert (out / 'notes.txt').read_text() == 'mine'
    with pytest.raises(ValueError, match='is a file, not a folder'):
        export(arch, checkpoint, checkpoint)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(checkpoint=None), 'a checkpoint with the weights is needed'),
        (dict(checkpoint='gone.pth'), r'checkpoint=gone\.pth is not a file'),
        (dict(source='ResNet-18'), r'backbone\.stem\.conv\.weight \(4, 1, 3, 3\), expected'),
        (dict(source='Resnet-19'), 'Resnet-19'),
        (dict(formats=['tflite']), "formats='tflite' is not one of"),
        (dict(formats=['mmdet'], fuse=True), 'fuse is about onnx and pt2'),
        (dict(input_size=(0, 32)), r'input_size=\(0, 32\) must be two integers'),
        (dict(detector='yolo'), "detector='yolo' is not one of retinanet"),
        (dict(detector='faster-rcnn'), 'no feature maps of stride 16, 32, its network stages'),
        (dict(scaling_stage=1), 'is no result of a search'),
        (dict(options=['a=1']), r"options=\['a=1'\]: arch is no config"),
        (dict(random_weights=True), 'random_weights and checkpoint=.*: give one of them'),
        (dict(dynamic_size=True), 'dynamic_size is about onnx and pt2'),
        (dict(dtype='float16'), 'dtype is about onnx and pt2'),
        (dict(dtype='int8', formats=['pt2']), "dtype='int8' is not one of float32, float16"),
        (dict(license='mine: [x'), r"license='mine: \[x' must be an identifier"),
    ],
)
def test_mistakes(changes, message, arch, checkpoint, tmp_path):
    settings = dict(source=arch, checkpoint=checkpoint, formats=['mmdet'], out=tmp_path / 'out')
    with pytest.raises(ValueError, match=message):
        export(**{**settings, **changes})
    assert not (tmp_path / 'out').exists()


def test_mistakes_with_a_search(result, arch, tmp_path):
    out = tmp_path / 'out'
    with pytest.raises(ValueError, match=r'scaling stage 2: .* has 0 to 1'):
        export(result, out, scaling_stage=2)
    with pytest.raises(ValueError, match=r'scaling_stage_0\.pth is not a file'):
        export(result, out, scaling_stage=0)
    weights = result.parent / 'weights' / 'scaling_stage_1.pth'
    state = torch.load(weights, weights_only=True)['state_dict']
    del state['backbone.stages.0.0.expand.conv.weight']
    torch.save(state, weights)
    with pytest.raises(ValueError, match=r'1 missing: backbone\.stages\.0\.0\.expand\.conv\.w'):
        export(result, out, scaling_stage=1)
    assert not out.exists()


@pytest.mark.parametrize('backbone', ['resnet', 'arch_net'])
def test_a_pruned_model(backbone, arch, randomise, tmp_path):
    """It has channels of no Arch: the file that says which stays beside its config."""
    torch.manual_seed(0)
    parts = dict(type='mmpretrain.ResNet', depth=18, in_channels=1, base_channels=8)
    width = 64
    if backbone == 'arch_net':
        parts, width = dict(type='mmscale.ArchNet', arch=arch.to_json()), 10
    whole = dict(
        type='mmpretrain.ImageClassifier',
        backbone=parts if backbone == 'arch_net' else dict(parts, stem_channels=8),
        neck=dict(type='mmpretrain.GlobalAveragePooling'),
        head=dict(type='mmpretrain.LinearClsHead', num_classes=4, in_channels=width),
        data_preprocessor=dict(mean=[52.7], std=[53.6]),
    )
    model = randomise(build_module(whole), weights=True)
    groups = channel_groups(model, [torch.rand(1, 1, 24, 24)])
    keep = {group.name: range(0, group.size, 2) for group in groups if group.size > 2}
    pruning = plan_pruning(model, groups, keep)
    small = apply_pruning(model, pruning).eval()
    torch.save(small.state_dict(), tmp_path / 'a.pth')
    (tmp_path / 'in.json').write_text(json.dumps(pruning.to_json()))
    wrapper = dict(type='mmscale.PrunedModel', pruned='{{ fileDirname }}/in.json', model=whole)
    pipeline = [dict(type='mmscale.ResizeToResolution', resolution=24)]
    (tmp_path / 'retrain.py').write_text(
        f"default_scope = 'mmpretrain'\nmodel = {wrapper!r}\ntest_pipeline = {pipeline!r}\n"
    )
    formats = ['mmpretrain', 'pt2']
    found = export(tmp_path / 'retrain.py', tmp_path / 'out', tmp_path / 'a.pth', formats=formats)
    names = {'pruned.json', 'weights.pth', 'mmpretrain_config.py', 'model.pt2'}
    assert found.files.keys() == names  # no Arch: that of the network before would be wrong
    assert found.cost.params == sum(p.numel() for p in small.parameters())
    moved = (tmp_path / 'out').rename(tmp_path / 'moved')
    assert '1 x 24 x 24' in (moved / 'model_card.md').read_text()
    config = Config.fromfile(moved / 'mmpretrain_config.py')
    assert config.model.pruned == str(moved / 'pruned.json')
    again = build_module(config.model).eval()
    again.load_state_dict(torch.load(moved / 'weights.pth', weights_only=True)['state_dict'])
    images = torch.randn(2, 1, 24, 24)
    assert torch.equal(again(images), small(images))
    assert 'minus [52.7]' in (moved / 'model_card.md').read_text()


@pytest.mark.parametrize(
    ('kind', 'instead'),
    [
        ('DMSModel', r'tools/prune\.py'),
        ('SuperNetClassifier', r'result\.json'),
        ('SuperNetDetector', r'result\.json'),
    ],
)
def test_a_model_of_many_networks_is_refused(kind, instead, checkpoint, tmp_path):
    config = tmp_path / 'many.py'
    config.write_text(f"model = dict(type='mmscale.{kind}', model=dict(type='x'))\n")
    with pytest.raises(ValueError, match=f'{kind} is not one network: .*{instead}'):
        export(config, tmp_path / 'out', checkpoint)


def test_onnx_missing(arch, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(programs, 'ONNX_PACKAGES', ('onnx_of_tomorrow',))
    with pytest.raises(ValueError, match='pip install onnx_of_tomorrow, or leave it out with'):
        export(arch, tmp_path / 'out', checkpoint)


def test_onnx_with_a_torch_that_is_too_old(arch, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(programs, 'ONNX_TORCH', (97, 1))
    with pytest.raises(ValueError, match=r'needs torch 97\.1 or newer, found .*, or leave it'):
        export(arch, tmp_path / 'out', checkpoint)


def test_safetensors_hold_the_same_weights(result, tmp_path):
    formats = ['safetensors', 'mmpretrain']
    found = export(result, tmp_path / 'out', scaling_stage=1, formats=formats)
    assert 'weights.safetensors' in found.files
    weights = load_file(tmp_path / 'out' / 'weights.safetensors')
    expected = torch.load(tmp_path / 'out' / 'weights.pth', weights_only=True)['state_dict']
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], tensor) for key, tensor in expected.items())
    again = export(tmp_path / 'out' / 'weights.safetensors', tmp_path / 'again', formats=formats)
    digests = [one.files['weights.safetensors'] for one in (found, again)]
    assert again.cost == found.cost and len(digests) == 2
