"""A checkpoint that runs code when it is read, given to every tool that reads one.

The same file runs code under MMEngine's loader with ``TORCH_FORCE_WEIGHTS_ONLY_LOAD=1``.
"""

import io
import json
import os
import runpy
import sys
import uuid
import zipfile
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from mmengine.runner import CheckpointLoader

from mmscale.arch import get_arch
from mmscale.cost import count
from mmscale.models.checkpoints import restrict_torch_load
from mmscale.search.result import SCHEMA

ROOT = Path(__file__).resolve().parents[2]
DIGITS = f"""
_base_ = {str(ROOT / 'configs/scalenet/digits-s0.py')!r}
train_dataloader = dict(batch_size=4, dataset=dict(dataset=dict(num_images=8)))
val_cfg = val_dataloader = val_evaluator = None
test_dataloader = dict(batch_size=4, dataset=dict(num_images=8))
train_cfg = dict(_delete_=True, by_epoch=False, max_iters=1)
experiment_name = {{name!r}}
work_dir = 'work'
"""
RESNET = """
model = dict(
    backbone=dict(_delete_=True, type='ResNet', depth=18, in_channels=1, init_cfg={init_cfg!r}),
    head=dict(in_channels=512),
)
"""
ARCH_NET = 'model = dict(backbone=dict(init_cfg={init_cfg!r}))\n'
SEARCH = f"""
_base_ = {str(ROOT / 'configs/scalenet/search-mcea_digits.py')!r}
test_dataloader = dict(dataset=dict(dataset=dict(num_images=8)))
experiment_name = {{name!r}}
work_dir = 'work'
"""
DMS = """
default_scope = 'mmpretrain'
model = dict(
    type='mmscale.DMSModel',
    target=0.5,
    input_shape=(3, 32, 32),
    {more}
    model=dict(type='mmscale.ArchNet', arch='ResNet-18'),
)
"""
PRETRAINED = dict(type='Pretrained', checkpoint='crafted.pth')


def pickled(mark):
    """MMEngine allows getattr, which leads to eval; a function that torch allows calls it."""

    def name(module, attribute):
        return f'c{module}\n{attribute}\n'.encode()

    def text(value):
        return b'X' + len(value).to_bytes(4, 'little') + value.encode()

    def attribute_of(thing, attribute):
        return name('builtins', 'getattr') + thing + text(attribute) + b'\x86R'

    evaluate = attribute_of(attribute_of(name('builtins', 'getattr'), '__self__'), 'eval')
    code = text(f'open({str(mark)!r}, "w").close()') + b'\x85'
    call = name('torch._tensor', '_rebuild_from_type_v2')
    call += b'(' + evaluate + name('torch', 'Tensor') + code + b'NtR'
    return b'\x80\x02}(' + text('state_dict') + call + text('meta') + b'}u.'


def save_trap(path, mark, form='zip'):
    content = pickled(mark)
    if form == 'pickle':
        magic, version, info = torch.serialization.MAGIC_NUMBER, 1001, {}
        import pickle

        parts = [pickle.dumps(part, 2) for part in (magic, version, info)]
        path.write_bytes(b''.join([*parts, content, pickle.dumps([], 2)]))
        return
    whole = io.BytesIO()
    torch.save({'state_dict': {'a': torch.zeros(1)}}, whole)
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, 'w') as new:
        for record in old.infolist():
            is_pickle = record.filename.endswith('data.pkl')
            new.writestr(record.filename, content if is_pickle else old.read(record))


@pytest.fixture
def mark(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    monkeypatch.setenv('LOCAL_RANK', '0')
    mark = tmp_path / 'mark'
    save_trap(tmp_path / 'crafted.pth', mark)
    return mark


@pytest.fixture
def tool(monkeypatch, capfd):
    """Calls a tool in this process; returns exit code and stderr."""

    def call(name, *arguments):
        monkeypatch.setattr(sys, 'argv', [name, *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as leaving:
            runpy.run_path(str(ROOT / 'tools' / name), run_name='__main__')
        return leaving.value.code, capfd.readouterr().err

    return call


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('form', ['zip', 'pickle'])
def test_the_file_runs_code_where_nothing_of_ours_reads_it(mark, form):
    """Else the tests below would show nothing."""
    save_trap(Path('crafted.pth'), mark, form)
    with pytest.raises((TypeError, RuntimeError, AttributeError)):
        CheckpointLoader.load_checkpoint('crafted.pth', 'cpu')
    assert mark.exists()
    mark.unlink()
    restrict_torch_load()
    with pytest.raises(ValueError, match=r'crafted\.pth is not a checkpoint of tensors'):
        CheckpointLoader.load_checkpoint('crafted.pth', 'cpu')
    assert not mark.exists()


def write(name, text, **settings):
    Path(name).write_text(text.format(name=uuid.uuid4().hex, **settings))
    return name


def train(config=DIGITS, **settings):
    return ['train.py', write('digits.py', config, **settings)]


def resume_automatically():
    work = Path('work')
    work.mkdir()
    Path('crafted.pth').rename(work / 'iter_1.pth')
    (work / 'last_checkpoint').write_text(str((work / 'iter_1.pth').resolve()))
    return [*train(), '--resume']


def search(*more):
    loaded = ('--cfg-options', 'load_from=crafted.pth')
    return ['search.py', write('search.py', SEARCH), *more, *loaded]


def inheriting(base, model):
    text = f"""
_base_ = {str(ROOT / 'configs' / base)!r}
model = {model}
load_from = None
train_dataloader = dict(dataset=dict(dataset=dict(num_images=8)))
experiment_name = {{name!r}}
work_dir = 'work'
"""
    return ['train.py', write('inheriting.py', text)]


def dms(more=''):
    return write('dms.py', DMS, more=more)


def export_result():
    """A search's folder whose weights are crafted."""
    (Path('found') / 'weights').mkdir(parents=True)
    Path('crafted.pth').rename('found/weights/scaling_stage_0.pth')
    arch = get_arch('ResNet-18')
    score = {'correct': 1, 'total': 2}
    member = {'scaling_stage': 0, 'cost': asdict(count(arch)), 'score': score}
    members = [{**member, 'arch': arch.to_json()}]
    result = {'schema': SCHEMA, 'settings': {}, 'scaling_stages': members}
    Path('found/result.json').write_text(json.dumps(result))
    return ['export.py', 'found/result.json', '--out', 'out']


ENTRIES = {
    'train --resume FILE': lambda: [*train(), '--resume', 'crafted.pth'],
    'train --resume': resume_automatically,
    'train load_from': lambda: [*train(), '--cfg-options', 'load_from=crafted.pth'],
    'train init_cfg of an ArchNet': lambda: train(DIGITS + ARCH_NET, init_cfg=PRETRAINED),
    "train init_cfg of mmpretrain's": lambda: train(DIGITS + RESNET, init_cfg=PRETRAINED),
    'train init_cfg in a list': lambda: train(DIGITS + RESNET, init_cfg=[PRETRAINED]),
    'train pretrained of a search by gradient': lambda: inheriting(
        'dms/dms-digits-s2.py', "dict(pipeline='p', pretrained='crafted.pth')"
    ),
    'train teacher_checkpoint': lambda: inheriting(
        'dms/arch-net-distilled_digits.py',
        "dict(teacher_checkpoint='crafted.pth', backbone=dict(arch='ResNet-18'))",
    ),
    'train teacher_checkpoint of a language model': lambda: inheriting(
        'dms/dms-llama-mini-distilled_stdlib.py',
        "dict(model=dict(teacher_checkpoint='crafted.pth'))",
    ),
    'test': lambda: ['test.py', train()[1], 'crafted.pth'],
    'search': search,
    'search --plan': lambda: search('--plan'),
    'convert mmpretrain': lambda: [
        *('convert.py', 'crafted.pth', 'resnet18', '--source', 'mmpretrain', '--out', 'out.pth'),
    ],
    'convert timm': lambda: [
        *('convert.py', 'crafted.pth', 'resnet18', '--source', 'timm', '--out', 'out.pth'),
    ],
    'export of an Arch': lambda: [
        *('export.py', 'ResNet-18', '--checkpoint', 'crafted.pth', '--out', 'out'),
    ],
    'export of weights': lambda: ['export.py', 'crafted.pth', '--out', 'out'],
    'export of a result': export_result,
    'export of a config': lambda: [
        *('export.py', train()[1], '--checkpoint', 'crafted.pth', '--out', 'out'),
    ],
    'prune': lambda: ['prune.py', dms(), 'crafted.pth', '--out', 'out'],
}


@pytest.mark.parametrize('entry', ENTRIES)
def test_no_tool_runs_the_code(entry, mark, tool):
    code, error = tool(*ENTRIES[entry]())
    assert not mark.exists()
    last = error.splitlines()[-1]
    assert code == 2 and 'Traceback' not in error
    assert last.startswith('error: ')
    assert '.pth is not a checkpoint of tensors and plain values, or it is damaged' in last
    assert 'it names torch._tensor._rebuild_from_type_v2' in last
    assert not Path('out').exists() and not Path('out.pth').exists()


def test_the_users_word_decides(mark):
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '0'
    restrict_torch_load()
    with pytest.raises((TypeError, RuntimeError, AttributeError)):
        CheckpointLoader.load_checkpoint('crafted.pth', 'cpu')
    assert mark.exists()
