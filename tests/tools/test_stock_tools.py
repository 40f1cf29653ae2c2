"""mmpretrain's own tools on every kind of our configs, in this process."""

import runpy
import sys
from pathlib import Path
from types import ModuleType

import matplotlib as mpl
import numpy as np
import pytest
from mmengine.config import Config

sys.path.insert(0, str(Path(__file__).parents[1]))

from own_images import ROOT, write_photos

SUPERNET = 'scalenet/supernet_digits'
SEARCH = 'scalenet/search-mcea_digits'
NETWORK = 'scalenet/digits-s1'
BY_GRADIENT = 'dms/dms-digits-s2'
OTHER_BY_GRADIENT = 'dms/dms-resnet18-w16_digits'
RECIPE = 'dms/resnet18-w16_digits'
TEXT = 'causal_lm/gpt2-mini_stdlib'
TEXT_BY_GRADIENT = 'dms/dms-gpt2-mini_stdlib'
COLOUR_NETWORK = 'scalenet/scalenet-s0_8xb128_in1k'
ALL = [SUPERNET, SEARCH, NETWORK, BY_GRADIENT, OTHER_BY_GRADIENT, RECIPE, TEXT, TEXT_BY_GRADIENT,
       COLOUR_NETWORK]  # fmt: skip


@pytest.fixture
def stock_tool(monkeypatch, tmp_path, capfd):
    """A function that runs a tool of mmpretrain's and returns what it wrote."""
    import mmpretrain

    mpl.use('Agg')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('mmengine.runner.loops.time.sleep', lambda seconds: None)
    tools = Path(mmpretrain.__file__).parent / '.mim/tools'

    def run(name, *words):
        monkeypatch.setattr(sys, 'argv', [name, *map(str, words)])
        runpy.run_path(str(tools / name), run_name='__main__')
        return capfd.readouterr().out

    return run


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp('photos')
    write_photos(folder, train=6, test=2)
    return folder


@pytest.fixture
def config_of(tmp_path, tmp_path_factory, photos):
    """A function that writes a child of a config with few images, its own or colour ones."""

    def write(name, own=False):
        config = Config.fromfile(ROOT / 'configs' / f'{name}.py')
        digits = tmp_path_factory.getbasetemp() / 'digits'
        lines = [f"_base_ = '{ROOT}/configs/{name}.py'", f"work_dir = '{tmp_path}/work_dir'"]
        for phase in ('train', 'val', 'test'):
            loader = config.get(f'{phase}_dataloader')
            if loader is None or 'stdlib' in name:
                continue
            # Innermost is what reads images.
            few = f"num_images=12, data_root='{digits}'"
            if own:
                folder = 'train' if phase == 'train' else 'test'
                few = (
                    f"_delete_=True, type='CustomDataset', data_root='{photos}', "
                    f"data_prefix='{folder}', pipeline=[dict(type='LoadImageFromFile'), "
                    "dict(type='mmscale.ResizeToResolution'), dict(type='PackInputs')]"
                )
            elif 'in1k' in name:
                continue
            elif 'dataset' in loader.dataset:
                few = f'dataset=dict({few})'
            lines.append(f'{phase}_dataloader = dict(dataset=dict({few}))')
        path = tmp_path / f'{Path(name).name}.py'
        path.write_text('\n'.join(lines) + '\n')
        return path

    return write


@pytest.mark.parametrize('name', ALL)
def test_get_model_builds_it(name, config_of):
    from mmpretrain import get_model

    assert sum(p.numel() for p in get_model(str(config_of(name))).parameters()) > 1000


@pytest.mark.parametrize('name', [name for name in ALL if name != SEARCH])
def test_vis_scheduler_draws_its_schedule(name, config_of, stock_tool, tmp_path):
    options = ['train_cfg.max_iters=3']
    path = config_of(name)
    words = ['--not-show', '-d', 1000, '-s', tmp_path / 'lr.png', '--cfg-options', *options]
    stock_tool('visualization/vis_scheduler.py', path, *words)
    assert (tmp_path / 'lr.png').stat().st_size > 1000


@pytest.mark.parametrize(
    ('name', 'phase', 'own'),
    [
        (SUPERNET, 'train', False),
        (SEARCH, 'test', False),
        (NETWORK, 'val', False),
        (BY_GRADIENT, 'train', False),
        (RECIPE, 'test', False),
        (SUPERNET, 'train', True),
        (COLOUR_NETWORK, 'test', True),
    ],
)
def test_browse_dataset_shows_its_images(name, phase, own, config_of, stock_tool, monkeypatch):
    from matplotlib import _tight_bbox

    # The tool does not know the signature of today's Matplotlib.
    adjust = _tight_bbox.adjust_bbox
    monkeypatch.setattr(
        _tight_bbox, 'adjust_bbox', lambda fig, box: adjust(fig, box, fig.canvas.get_renderer())
    )
    words = ['--not-show', '-o', 'shown', '-n', 2, '-m', 'pipeline', '-p', phase]
    stock_tool('visualization/browse_dataset.py', config_of(name, own), *words)
    assert len(list(Path('shown').iterdir())) == 2


@pytest.mark.parametrize('name', [SUPERNET, NETWORK, COLOUR_NETWORK])
def test_verify_dataset_finds_the_broken_file(name, config_of, stock_tool, photos):
    path = config_of(name, own=True)
    assert 'no broken file' in stock_tool('misc/verify_dataset.py', path)
    broken = photos / 'train/swans/broken.png'
    broken.write_bytes(b'no image')
    try:
        assert '1 broken files found' in stock_tool('misc/verify_dataset.py', path)
    finally:
        broken.unlink()


def test_get_flops_counts_colour_networks(config_of, stock_tool, tmp_path):
    from mmscale.arch import SearchSpace
    from mmscale.cost import count

    def flops_of(path):
        text = stock_tool('analysis_tools/get_flops.py', path, '--shape', 32)
        return text.partition('Flops: ')[2].split('\n')[0]

    found = flops_of(config_of(COLOUR_NETWORK))
    assert found.endswith('M')
    assert float(found[:-1]) > 1
    # Of a super-supernet it is the largest subnet that runs.
    path = config_of(SUPERNET)
    stages = '[dict(depth=[1.0], width=[1.0], resolution=[24])]'
    space = f'space=dict(in_channels=3, scaling_stages={stages})'
    path.write_text(f'{path.read_text()}model = dict(backbone=dict({space}))\n')
    space = SearchSpace(**Config.fromfile(path).model.backbone.space)
    largest = space.largest()
    found = flops_of(path)
    assert found.endswith('M')
    expected = count(largest).flops * (32 / largest.resolution) ** 2
    assert float(found[:-1]) * 1e6 == pytest.approx(expected, rel=0.3)


@pytest.mark.parametrize('name', [NETWORK, BY_GRADIENT, OTHER_BY_GRADIENT, RECIPE, COLOUR_NETWORK])
def test_the_inferencer_classifies_an_image_at_the_networks_size(name, config_of, monkeypatch):
    from mmpretrain import ImageClassificationInferencer

    inferencer = ImageClassificationInferencer(str(config_of(name)), pretrained=False)
    seen = []
    preprocessor = inferencer.model.data_preprocessor
    preprocessor.register_forward_pre_hook(lambda _, args: seen.append(args[0]['inputs'].shape))
    image = np.random.default_rng(0).integers(0, 255, (40, 56, 3), np.uint8)
    (result,) = inferencer(image)
    assert 0 <= result['pred_score'] <= 1
    backbone = getattr(inferencer.model, 'model', inferencer.model).backbone
    side = getattr(backbone, 'resolution', 24)
    assert seen[0][-2:] == (side, side)


def test_vis_cam_draws_a_network(config_of, stock_tool, photos, monkeypatch, tmp_path):
    """With a stand-in for the package grad-cam, which draws what the layer gives."""

    class Activations:
        def __init__(self, model, layers, reshape):
            self.seen = []
            layers[0].register_forward_hook(lambda *call: self.seen.append(call[2]))

        def release(self):
            pass

    class BaseCAM:
        def __init__(self, model, target_layers):
            self.model, self.target_layers = model, target_layers
            self.activations_and_grads = Activations(model, target_layers, None)

        def __call__(self, inputs, targets, **settings):
            self.model(inputs)
            seen = self.activations_and_grads.seen[-1].detach()
            assert seen.ndim == 4
            return np.ones((1, *inputs.shape[2:]), np.float32)

    class GradCAM(BaseCAM):
        pass

    modules = {name: ModuleType(name) for name in (
        'pytorch_grad_cam', 'pytorch_grad_cam.activations_and_gradients',
        'pytorch_grad_cam.utils', 'pytorch_grad_cam.utils.image',
    )}  # fmt: skip
    package = modules['pytorch_grad_cam']
    package.GradCAMPlusPlus = GradCAM
    package.base_cam = ModuleType('base_cam')
    package.base_cam.BaseCAM = BaseCAM
    modules['pytorch_grad_cam.activations_and_gradients'].ActivationsAndGradients = Activations
    modules['pytorch_grad_cam.utils.image'].show_cam_on_image = lambda image, cam, use_rgb: (
        image * cam[..., None] * 255
    ).astype(np.uint8)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    path = config_of(COLOUR_NETWORK, own=True)
    weights = tmp_path / 'weights.pth'
    import torch
    from mmpretrain import get_model

    torch.save(get_model(str(path)).state_dict(), weights)
    image = next((photos / 'test/lines').iterdir())
    words = [image, path, weights, '--save-path', tmp_path / 'cam.png']
    stock_tool('visualization/vis_cam.py', *words)
    assert (tmp_path / 'cam.png').is_file()


def test_print_config_shows_every_kind(config_of, stock_tool):
    for name in (SUPERNET, SEARCH, BY_GRADIENT, TEXT):
        assert 'mmscale.' in stock_tool('misc/print_config.py', config_of(name))
