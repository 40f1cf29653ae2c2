"""What somebody else has dumped is built and written as data, or not at all."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmscale.apis.cost import build_network
from mmscale.apis.exports.export import export
from mmscale.apis.untrusted_configs import check_untrusted
from mmscale.arch import get_arch
from mmscale.cost import count
from mmscale.errors import MMScaleError

CODE = '__import__("pathlib").Path("mark").touch()'
HONEST = dict(
    default_scope='mmpretrain',
    custom_imports=dict(imports=['mmscale.models'], allow_failed_imports=False),
    model=dict(
        type='ImageClassifier',
        backbone=dict(type='mmscale.ArchNet', norm_cfg=dict(type='BN', momentum=0.1)),
        neck=dict(type='mmpretrain.GlobalAveragePooling'),
        head=dict(
            type='LinearClsHead',
            loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        ),
        test_cfg=dict(nms=dict(type='nms', iou_threshold=0.5)),
    ),
    test_dataloader=dict(
        batch_size=8,
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='default_collate'),
        dataset=dict(
            type='mmscale.ClutteredDigits',
            data_root='/home/me/data sets/ä',
            pipeline=[
                dict(type='mmscale.ResizeToResolution', resolution=24),
                dict(type='PackInputs'),
            ],
        ),
    ),
)
ATTACKS = {
    'a function of Python': dict(
        model=dict(type='subprocess.check_output', args=['touch', 'mark'])
    ),
    'os.system': dict(model=dict(type='os.system', command='touch mark')),
    'a class of a known package by its path': dict(type='mmengine.config.Config.fromfile'),
    'a module of a known package': dict(type='mmengine.Config', filename='x'),
    'another registry': dict(type='mmengine.DumpResults', out_file_path='x'),
    'deep inside': dict(a=[dict(b=(dict(c=[dict(type='os.system')]),))]),
    'a type that is no text': dict(type=3),
    'a type in a list': dict(a=[dict(type=['os.system'])]),
    'eval in mmcv': dict(nms=dict(type=CODE)),
    'eval in mmpretrain': dict(type='ToTensor', dtype=f'float32 if {CODE} else 0'),
    'Hugging Face': dict(type='mmpretrain.AutoModelForCausalLM', trust_remote_code=True),
    'imports': dict(custom_imports=dict(imports=['antigravity'])),
    'imports as a text': dict(custom_imports='antigravity'),
    'scope': dict(default_scope='antigravity'),
    'scope of a part': dict(model=dict(_scope_='antigravity', type='ResNet')),
    'inheritance': dict(_base_='evil.py'),
    'deletion': dict(model=dict(_delete_=True)),
    'a key that closes the quotes': dict(model={f"a': {CODE}, 'b": 1}),
    'a template': dict(a='{{ fileDirname }}'),
    'a template of the environment': dict(a="{{$NO_SUCH:'+" + CODE + "+'}}"),
    'an inherited variable': dict(a='{{ _base_.model }}'),
    'a line break': dict(a='x\n' + CODE),
    'a quote': dict(a=f"'+{CODE}+'"),
    'a pickle': dict(ann_file='train.PKL'),
    'a config': dict(teacher_config='evil.py'),
    'a config of a package': dict(teacher_config='mmdet::evil'),
    'YAML, which runs code as pickles do': dict(a=dict(answer_list_path='a.yaml')),
    'a file of any name': dict(a=dict(tokenizer_path='a')),
    'an address': dict(a='http://evil.example/a'),
    'annotations in YAML': dict(test_dataloader=dict(dataset=dict(ann_file='a.yaml'))),
    'a dataset of pickles': dict(
        test_dataloader=dict(dataset=dict(type='mmpretrain.CIFAR10', data_root='a'))
    ),
    'a dataset that reads other files': dict(
        test_dataloader=dict(dataset=dict(type='mmpretrain.RefCOCO', split_file='a'))
    ),
    'a dataset in a model': dict(model=dict(neck=dict(type='mmscale.ClutteredDigits'))),
    'a model in a dataset': dict(test_dataloader=dict(dataset=dict(type='LinearClsHead'))),
    'classes of a file': dict(test_dataloader=dict(dataset=dict(metainfo=dict(classes='a')))),
    'a network that normalises images': dict(data_preprocessor=dict(type='LinearClsHead')),
    'a network in a preprocessor': dict(
        data_preprocessor=dict(type='ClsDataPreprocessor', mean=[dict(type='LinearClsHead')])
    ),
    'not a number': dict(a=float('nan')),
    'infinity': dict(a=[float('inf')]),
    'a class': dict(type=dict),
    'bytes': dict(a=b'x'),
}


def test_honest_settings_are_kept():
    assert check_untrusted('x', HONEST) == HONEST


def test_checkpoints_to_start_from_are_left_out():
    part = dict(type='mmengine.Pretrained', checkpoint='https://evil.example/a.pth')
    found = check_untrusted('x', dict(a=dict(init_cfg=part), b=[part, dict(type='Normal')]))
    assert found == dict(a={}, b=[dict(type='Normal')])


def test_of_a_preprocessor_what_normalises_is_kept():
    found = dict(type='mmpretrain.ClsDataPreprocessor', mean=[1.0, 2], std=(3, 4), to_rgb=True)
    attack = dict(found, batch_augments=[dict(type='os.system')])
    kept = check_untrusted('x', dict(a=dict(data_preprocessor=attack), data_preprocessor=attack))
    assert kept == dict(a=dict(data_preprocessor=found), data_preprocessor=found)


def test_classes_have_any_names():
    dataset = dict(metainfo=dict(classes=('T.V.', 'sofa/couch'), palette=[(1, 2, 3)]))
    config = dict(test_dataloader=dict(dataset=dataset))
    assert check_untrusted('x', config) == config


@pytest.mark.parametrize('kind', ATTACKS)
def test_code_in_settings_is_refused(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match='folder') as error:
        check_untrusted('folder', ATTACKS[kind])
    assert '\n' not in str(error.value)
    assert not Path('mark').exists()


def test_what_is_refused_would_run(tmp_path, monkeypatch):
    """MMEngine writes it as Python, and runs it when the config is read."""
    monkeypatch.chdir(tmp_path)
    attack = Config(ATTACKS['a key that closes the quotes'], format_python_code=False)
    Path('written.py').write_text(attack.pretty_text)
    Config.fromfile('written.py')
    assert Path('mark').exists()


@pytest.fixture
def search(tmp_path, monkeypatch):
    """A downloaded folder of a search; returns a function that dumps a config into it."""
    monkeypatch.chdir(tmp_path)
    arch = get_arch('ResNet-18')
    folder = tmp_path / 'search'
    (folder / 'weights').mkdir(parents=True)
    member = dict(scaling_stage=0, score=dict(correct=3, total=4), cost=asdict(count(arch)))
    result = dict(schema=1, settings={}, scaling_stages=[dict(member, arch=arch.to_json())])
    result['versions'] = {'torch': '2 |\n```python\nimport os'}
    (folder / 'result.json').write_text(json.dumps(result))
    state = {'state_dict': build_network(arch).state_dict()}
    torch.save(state, folder / 'weights' / 'scaling_stage_0.pth')

    def dump(text):
        (folder / 'config.py').write_text(text)
        return folder / 'result.json'

    return dump


@pytest.mark.parametrize(
    'text',
    [
        "model = dict(type='mmscale.SuperNetDetector', detector=dict("
        "type='ImageClassifier', backbone=dict(), neck=dict(type='subprocess.check_output', "
        "args=['touch', 'mark'])))\n",
        "model = dict(type='mmscale.SuperNetDetector', detector=dict(type='ImageClassifier', "
        "backbone=dict()))\ncustom_imports = dict(imports=['antigravity'])\n",
        "data_preprocessor = dict(type='subprocess.check_output', args=['touch', 'mark'])\n",
        'data_preprocessor = {"a\': ' + CODE.replace('"', r'\"') + ', \'b": 1}\n',
        "data_preprocessor = dict(mean=['{{ fileDirname }}'])\n",
    ],
    ids=['neck', 'imports', 'preprocessor', 'key', 'template'],
)
def test_an_export_builds_and_writes_nothing_of_it(text, search, tmp_path):
    result = search(text)
    with pytest.raises(ValueError, match=r'give the config by yourself|of no known package'):
        export(result, tmp_path / 'out', formats=('mmpretrain',))
    assert not (tmp_path / 'mark').exists() and not (tmp_path / 'out').exists()


DETECTOR = "model = dict(type='mmscale.SuperNetDetector', detector={detector})\n"
HUGE = '0x' + 'f' * 20_000


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('test_dataloader = [1]', None),
        (f"test_dataloader = dict(dataset=dict(type='A', split={HUGE}))", None),
        (f'data_preprocessor = dict(mean=[{HUGE}], std=[1])', None),
        ("data_preprocessor = dict(mean='abc', std=[1])", "mean='abc' must be a list of numbers"),
        ('data_preprocessor = dict(mean=[1], std=[0])', 'std=0 must be'),
        ('data_preprocessor = dict(mean=[1], foo=1)', 'unknown key foo'),
        (DETECTOR.format(detector=[1]), 'detector of the dumped config: expected an object'),
        (DETECTOR.format(detector=dict(type='RetinaNet', backbone=[1])), 'backbone: expected an'),
        (DETECTOR.format(detector={}) + 'custom_imports = dict(imports=5)', 'imports names'),
        (DETECTOR.format(detector={}) + 'test_dataloader = [1]', 'test_dataloader of the dumped'),
        (
            DETECTOR.format(detector=dict(
                type='ImageClassifier', neck=dict(type='mmpretrain.BEiTV2Neck', num_layers=10**8),
            )),
            'model has more than 1,000 layers',
        ),
    ],
)  # fmt: skip
def test_odd_configs_are_one_error_or_nothing(text, message, search, tmp_path, monkeypatch):
    monkeypatch.setattr('mmscale.apis.networks._MOST_LAYERS', 1000)
    result = search(text)
    if message is None:
        export(result, tmp_path / 'out', formats=('mmpretrain',))
        return
    with pytest.raises(MMScaleError) as error:
        export(result, tmp_path / 'out', formats=('mmpretrain',))
    assert message in str(error.value) and len(str(error.value)) < 400


def test_an_honest_folder_is_exported(search, tmp_path):
    result = search('data_preprocessor = dict(mean=[1.0], std=[2.0], num_classes=7)\n')
    export(result, tmp_path / 'out', formats=('mmpretrain',), name='a\n{{ $X:1 }}```')
    written = Config.fromfile(tmp_path / 'out' / 'mmpretrain_config.py')
    assert written.data_preprocessor == dict(mean=[1.0], std=[2.0], num_classes=7)
    card = (tmp_path / 'out' / 'model_card.md').read_text().splitlines()
    assert '# a __ $X:1 _____' in card
    assert '| search versions | torch 2 _ ___python import os |' in card
