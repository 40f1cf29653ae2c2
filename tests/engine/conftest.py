"""Configs that train and search in seconds, and the tools called without a new process."""

import copy
import json
import os
import runpy
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from forked_tools import PATIENCE, Ranks
from mmengine.config import Config
from mmengine.runner import CheckpointLoader, Runner

sys.path.insert(0, str(Path(__file__).parent))

from small_setups import AUGMENT, DEFAULT_SAMPLER, PLAIN, RESOLUTION_SAMPLER, ROOT, SPACE

from mmscale.engine import SubnetEvaluator


@pytest.fixture(scope='session')
def data_root(tmp_path_factory):
    return str(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='session')
def loader(data_root):
    """A function that makes the config of a data loader of a few digits."""

    def make(split, pipeline, sampler, seeded=True, num_images=48, **kwargs):
        dataset = dict(
            type='mmscale.ClutteredDigits',
            split=split,
            num_images=num_images,
            data_root=data_root,
            serialize_data=False,
            pipeline=[*pipeline, dict(type='PackInputs')],
        )
        return dict(
            batch_size=8,
            num_workers=0,
            sampler=sampler,
            dataset=dict(type='mmscale.SeededDataset', dataset=dataset) if seeded else dataset,
            collate_fn=dict(type='default_collate'),
            **kwargs,
        )

    return make


@pytest.fixture
def supernet_config(loader, tmp_path):
    """Trains a super-supernet of the small space, in sandwich mode, with augmentation."""
    return dict(
        default_scope='mmpretrain',
        custom_imports=dict(imports=['mmscale.models', 'mmscale.datasets', 'mmscale.engine']),
        experiment_name=uuid.uuid4().hex,
        work_dir=str(tmp_path / 'supernet'),
        model=dict(
            type='mmscale.SuperNetClassifier',
            mode='sandwich',
            warmup_iters=2,
            backbone=dict(type='mmscale.SuperNet', space=SPACE),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(
                type='LinearClsHead',
                num_classes=10,
                in_channels=12,
                topk=(1,),
                loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
            ),
        ),
        data_preprocessor=dict(num_classes=10, mean=[50.0], std=[50.0]),
        train_dataloader=loader('train', AUGMENT, RESOLUTION_SAMPLER),
        optim_wrapper=dict(
            optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-3),
            clip_grad=dict(max_norm=5.0),
        ),
        param_scheduler=[dict(type='CosineAnnealingLR', by_epoch=False, begin=0, end=8)],
        train_cfg=dict(by_epoch=False, max_iters=8),
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=4),
            checkpoint=dict(type='CheckpointHook', interval=2, by_epoch=False),
        ),
        log_processor=dict(by_epoch=False),
        custom_hooks=[
            dict(type='mmscale.HierarchicalSamplerHook', distribution='uniform'),
            dict(type='mmscale.IterationSeedHook'),
            dict(type='mmscale.StrictLoadHook'),
        ],
        model_wrapper_cfg=dict(type='mmscale.SliceParallel'),
        visualizer=dict(type='UniversalVisualizer', vis_backends=[]),
        randomness=dict(seed=3),
        log_level='WARNING',
    )


@pytest.fixture
def retrain_config(supernet_config, loader, tmp_path):
    """Trains one network with drop path, AdamW and augmentation."""
    from mmscale.arch import SearchSpace

    # A file, as MMEngine takes seconds to print an Arch that is spelt out in a config.
    arch = tmp_path / 'arch.json'
    SearchSpace(**SPACE).largest(0).save(arch)
    config = dict(supernet_config, work_dir=str(tmp_path / 'retrain'))
    config['model'] = dict(
        type='ImageClassifier',
        backbone=dict(type='mmscale.ArchNet', arch=str(arch), drop_path_rate=0.5),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=10, in_channels=12, topk=(1,)),
    )
    config['optim_wrapper'] = dict(optimizer=dict(type='AdamW', lr=0.01, weight_decay=0.1))
    config['custom_hooks'] = [
        dict(type='mmscale.InputResolutionHook'),
        *config['custom_hooks'][1:],
    ]
    for phase in ('val', 'test'):
        config[f'{phase}_cfg'] = dict()
        config[f'{phase}_dataloader'] = loader('test', PLAIN, DEFAULT_SAMPLER, seeded=False)
        config[f'{phase}_evaluator'] = dict(type='Accuracy')
    config['train_cfg'] = dict(by_epoch=False, max_iters=8, val_interval=4)
    del config['model_wrapper_cfg']
    return config


@pytest.fixture
def search_config(supernet_config, loader, tmp_path):
    """Searches the small space; load_from has to be set."""
    config = dict(supernet_config, work_dir=str(tmp_path / 'search'))
    for key in ('train_cfg', 'train_dataloader', 'optim_wrapper', 'param_scheduler'):
        del config[key]
    config['custom_hooks'] = [dict(type='mmscale.StrictLoadHook')]
    config['test_cfg'] = dict(
        type='mmscale.SearchLoop',
        search=dict(type='mmscale.MCEA', population=4, generations=2, rounds=1, num_base_models=2),
        budget=22_000,
        tolerance=0.3,
        weights=[1, 1],
        subnet_evaluator=dict(calibration_images=16, max_images=40),
    )
    config['calibration_dataloader'] = loader('train', PLAIN, DEFAULT_SAMPLER)
    config['test_dataloader'] = loader('search', PLAIN, DEFAULT_SAMPLER)
    config['test_evaluator'] = []
    return config


@pytest.fixture
def write_config(tmp_path):
    """A function that writes a config file, with a module that kills in its custom imports."""

    def write(config, name='config.py', kill=None):
        if kill is not None:
            (tmp_path / 'kill_at_a_moment.py').write_text(kill)
            imports = [*config['custom_imports']['imports'], 'kill_at_a_moment']
            config = dict(config, custom_imports=dict(imports=imports))
        if isinstance(config, Config):
            config = config.to_dict()
        path = tmp_path / name
        Config(config).dump(str(path))
        return path

    return write


@pytest.fixture
def run_tool(tmp_path):
    """A function that runs a tool in a process of its own."""
    # mmpretrain imports mmdet where it can, which takes as long as all the rest.
    (tmp_path / 'mmdet.py').write_text('raise ImportError')

    def run(*command):
        python = [] if str(command[0]).endswith('.sh') else [sys.executable]
        environment = {
            **os.environ,
            'PYTHON': sys.executable,
            'PYTHONPATH': os.pathsep.join([str(ROOT), str(tmp_path)]),
        }
        return subprocess.run(
            [*python, *map(str, command)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )

    return run


@pytest.fixture
def fork_tool(tmp_path):
    """A function that runs a tool in forks of this process; returns exit codes and what they say.

    Of several the others are killed when the first one fails, as by torchrun.
    """

    def run(tool, *arguments, processes=1):
        def before(rank):
            os.chdir(tmp_path)
            sys.path.insert(0, str(tmp_path))

        log = tmp_path / 'forks.log'
        log.unlink(missing_ok=True)
        arguments = [ROOT / 'tools' / tool, *arguments]
        ranks = Ranks(arguments, log, world_size=processes, before=before)
        ranks.processes[0].join(PATIENCE)
        if ranks.processes[0].exitcode:
            ranks.kill(range(1, processes))
        return ranks.wait(), log.read_text()

    return run


@pytest.fixture
def call_tool(monkeypatch, capsys):
    """A function that calls a tool in this process; returns exit code and stderr."""
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')

    def call(name, *arguments):
        monkeypatch.setattr(sys, 'argv', [name, *map(str, arguments)])
        code = 0
        try:
            runpy.run_path(str(ROOT / 'tools' / name), run_name='__main__')
        except SystemExit as error:
            code = error.code
        return code, capsys.readouterr().err

    return call


@pytest.fixture
def read_result():
    return lambda work_dir: json.loads((Path(work_dir) / 'result.json').read_text())


@pytest.fixture
def train():
    """A function that trains a super-supernet of eight iterations and moves it to a path."""

    def train(config, path):
        config = Config(copy.deepcopy(config))
        config.experiment_name = uuid.uuid4().hex
        Runner.from_cfg(config).train()
        (Path(config.work_dir) / 'iter_8.pth').rename(path)
        return path

    return train


@pytest.fixture
def trained(supernet_config, data_root, train):
    """A super-supernet of eight iterations, trained once."""
    path = Path(data_root) / 'supernet.pth'
    return str(path if path.is_file() else train(supernet_config, path))


@pytest.fixture
def make_evaluator(search_config, supernet_config, trained):
    """A function that makes an evaluator of the trained super-supernet, and its model."""
    from mmpretrain.registry import MODELS

    model = MODELS.build(
        {**supernet_config['model'], 'data_preprocessor': supernet_config['data_preprocessor']}
    )
    model.load_state_dict(CheckpointLoader.load_checkpoint(trained)['state_dict'])

    def make(evaluator=SubnetEvaluator, **settings):
        return evaluator(
            model,
            search_config['test_dataloader'],
            search_config['calibration_dataloader'],
            **{'calibration_images': 24, **settings},
        )

    return make, model
