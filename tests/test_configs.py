"""Every config under configs/ says in its name what it is, loads, and builds its model.

The models of detection, which need mmdet, are built in tests/det.
"""

import ast
import csv
import importlib.util
import re
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
from mmscale.arch import Scaling, SearchSpace, get_arch
from mmscale.cost import CostTable, count
from mmscale.models import ArchNet, SuperNet
from mmscale.models.backbones.arch_net import scaled_arch
from mmscale.search import FamilyFitness, Feasibility, RandomSearch

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
DATA = Path(__file__).parent / 'data'
ALL = sorted(
    path.relative_to(CONFIGS).as_posix()
    for path in CONFIGS.rglob('*.py')
    if '_base_' not in path.relative_to(CONFIGS).parts
)
EXPERIMENTS = [name for name in ALL if not name.startswith('det/')]
# Bases of the others are mmdet's.
LOADABLE = ALL if importlib.util.find_spec('mmdet') else EXPERIMENTS
SEARCHES = [name for name in EXPERIMENTS if Path(name).name.startswith('search-mcea_')]
# Searches of one network, and of all kinds.
EVOLUTIONS = [name for name in EXPERIMENTS if name.startswith('nas/search-evolution_')]
ALL_SEARCHES = [name for name in EXPERIMENTS if Path(name).name.startswith('search-')]
# Scales of one network, and the first of them on ImageNet, which the others inherit.
CHILDREN = [
    name
    for name in EXPERIMENTS
    if re.match('scalenet/(digits|scalenet)-s', name) and '-s0_8xb128' not in name
]
FAST = [name for name in EXPERIMENTS if name.startswith('fast_scaling/')]
# Searches by gradient.
DMS = [name for name in EXPERIMENTS if name.startswith('dms/dms-')]
# Language models, whose networks are of transformers.
LANGUAGE = [name for name in EXPERIMENTS if 'gpt2' in name or 'llama' in name]
# Recipes for what searches have left of mmpretrain's own networks.
STOCK = ['dms/deit-mini_digits.py', 'dms/resnet18-w16_digits.py']
SPACES = sorted(path.stem for path in (CONFIGS / '_base_' / 'search_spaces').glob('*.py'))


def load(name):
    return Config.fromfile(CONFIGS / name, import_custom_modules=False)


def bases(name):
    """The configs of this project that a config is a child of, those under _base_ left out."""
    for statement in ast.parse((CONFIGS / name).read_text(encoding='utf-8')).body:
        if isinstance(statement, ast.Assign) and statement.targets[0].id == '_base_':
            named = ast.literal_eval(statement.value)
            for base in [named] if isinstance(named, str) else named:
                path = (CONFIGS / name).parent / base
                if '::' not in base and '_base_' not in base:
                    yield path.resolve().relative_to(CONFIGS).as_posix()


def is_search(name):
    return Path(name).name.startswith(('dms-', 'search-'))


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


def logits_of(head):
    """Outputs of a head with or without a hidden layer."""
    return (head.layers[-1].fc if hasattr(head, 'layers') else head.fc).out_features


def test_there_are_configs():
    assert len(EXPERIMENTS) >= 12
    assert {'scalenet/search-mcea_digits.py', 'scalenet/search-mcea_in1k.py'} <= set(SEARCHES)
    assert len(CHILDREN) == 10 and len(SPACES) >= 2 and len(FAST) >= 5
    assert len(ALL) > len(EXPERIMENTS) + 20


@pytest.mark.parametrize('name', LOADABLE)
def test_a_name_says_what_the_config_is(name):
    """Words of a part are joined by hyphens, parts by underscores, as mmpretrain does."""
    config, stem = load(name), Path(name).stem
    word = r'[a-z0-9.]+'
    assert re.fullmatch(rf'{word}(-{word})*(_{word}(-{word})*)*', stem)
    model, test_cfg = config.model, config.get('test_cfg') or {}
    assert stem.startswith('dms-') == (model.type == 'mmscale.DMSModel')
    assert stem.startswith('search-') == test_cfg.get('type', '').startswith('mmscale.')
    is_super_supernet = model.type.startswith('mmscale.SuperNet') and not is_search(name)
    assert ('supernet' in stem) == is_super_supernet
    loader = config.get('train_dataloader') or config.test_dataloader
    datasets = {
        'digits': ('mmscale.ClutteredDigits', 'mmscale.DigitsDetection'),
        'in1k': ('ImageNet',),
        'coco': ('CocoDataset',),
        'stdlib': ('mmscale.StandardLibrary',),
        'alpaca': ('mmscale.TokenFile',),
    }
    kinds = [part for _, part in typed(loader.dataset.to_dict())]
    data = stem.removeprefix('dms-').split('_')[-1].split('-')[0]
    assert set(datasets[data]) & set(kinds), f'{data}, {kinds}'


@pytest.mark.parametrize('name', [name for name in LOADABLE if re.search(r'_\d+xb\d', name)])
def test_a_name_says_how_long_and_on_what_it_trains(name):
    config = load(name)
    found = re.search(r'_(\d+)xb(\d+)(?:-(\d+)e)?(?:-(\d+)i)?_', name)
    processes, batch, epochs, iterations = found.groups()
    assert config.train_dataloader.batch_size == int(batch)
    if 'auto_scale_lr' in config and 'rtmdet' not in name:  # mmdet's says 16 for 8 x 32
        assert config.auto_scale_lr.base_batch_size == int(processes) * int(batch)
    if iterations:
        assert config.train_cfg.max_iters == int(iterations)
    if epochs:
        iterations = config.train_cfg.get('max_iters', 0)
        images = iterations * int(processes) * int(batch)
        found = config.train_cfg.get('max_epochs', round(images / 1_281_167))
        assert found == int(epochs)


@pytest.mark.parametrize('name', [name for name in LOADABLE if '/dms-' in name])
def test_a_search_by_gradient_says_what_is_left(name):
    target = load(name).model.target
    said = re.findall(r'-([\d.]+)(mf|gf|b)(?=[_-])', name)
    if said:
        number, unit = said[-1]
        (value,) = target.values()
        assert float(number) * {'mf': 1e6}.get(unit, 1e9) == pytest.approx(value, rel=0.005)
    else:
        assert target == 0.5


@pytest.mark.parametrize('name', LOADABLE)
def test_a_config_is_named_after_its_network(name):
    model = load(name).model
    while 'backbone' not in model:
        model = model.get('detector') or model.get('model')
        if model is None or model.type in ('mmscale.CausalLM', 'mmscale.DistilledCausalLM'):
            return
    arch = model.backbone.get('arch')
    if str(arch).startswith('work_dirs/'):
        # What a search leaves; the config is named after its space.
        assert Path(arch).parts[1].partition('_')[2].rpartition('_')[0] in name
    elif model.backbone.type == 'mmscale.ArchNet' and arch is not None:
        network = Path(arch).stem if arch.endswith('.json') else arch.lower()
        assert network.replace('-', '') in Path(name).stem.replace('-', '')
    elif model.backbone.type.startswith('ResNet'):
        depth, width = model.backbone.depth, model.backbone.get('base_channels', 64)
        said = re.search(r'(?:resnet|_r)(\d+)(?:-w(\d+))?(?:-\d+gf)?_', name)
        assert (int(said[1]), int(said[2] or 64)) == (depth, width)


def test_a_search_is_on_top_of_its_network_and_never_below_one():
    compared = 0
    for name in ALL:
        for base in bases(name):
            assert is_search(name) or not is_search(base), f'{name} is a child of {base}'
            if name in LOADABLE and is_search(name) and not is_search(base):
                model = load(name).model
                assert model.get('model', model) == load(base).model, name
                compared += 1
    assert compared >= 7


def test_what_is_deleted_makes_room_for_another_class():
    for path in CONFIGS.rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            keys = {key.arg for key in getattr(node, 'keywords', ())}
            # `None` is **: of a class that a variable holds. A loader takes the place of none.
            assert '_delete_' not in keys or keys & {'type', None, 'batch_size'}, path


@pytest.mark.parametrize('name', FAST)
def test_fast_scaling_has_the_networks_of_the_papers_code(name):
    rows = {}
    with (DATA / 'pycls_complexity.csv').open(encoding='utf-8', newline='') as file:
        for row in csv.DictReader(file):
            if row['strategy'] == 'dWr':
                rows[row['base'].lower(), float(row['scale'])] = row
    with (DATA / 'regnetz_published.csv').open(encoding='utf-8', newline='') as file:
        for row in csv.DictReader(file):
            rows[row['base'].lower(), float(row['scale_factor'])] = row
    base, factor = re.fullmatch(r'fast_scaling/(.+)-fast-(.+)x_.*', name).groups()
    golden, backbone = rows[base, float(factor)], load(name).model.backbone
    arch = scaled_arch(backbone.arch, backbone.scaling)
    cost = count(arch, 'pycls')
    assert [arch.resolution, cost.flops, cost.params, cost.acts] == [
        int(golden[key]) for key in ('resolution', 'flops', 'params', 'acts')
    ]


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
    if config.model.backbone.type == 'mmscale.ArchNet':
        # A recipe for any Arch of the space; a child or a search names one.
        arch = config.model.backbone.arch
        if arch is None:
            space = SearchSpace(**load('_base_/search_spaces/digits.py').space)
            config.model.backbone.arch = space.largest().to_json()
        elif arch.startswith('work_dirs/'):
            search = load(f'nas/{Path(arch).parts[1]}.py')
            space = SearchSpace(**search.model.backbone.space)
            config.model.backbone.arch = space.smallest().to_json()
    model = build_model(config)
    assert isinstance(model.backbone, ArchNet)
    assert all(tensor.is_meta for tensor in model.parameters())
    assert logits_of(model.head) == config.data_preprocessor.num_classes
    params = sum(tensor.numel() for tensor in model.parameters())
    if isinstance(model.backbone, SuperNet):
        assert params >= count(model.backbone.space.largest()).params
    else:
        assert params == count(model.backbone.arch).params


@pytest.mark.parametrize('name', CHILDREN)
def test_a_new_scale_is_a_few_lines(name):
    assert len((CONFIGS / name).read_text(encoding='utf-8').splitlines()) <= 10
    # Named like its Arch: a preset or a file.
    assert Path(load(name).model.backbone.arch).stem == Path(name).stem.partition('_')[0]


@pytest.mark.parametrize('name', ALL_SEARCHES)
def test_a_search_has_the_model_that_its_super_supernet_trains(name):
    search = load(name)
    folder, checkpoint = Path(search.load_from).parts[-2:]
    (path,) = CONFIGS.rglob(f'{folder}.py')
    supernet = load(path.relative_to(CONFIGS))
    if 'ofa-mbv3-scaling' in name:
        # Other resolutions, the same weights.
        for config in (search, supernet):
            config.model.backbone.space = SearchSpace(**config.model.backbone.space)
        theirs, ours = (config.model.backbone.space.allocation for config in (supernet, search))
        assert ours.stages == theirs.stages and ours.head == theirs.head
        for config in (search, supernet):
            config.model.backbone.space = None
    assert search.model == supernet.model
    assert search.data_preprocessor == supernet.data_preprocessor
    assert checkpoint == f'iter_{supernet.train_cfg.max_iters}.pth'


@pytest.mark.parametrize('name', EVOLUTIONS)
def test_an_evolution_finds_networks_within_its_budget(name):
    feasibility = feasibility_of(load(name))
    pool = feasibility.draw(np.random.default_rng(0), 64)
    assert len(pool) == 64
    costs = feasibility.cost(pool)
    budget = load(name).test_cfg.budget
    assert (np.abs(costs / budget - 1) <= 0.05).all()


@pytest.mark.parametrize('name', SPACES)
def test_a_space_is_valid_and_its_dict_is_what_configs_see(name):
    path = CONFIGS / '_base_' / 'search_spaces' / f'{name}.py'
    space = SearchSpace(**load(f'_base_/search_spaces/{name}.py').space)
    if '_base_ = ' not in path.read_text(encoding='utf-8'):
        assert str(space) == str(SearchSpace(**runpy.run_path(str(path))['space']))
    assert space.size >= 3969


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


def test_the_digit_search_has_families_to_choose_from():
    config = load('scalenet/search-mcea_digits.py')
    family = FamilyFitness(feasibility_of(config), list(config.test_cfg.weights))
    drawn = RandomSearch(family, 10_000)._families(np.random.default_rng(0))
    families = {(proposal.genes, proposal.strategy) for proposal in drawn}
    assert len(families) >= 50
    assert len({strategy for _, strategy in families}) >= 20


def test_the_published_s0_meets_the_budget_of_the_imagenet_search():
    feasibility = feasibility_of(load('scalenet/search-mcea_in1k.py'))
    genes = np.array([feasibility.space.encode(get_arch('scalenet-s0-search')).genes])
    assert feasibility.base_feasible(genes).all()


def test_the_published_family_can_be_found_by_the_imagenet_search():
    """All of it is in the space, and within the tolerance of its budgets."""
    feasibility = feasibility_of(load('scalenet/search-mcea_in1k.py'))
    genes = np.array([feasibility.space.encode(get_arch('scalenet-s0-search')).genes])
    strategy = (
        Scaling(),
        Scaling(1.04, 1.04, 256 / 224),
        Scaling(1.36, 1.20, 304 / 224),
        Scaling(1.40, 1.40, 354 / 224),
    )
    assert feasibility.feasible(genes, strategy).all()
    for j in (1, 2, 3):
        assert strategy[j] in feasibility.space.scalings(j)


BIG = ('efficientnet-b7', 'llama-7b', 'deit-base')


@pytest.mark.slow
@pytest.mark.parametrize(
    'name',
    [name for name in DMS if not any(big in name for big in BIG)],
)
def test_the_target_of_a_search_by_gradient_is_within_reach(name):
    config = load(name)
    model = {**config.model, 'data_preprocessor': config.get('data_preprocessor')}
    if model['model'].type == 'mmscale.DistilledCausalLM':
        # The teacher has to be trained first.
        model['model'] = dict(type='mmscale.CausalLM', config=model['model'].config)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        built = registry.MODELS.build(model)
    most = 0.75 if 'structure-only' in name else 0.5
    assert 0.1 < built.goal / built.value(built.cost.full) <= most
    assert built.groups.widths and built.groups.depths
    assert [hook.type for hook in config.custom_hooks].count('mmscale.DMSHook') == 1
