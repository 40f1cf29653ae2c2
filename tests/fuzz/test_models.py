"""Bad configs of models, bad pruned networks, and bad configs of trainings."""

import argparse
import copy
import json
import uuid

import pytest
from mmengine.config import Config
from small_inputs import SPACE

from mmscale.apis.networks import build_module
from mmscale.arch import SearchSpace
from mmscale.launch.command_line import load_config
from mmscale.launch.runner import build_runner


@pytest.fixture
def classifier(inputs):
    SearchSpace(**SPACE).largest(0).save(inputs / 'arch.json')
    return dict(
        type='ImageClassifier',
        backbone=dict(
            type='mmscale.ArchNet', arch=str(inputs / 'arch.json'), drop_path_rate=0.1,
            out_indices=[2], channels_last=False,
        ),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=10, in_channels=12, topk=[1]),
    )  # fmt: skip


def use_model(data):
    build_module(copy.deepcopy(data))


def test_dms_models(fuzz, classifier, inputs, unchanged):
    settings = dict(
        target=0.5,
        metric='flops',
        input_shape=[1, 12, 12],
        search=['width', 'depth'],
        width_kinds=['width'],
        pipeline='np',
        pretrained=None,
        latency_model=None,
        weight=1.0,
        structure_optimizer=dict(type='SGD', lr=0.05),
        gates=dict(importance='taylor', decay=0.9, divisor=1, minimum=1),
    )

    def use(data):
        with unchanged(inputs):
            use_model({**data, 'type': 'mmscale.DMSModel', 'model': classifier})

    fuzz(0.07, settings, use, name='model')


def test_targets(fuzz, classifier):
    def use(data):
        use_model(dict(type='mmscale.DMSModel', model=classifier, input_shape=(1, 12, 12), **data))

    fuzz(0.01, dict(target=dict(flops=9_000)), use)


def test_backbones(fuzz, classifier, inputs, unchanged):
    valid = {k: v for k, v in classifier['backbone'].items() if k != 'type'}

    def use(data):
        with unchanged(inputs):
            use_model({**classifier, 'backbone': {**data, 'type': 'mmscale.ArchNet'}})

    fuzz(0.03, valid, use, name='backbone')


def test_super_supernets(fuzz):
    valid = dict(mode='sandwich', warmup_iters=2, warmup_scaling_stage=0)

    def use(data):
        use_model(
            dict(
                type='mmscale.SuperNetClassifier',
                backbone=dict(type='mmscale.SuperNet', space=SPACE),
                neck=dict(type='GlobalAveragePooling'),
                head=dict(type='LinearClsHead', num_classes=10, in_channels=12, topk=[1]),
                **data,
            )
        )

    fuzz(0.02, valid, use, name='model')


@pytest.fixture
def pruned(classifier):
    import torch

    from mmscale.models.dms import channel_groups, plan_pruning

    model = build_module(classifier)
    groups = channel_groups(model, [torch.zeros(1, 1, 12, 12)])
    keep = {group.name: [0] for group in groups.widths}
    depth = groups.depths[0]
    keep[depth.name] = list(range(depth.size - 1))
    return plan_pruning(model, groups, keep).to_json()


def test_pruned_networks(fuzz, classifier, pruned, inputs, unchanged):
    def use(data):
        (inputs / 'pruned.json').write_text(json.dumps(data))
        with unchanged(inputs):
            use_model(
                dict(
                    type='mmscale.PrunedModel', model=classifier,
                    pruned=str(inputs / 'pruned.json'),
                )
            )  # fmt: skip

    fuzz(0.06, pruned, use)


def test_pruned_networks_as_texts(fuzz, classifier, pruned, inputs, unchanged):
    def use(text):
        (inputs / 'pruned.json').write_bytes(text if isinstance(text, bytes) else text.encode())
        with unchanged(inputs):
            use_model(
                dict(
                    type='mmscale.PrunedModel', model=classifier,
                    pruned=str(inputs / 'pruned.json'),
                )
            )  # fmt: skip

    fuzz(0.02, pruned, use, text=json.dumps)


@pytest.fixture
def training(classifier, tmp_path):
    dataset = dict(
        type='mmscale.ClutteredDigits', split='train', num_images=8, serialize_data=False,
        data_root=str(tmp_path / 'data'),
        pipeline=[dict(type='mmscale.ResizeToResolution'), dict(type='PackInputs')],
    )  # fmt: skip
    return dict(
        default_scope='mmpretrain',
        custom_imports=dict(imports=['mmscale.models', 'mmscale.datasets', 'mmscale.engine']),
        model=classifier,
        data_preprocessor=dict(num_classes=10, mean=[50.0], std=[50.0]),
        train_dataloader=dict(
            batch_size=4,
            num_workers=0,
            sampler=dict(type='mmscale.ResolutionSampler', seed=0),
            dataset=dict(type='mmscale.SeededDataset', dataset=dataset),
            collate_fn=dict(type='default_collate'),
        ),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        param_scheduler=[dict(type='CosineAnnealingLR', by_epoch=False, begin=0, end=8)],
        train_cfg=dict(by_epoch=False, max_iters=8),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=2, by_epoch=False)),
        custom_hooks=[
            dict(type='mmscale.InputResolutionHook'),
            dict(type='mmscale.IterationSeedHook'),
        ],
        visualizer=dict(type='UniversalVisualizer', vis_backends=[]),
        randomness=dict(seed=3),
        env_cfg=dict(cudnn_benchmark=False),
        log_level='ERROR',
        resume=False,
        load_from=None,
    )


def test_trainings(fuzz, training, inputs, unchanged, tmp_path):
    def use(data):
        config = Config()
        for key, value in copy.deepcopy(data).items():
            config[key] = value
        config.setdefault('launcher', 'none')
        config.work_dir = str(tmp_path / 'work')
        config.experiment_name = uuid.uuid4().hex
        with unchanged(inputs):
            build_runner(config, 'train')

    fuzz(0.03, training, use, foreign=True)


def test_config_files(fuzz, training, inputs, unchanged):
    def use(text):
        (inputs / 'config.py').write_bytes(text if isinstance(text, bytes) else text.encode())
        arguments = argparse.Namespace(
            config=str(inputs / 'config.py'), cfg_options=[], work_dir=None, launcher='none',
            local_rank=0,
        )  # fmt: skip
        with unchanged(inputs):
            load_config(arguments)

    def dump(data):
        return Config(data).pretty_text

    fuzz(0.01, {k: v for k, v in training.items() if k != 'custom_imports'}, use, text=dump)
