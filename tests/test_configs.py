"""Every config under configs/ loads, names parts that exist, and builds its model.

Those of detection, which need mmdet, are tested in tests/det.
"""

import runpy
from pathlib import Path

import mmengine.registry
import mmpretrain.registry
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope, Registry

import mmscale.datasets
import mmscale.engine
import mmscale.evaluation
import mmscale.models  # noqa: F401
from mmscale import registry
from mmscale.arch import SearchSpace, get_arch
from mmscale.cost import CostTable, count
from mmscale.models import ArchNet, SuperNet
from mmscale.search import Archive, FamilyFitness, Feasibility, RandomSearch, Score, Scorer

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
EXPERIMENTS = sorted(
    path.relative_to(CONFIGS).as_posix()
    for path in CONFIGS.rglob('*.py')
    if not {'_base_', 'det'} & set(path.relative_to(CONFIGS).parts)
)
SEARCHES = [name for name in EXPERIMENTS if Path(name).name.startswith('search-mcea_')]
# Scales of one network; ImageNet's S0 is the recipe that the others inherit.
CHILDREN = [name for name in EXPERIMENTS if '-s' in name and '-s0_8xb128' not in name]
# Searches by gradient.
DMS = [name for name in EXPERIMENTS if name.startswith('dms/dms-')]
# Language models, whose networks are of transformers.
LANGUAGE = [name for name in EXPERIMENTS if 'gpt2' in name or 'llama' in name]
# Recipes for what searches have left of mmpretrain's own networks.
STOCK = ['dms/deit-mini_digits.py', 'dms/resnet18-w16_digits.py']
SPACES = sorted(path.stem for path in (CONFIGS / '_base_' / 'search_spaces').glob('*.py'))


def load(name):
    return Config.fromfile(CONFIGS / name, import_custom_modules=False)


def registries(module):
    return [value for value in vars(module).values() if isinstance(value, Registry)]


def typed(part, path=''):
    """Every (path, type) of a config."""
    if isinstance(part, dict):
        if isinstance(part.get('type'), str):
            yield path, part['type']
        for key, value in part.items():
            yield from typed(value, f'{path}.{key}')
    elif isinstance(part, (list, tuple)):
        for i, value in enumerate(part):
            yield from typed(value, f'{path}.{i}')


def is_registered(name):
    scope, _, part = name.rpartition('.')
    if scope == 'mmscale':
        return any(part in found.module_dict for found in registries(registry))
    stock = [*registries(mmpretrain.registry), mmengine.registry.FUNCTIONS]
    return any(found.get(name) is not None for found in stock)


def build_model(config):
    """The model as the Runner would make it, without memory for its weights."""
    model = {**config.model, 'data_preprocessor': config.get('data_preprocessor')}
    with DefaultScope.overwrite_default_scope('mmpretrain'), torch.device('meta'):
        return registry.MODELS.build(model)


def test_there_are_configs():
    assert len(EXPERIMENTS) >= 12
    assert {'scalenet/search-mcea_digits.py', 'scalenet/search-mcea_in1k.py'} <= set(SEARCHES)
    assert len(CHILDREN) >= 5 and len(SPACES) >= 2


@pytest.mark.parametrize('name', EXPERIMENTS)
def test_it_names_only_parts_that_exist(name):
    found = list(typed(load(name).to_dict()))
    assert len(found) > 10
    assert [(path, part) for path, part in found if not is_registered(part)] == []


def test_a_part_that_does_not_exist_would_be_noticed():
    assert not is_registered('mmscale.ArchNets')
    assert not is_registered('ImageClasifier')
    assert is_registered('mmscale.ArchNet') and is_registered('ImageClassifier')
    assert list(typed({'a': [dict(type='X', b=dict(type='Y'))]})) == [
        ('.a.0', 'X'),
        ('.a.0.b', 'Y'),
    ]


@pytest.mark.parametrize('name', STOCK)
def test_a_recipe_of_a_stock_network_trains_what_was_searched(name):
    recipe, search = load(name), load(name.replace('dms/', 'dms/dms-'))
    assert recipe.model == search.model.model
    assert recipe.train_dataloader == search.train_dataloader
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = registry.MODELS.build(recipe.model)
    image = torch.zeros(1, *search.model.input_shape)
    assert model.eval()(image, mode='tensor').shape == (1, 10)


@pytest.mark.parametrize(
    'name', [name for name in EXPERIMENTS if name not in DMS + LANGUAGE + STOCK]
)
def test_its_model_builds(name):
    config = load(name)
    if config.model.type == 'mmscale.DISTClassifier':
        # The teacher has to be trained first.
        for key in ('type', 'teacher', 'teacher_checkpoint'):
            config.model.pop(key)
        config.model.type = 'ImageClassifier'
    if config.model.backbone.type == 'mmscale.ArchNet' and config.model.backbone.arch is None:
        # A recipe for any Arch of the space; a child names one.
        space = SearchSpace(**load('_base_/search_spaces/digits.py').space)
        config.model.backbone.arch = space.largest().to_json()
    model = build_model(config)
    assert isinstance(model.backbone, ArchNet)
    assert all(tensor.is_meta for tensor in model.parameters())
    assert model.head.fc.out_features == config.data_preprocessor.num_classes
    params = sum(tensor.numel() for tensor in model.parameters())
    if isinstance(model.backbone, SuperNet):
        assert params > count(model.backbone.space.largest()).params
    else:
        assert params == count(model.backbone.arch).params


@pytest.mark.parametrize('name', CHILDREN)
def test_a_new_scale_is_a_few_lines(name):
    assert len((CONFIGS / name).read_text(encoding='utf-8').splitlines()) <= 10
    # Named like its Arch: a preset or a file.
    assert Path(load(name).model.backbone.arch).stem == Path(name).stem.partition('_')[0]


@pytest.mark.parametrize('name', SEARCHES)
def test_a_search_has_the_model_that_its_super_supernet_trains(name):
    search = load(name)
    folder, checkpoint = Path(search.load_from).parts[-2:]
    supernet = load(f'scalenet/{folder}.py')
    assert search.model == supernet.model
    assert search.data_preprocessor == supernet.data_preprocessor
    assert checkpoint == f'iter_{supernet.train_cfg.max_iters}.pth'


@pytest.mark.parametrize('name', SPACES)
def test_a_space_is_valid_and_its_dict_is_what_configs_see(name):
    path = CONFIGS / '_base_' / 'search_spaces' / f'{name}.py'
    space = SearchSpace(**runpy.run_path(str(path))['space'])
    assert str(space) == str(SearchSpace(**load(f'_base_/search_spaces/{name}.py').space))
    assert space.size > 10_000


def feasibility_of(config):
    table = CostTable(SearchSpace(**config.model.backbone.space))
    settings = {key: config.test_cfg[key] for key in ('budget', 'tolerance')}
    return Feasibility(table, **settings, metric=config.test_cfg.get('metric', 'flops'))


@pytest.mark.parametrize('name', SEARCHES)
def test_the_budget_of_a_search_is_reachable_at_every_scaling_stage(name):
    config = load(name)
    feasibility = feasibility_of(config)
    assert len(config.test_cfg.weights) == len(feasibility.space.scaling_stages)
    pool = feasibility.draw(np.random.default_rng(0), 256)
    assert len(pool) == 256
    scalable = np.ones(len(pool), dtype=bool)
    for j in range(1, len(feasibility.space.scaling_stages)):
        scalings = feasibility.distinct_scalings(j)
        masks = np.stack([feasibility.scaled_feasible(pool, j, s) for s in scalings])
        assert masks.any(axis=1).sum() >= 3, f'scaling stage {j} offers hardly a choice'
        scalable &= masks.any(axis=0)
    assert scalable.sum() >= 20


def test_the_digit_search_has_families_to_choose_from(tmp_path):
    config = load('scalenet/search-mcea_digits.py')

    class Constant:
        fingerprint = {}

        def evaluate(self, arch):
            return Score(1, 2)

    scorer = Scorer(Archive(tmp_path, {}), Constant())
    family = FamilyFitness(feasibility_of(config), list(config.test_cfg.weights), scorer)
    drawn = RandomSearch(family, 10_000)._families(np.random.default_rng(0))
    families = {(genes.tobytes(), strategy) for genes, strategy in drawn}
    assert len(families) >= 50
    assert len({strategy for _, strategy in families}) >= 20


def test_the_published_s0_meets_the_budget_of_the_imagenet_search():
    feasibility = feasibility_of(load('scalenet/search-mcea_in1k.py'))
    genes = np.array([feasibility.space.encode(get_arch('scalenet-s0-search')).genes])
    assert feasibility.base_feasible(genes).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    'name',
    [name for name in DMS if not any(big in name for big in ('efficientnet-b7', 'llama-7b'))],
)
def test_the_target_of_a_search_by_gradient_is_within_reach(name):
    config = load(name)
    model = {**config.model, 'data_preprocessor': config.get('data_preprocessor')}
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        built = registry.MODELS.build(model)
    assert 0.1 < built.goal / built.value(built.cost.full) <= 0.5
    assert built.groups.widths and built.groups.depths
    assert [hook.type for hook in config.custom_hooks].count('mmscale.DMSHook') == 1
