"""What OpenMMLab's mim and MMEngine's hub find: model-index.yml, metafiles, the wheel's .mim."""

import glob
import importlib.util
import re
import runpy
from pathlib import Path

import pytest
import setuptools
import torch
from mmengine.config import Config
from modelindex.load_model_index import load

from mmscale.apis.networks import build_module
from mmscale.arch import get_arch
from mmscale.cost import count, count_module
from mmscale.models.backbones.arch_net import scaled_arch
from mmscale.visualization.style import short

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'mmscale'
CONFIGS = ROOT / 'configs'
FOLDERS = sorted({path.parent for path in CONFIGS.glob('*/*.py')} - {CONFIGS / '_base_'})


@pytest.fixture(scope='session')
def index():
    """The index as mim reads it: from the package, with paths relative to the file."""
    found = load(str(PACKAGE / '.mim' / 'model-index.yml'))
    found.build_models_with_collections()
    return found


def costly(name):
    """Whether a config holds one network, whose cost is known before anything is run."""
    searched = name.startswith(('dms-', 'search-')) or 'supernet' in name or 'pruned' in name
    return not searched and 'arch-net' not in name


def test_the_index_names_the_metafile_of_every_folder():
    assert len(FOLDERS) >= 5
    imported = re.findall(r'- (\S+)', (ROOT / 'model-index.yml').read_text(encoding='utf-8'))
    assert imported == [f'configs/{folder.name}/metafile.yml' for folder in FOLDERS]


def test_every_config_is_a_model_by_its_own_name(index):
    models = list(index.models)
    paths = [model.config for model in models]
    configs = (path for folder in FOLDERS for path in folder.glob('*.py'))
    assert sorted(paths) == sorted(path.relative_to(ROOT).as_posix() for path in configs)
    for model in models:
        assert (PACKAGE / '.mim' / model.config).is_file()
        # mim looks for names in lower case.
        assert model.name == Path(model.config).stem == model.name.lower()
    assert len({model.name for model in models}) == len(models)


def test_every_folder_is_a_collection_with_its_readme(index):
    readmes = {collection.name: collection.readme for collection in index.collections}
    assert sorted(readmes.values()) == [f'configs/{folder.name}/README.md' for folder in FOLDERS]
    for model in index.models:
        assert Path(readmes[model.in_collection]).parent == Path(model.config).parent


def test_what_has_a_cost_says_it(index):
    for model in index.models:
        keys = {'FLOPs', 'Parameters'} & set(model.metadata.data)
        # The multiply-adds of a detector of two stages depend on its proposals.
        said = {'Parameters'} if 'rcnn' in model.name else {'FLOPs', 'Parameters'}
        assert keys == (said if costly(model.name) else set()), model.name


def input_of(name):
    if name.startswith('causal_lm/'):
        return torch.zeros((1, 128), dtype=torch.long)
    if not name.startswith('det/'):
        return torch.zeros((1, 1, 24, 24))
    if 'digits' in name:
        return torch.zeros((1, 1, 96, 96))
    return torch.zeros((1, 3, 640, 640) if 'rtmdet' in name else (1, 3, 800, 1280))


@pytest.mark.parametrize('folder', FOLDERS, ids=lambda folder: folder.name)
def test_costs_are_those_that_our_tools_count(index, folder):
    package = {'det': 'mmdet', 'causal_lm': 'transformers'}.get(folder.name)
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f'{package} is not installed')
    counted = 0
    for model in index.models:
        if Path(model.config).parent.name != folder.name or not costly(model.name):
            continue
        config = Config.fromfile(ROOT / model.config, import_custom_modules=False)
        backbone = config.model.get('backbone', {})
        if folder.name != 'det' and backbone.get('type') == 'mmscale.ArchNet':
            cost = count(scaled_arch(get_arch(backbone.arch), backbone.get('scaling')))
        else:
            backbone.pop('init_cfg', None)  # a checkpoint that has to be trained first
            module = build_module(config.model, config.default_scope, meta=folder.name == 'det')
            if 'FLOPs' not in model.metadata.data:
                params = sum(parameter.numel() for parameter in module.parameters())
                assert model.metadata.data['Parameters'] == params, model.name
                continue
            name = f'{folder.name}/{model.name}'
            cost = count_module(module, inputs=[input_of(name)], memory=False).cost
        data = model.metadata.data
        assert (data['FLOPs'], data['Parameters']) == (cost.flops, cost.params), model.name
        counted += 1
    assert counted


@pytest.mark.parametrize('folder', FOLDERS, ids=lambda folder: folder.name)
def test_a_readme_has_every_config_and_its_cost(index, folder):
    text = (folder / 'README.md').read_text(encoding='utf-8')
    rows = dict(re.findall(r'^\| \[([^]]+)\]\(\1\.py\) \| (.*) \|$', text, re.MULTILINE))
    in_text = set(re.findall(r'\[([^]]+)\]\(\1\.py\)', text))
    assert in_text == {path.stem for path in folder.glob('*.py')}
    for model in index.models:
        if model.name in rows and costly(model.name):
            data = model.metadata.data
            cells = rows[model.name].split(' | ')
            said = [short(data[key]) if key in data else '-' for key in ('Parameters', 'FLOPs')]
            assert cells[:2] == said, model.name
            for result in model.results or ():
                (value,) = result.metrics.values()
                assert float(cells[2]) == value
            assert model.results or not re.fullmatch(r'[\d.]+', cells[2])


@pytest.mark.parametrize('folder', FOLDERS, ids=lambda folder: folder.name)
def test_links_of_a_readme_lead_somewhere(folder):
    text = (folder / 'README.md').read_text(encoding='utf-8')
    for target, _, heading in re.findall(r'\]\((?!http)([^)#]+)(#([^)]+))?\)', text):
        path = folder / target
        assert path.exists(), target
        if heading:
            titles = re.findall(r'^#+ (.+)$', path.read_text(encoding='utf-8'), re.MULTILINE)
            assert heading in [title.lower().replace(' ', '-') for title in titles]
    for config in re.findall(r'configs/\S+\.py', text):
        assert (ROOT / config).is_file(), config


def test_a_wheel_has_all_of_configs_and_tools(monkeypatch):
    """The links in .mim lead to them, and the patterns of setup.py take every file."""
    arguments = {}
    monkeypatch.setattr(setuptools, 'setup', arguments.update)
    runpy.run_path(str(ROOT / 'setup.py'))
    packaged = {
        (PACKAGE / path).resolve()
        for pattern in arguments['package_data']['mmscale']
        for path in glob.glob(pattern, root_dir=PACKAGE, recursive=True, include_hidden=True)
    }
    files = [ROOT / 'model-index.yml']
    for folder in ('configs', 'tools'):
        assert (PACKAGE / '.mim' / folder).resolve() == ROOT / folder
        files += [path for path in (ROOT / folder).rglob('*') if path.is_file()]
    missing = {path for path in files if '__pycache__' not in path.parts} - packaged
    assert not missing
