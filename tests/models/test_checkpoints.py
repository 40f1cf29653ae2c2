"""A damaged checkpoint is one line, wherever the damage is, and never other weights."""

import copy
import io
import os
import pickle
import random
import struct
import tarfile
import zipfile
from collections import Counter, OrderedDict

import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.model import ExponentialMovingAverage, PretrainedInit
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import _load_checkpoint_with_prefix, load_from_local
from mmengine.runner.checkpoint import load_checkpoint as mmengine_load
from safetensors.torch import load_file
from torch.optim.swa_utils import AveragedModel

from mmscale.models.checkpoints import (
    load_checkpoint,
    read_part,
    restrict_torch_load,
    unwrapped_state,
    write_safetensors,
)

STATE = {f'layer{i}.weight': torch.arange(21.0).reshape(7, 3) + i for i in range(4)}


class Code:
    """What a checkpoint of an attacker holds."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('form', ['zip', 'pickle'])
def test_code_in_a_file_never_runs(form, tmp_path, monkeypatch):
    monkeypatch.delenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', raising=False)
    path, trace = tmp_path / 'a.pth', tmp_path / 'trace'
    content = {'state_dict': STATE, 'meta': Code(trace)}
    if form == 'zip':
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    assert read_or_refuse(path) is None and not trace.exists()
    with pytest.raises(ValueError, match=r'init_cfg: .*a\.pth is not a checkpoint of tensors'):
        read_part(str(path), None, STATE, 'neck.')
    assert not trace.exists() and 'TORCH_FORCE_WEIGHTS_ONLY_LOAD' not in os.environ


def read_or_refuse(path):
    """What is read; None if it is refused in one line that names the file."""
    try:
        return load_checkpoint(str(path))
    except ValueError as error:
        assert str(path) in str(error) and '\n' not in str(error)
        return None


@pytest.mark.filterwarnings('ignore')
def test_a_flipped_bit_never_changes_weights(tmp_path):
    path = tmp_path / 'whole.pth'
    torch.save({'state_dict': STATE, 'meta': {'iter': 3}}, path)
    content, chance = path.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(content)
        damaged[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        found = read_or_refuse(path)
        refused += found is None
        for name, weight in found['state_dict'].items() if found else ():
            assert torch.equal(weight, STATE[name])
    assert refused > 100


@pytest.mark.filterwarnings('ignore')
def test_what_is_no_checkpoint_is_one_line(tmp_path):
    path = tmp_path / 'wörk dir.pth'
    chance = random.Random(0)
    for length in range(150):
        path.write_bytes(bytes(chance.choices(range(32, 127), k=length)))
        assert read_or_refuse(path) is None
    for value in ([1, 2], torch.zeros(2)):
        torch.save(value, path)
        assert read_or_refuse(path) is None
    with pytest.raises(FileNotFoundError):
        load_checkpoint(str(tmp_path / 'none.pth'))


# ---------------------------------------------------------------------- other formats


def test_safetensors_are_read_wherever_a_checkpoint_is(tmp_path):
    path = str(tmp_path / 'a.safetensors')
    write_safetensors(path, {**STATE, 'tied': STATE['layer0.weight']}, {'arch': '{}'})
    # As others read it.
    assert load_file(path).keys() == {*STATE, 'tied'}
    found = load_checkpoint(path)
    assert found['arch'] == '{}'
    restrict_torch_load()
    loaded = CheckpointLoader.load_checkpoint(path, 'cpu')['state_dict']
    part = read_part(path, 'layer0', {'weight': STATE['layer0.weight']}, 'neck.')
    assert torch.equal(part['weight'], STATE['layer0.weight'])
    for name, weight in STATE.items():
        assert torch.equal(found['state_dict'][name], weight) and torch.equal(loaded[name], weight)
    for content in (b'', b'\xff' * 8, pickle.dumps(STATE)):
        (tmp_path / 'a.safetensors').write_bytes(content)
        assert read_or_refuse(path) is None


def repacked(source, path, **settings):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, 'w', **settings) as new:
        for record in old.infolist():
            new.writestr(record.filename, old.read(record))


def test_compressed_records_are_refused_before_they_are_read(tmp_path, monkeypatch):
    torch.save({'state_dict': {'a': torch.zeros(2**20)}}, tmp_path / 'a.pth')
    repacked(tmp_path / 'a.pth', tmp_path / 'stored.pth')
    assert load_checkpoint(str(tmp_path / 'stored.pth'))['state_dict']['a'].numel() == 2**20
    repacked(tmp_path / 'a.pth', tmp_path / 'small.pth', compression=zipfile.ZIP_DEFLATED)
    assert (tmp_path / 'small.pth').stat().st_size < 2**14
    monkeypatch.setattr(zipfile.ZipFile, 'testzip', None)
    monkeypatch.setattr(zipfile.ZipFile, 'open', None)
    with pytest.raises(ValueError, match=r'small\.pth is not .* is compressed'):
        load_checkpoint(str(tmp_path / 'small.pth'))


def test_records_upon_each_other_are_refused(tmp_path):
    path = tmp_path / 'a.pth'
    torch.save({'a': torch.zeros(1000)}, path)
    with zipfile.ZipFile(path) as archive:
        (record,) = (r for r in archive.infolist() if r.filename.endswith('data/0'))
        with zipfile.ZipFile(tmp_path / 'b.pth', 'w') as new:
            for one in archive.infolist():
                new.writestr(one.filename, archive.read(one))
            for i in range(50):
                fake = copy.copy(next(r for r in new.infolist() if r.filename == record.filename))
                fake.filename = f'a/data/{i + 1}'
                new.filelist.append(fake)
                new.NameToInfo[fake.filename] = fake
    with pytest.raises(ValueError, match='records are larger than the file'):
        load_checkpoint(str(tmp_path / 'b.pth'))


def with_another_list(content):
    """Behind the list that torch reads another one, which Python does."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        record = archive.infolist()[0]
        name, fields = record.filename.encode(), (record.CRC, record.file_size, record.file_size)
    entry = struct.pack('<4s6H3L5H2L', b'PK\x01\x02', 20, 20, 0, 0, 0, 0, *fields, len(name),
                        0, 0, 0, 0, 0, 0) + name  # fmt: skip
    old = struct.unpack('<4s4H2LH', content[-22:])
    return content[:-22] + entry + struct.pack('<4s4H2LH', *old[:3], 1, 1, len(entry), old[6], 0)


def test_there_is_one_list_of_records_and_no_long_one(tmp_path):
    path = tmp_path / 'a.pth'
    torch.save({'state_dict': STATE}, path)
    repacked(path, path.with_name('b.pth'))
    content = path.with_name('b.pth').read_bytes()
    hidden = with_another_list(content)
    with zipfile.ZipFile(io.BytesIO(hidden)) as archive:
        assert len(archive.namelist()) == 1
    for crafted in (hidden, content + b'\x00', content[:-2] + b'\x01\x00a', content[:21]):
        path.write_bytes(crafted)
        assert read_or_refuse(path) is None
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('a/data.pkl', b'\x80\x02}.')
        archive.writestr('a/version', b'3\n')
        for i in range(2**16):  # so many that the format is zip64
            archive.writestr(f'a/data/{i}', b'')
    restrict_torch_load()
    assert torch.load(path) == {}
    with zipfile.ZipFile(path, 'w') as archive:
        for i in range(9):
            archive.writestr(f'{i}{"a" * (2**16 - 9)}', b'')
        archive.filelist *= 40
        archive.filelist = [copy.copy(record) for record in archive.filelist]
        for i, record in enumerate(archive.filelist):
            record.filename = f'{i:03}{"a" * (2**16 - 9)}'
    with pytest.raises(ValueError, match=r'its list of records has \d\d,\d{3},\d{3} bytes'):
        load_checkpoint(str(path))


@pytest.mark.parametrize(
    ('name', 'start', 'message'),
    [
        ('a.pth', b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.', 'larger than the 1,073,741,824'),
        ('a.pth', None, 'larger than the 1,073,741,824'),
        ('a.safetensors', struct.pack('<Q', 2**26), 'its header has 67,108,864 bytes'),
    ],
    ids=['old', 'tar', 'safetensors'],
)
def test_files_with_holes_are_not_read(name, start, message, tmp_path):
    path = tmp_path / name
    if start is None:
        with tarfile.open(path, 'w', format=tarfile.PAX_FORMAT) as tar:
            tar.add(__file__, 'storages')
        start = path.read_bytes()
    with path.open('wb') as file:
        file.write(start)
        file.truncate(20 * 10**9)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(str(path))
    with pytest.raises(ValueError, match=message):
        restrict_torch_load()
        torch.load(path)


def test_numbers_that_torch_would_turn_round_are_refused(tmp_path):
    torch.save({'state_dict': STATE}, tmp_path / 'a.pth')
    with (
        zipfile.ZipFile(tmp_path / 'a.pth') as old,
        zipfile.ZipFile(tmp_path / 'b.pth', 'w') as new,
    ):
        for record in old.infolist():
            is_order = record.filename.endswith('byteorder')
            new.writestr(record.filename, b'big' if is_order else old.read(record))
    with pytest.raises(ValueError, match='its numbers are not little-endian'):
        load_checkpoint(str(tmp_path / 'b.pth'))


def test_a_large_safetensors_file_is_read(tmp_path):
    header = b'{"a":{"dtype":"U8","shape":[4000000000],"data_offsets":[0,4000000000]}}'
    with (tmp_path / 'a.safetensors').open('wb') as file:
        file.write(struct.pack('<Q', len(header)) + header)
        file.truncate(8 + len(header) + 4 * 10**9)
    found = load_checkpoint(str(tmp_path / 'a.safetensors'))
    assert found['state_dict']['a'].shape == (4 * 10**9,)


def test_pipes_and_archives_of_other_kinds_are_refused(tmp_path):
    os.mkfifo(tmp_path / 'pipe.pth')
    os.mkfifo(tmp_path / 'pipe.safetensors')
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), tmp_path / 'script.pth')
    with tarfile.open(tmp_path / 'tar.pth', 'w') as tar:
        tar.add(__file__, 'storages')
    for path in tmp_path.iterdir():
        assert read_or_refuse(path) is None
    restrict_torch_load()
    for path in tmp_path.iterdir():
        with pytest.raises(ValueError, match=path.name):
            torch.load(path, weights_only=False)


# ---------------------------------------------------------------------- whoever calls torch.load


def test_nobody_gets_round_the_restriction(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    path, trace = tmp_path / 'a.pth', tmp_path / 'trace'
    torch.save(Code(trace), path)
    restrict_torch_load()
    model = torch.nn.Linear(1, 1)
    ways = [
        lambda: torch.load(path),
        lambda: torch.load(path, weights_only=False),
        lambda: torch.load(path, weights_only=False, pickle_module=pickle),
        lambda: torch.load(path, mmap=True),
        lambda: torch.load(io.BytesIO(path.read_bytes()), weights_only=False),
        lambda: torch.serialization.load(path, weights_only=False),
        lambda: torch.hub.load_state_dict_from_url(f'file://{path}', weights_only=False),
        lambda: CheckpointLoader.load_checkpoint(str(path)),
        lambda: load_from_local(str(path), 'cpu'),
        lambda: mmengine_load(model, str(path)),
        lambda: _load_checkpoint_with_prefix('a', str(path)),
        lambda: PretrainedInit(str(path))(model),
    ]
    for way in ways:
        with pytest.raises(ValueError, match=r'a\.pth|the stream'):
            way()
        assert not trace.exists()
    with pytest.raises(FileNotFoundError):
        torch.load(tmp_path / 'none.pth')


def test_a_checkpoint_of_mmengine_goes_on_loading(tmp_path):
    buffer = HistoryBuffer([1.0, 2.0], [1, 1])
    content = {
        'meta': {'epoch': 0, 'iter': 2, 'cfg': 'a = 1', 'seed': 1},
        'state_dict': OrderedDict(STATE),
        'message_hub': {'log_scalars': {'train/loss': buffer}, 'runtime_info': {}},
        'optimizer': {'state': {0: {'momentum_buffer': torch.ones(2)}}, 'param_groups': []},
        'param_schedulers': [{'milestones': Counter([3]), '_last_value': [0.1]}],
    }
    content['state_dict']._metadata = OrderedDict({'': {'version': 1}})
    torch.save(content, tmp_path / 'iter_2.pth')
    expected = CheckpointLoader.load_checkpoint(str(tmp_path / 'iter_2.pth'), 'cpu')
    restrict_torch_load()
    found = CheckpointLoader.load_checkpoint(str(tmp_path / 'iter_2.pth'), 'cpu')
    assert found['state_dict']._metadata == expected['state_dict']._metadata
    logs = [one['message_hub']['log_scalars'].pop('train/loss') for one in (found, expected)]
    assert logs[0].mean() == logs[1].mean() == 1.5
    for one in (found, expected):
        one['state_dict'] = {k: v.tolist() for k, v in one['state_dict'].items()}
        one['optimizer']['state'][0]['momentum_buffer'] = None
    assert found == expected


def test_a_block_leaves_torch_as_it_was(tmp_path):
    before = torch.load, torch.serialization.load, torch.serialization._weights_only_unpickler
    with pytest.raises(ValueError, match='is not a checkpoint'):
        load_checkpoint(__file__)
    after = torch.load, torch.serialization.load, torch.serialization._weights_only_unpickler
    assert before == after


class Inner(torch.nn.Module):
    """A network with a part that is called as DDP calls the network inside of it."""

    def __init__(self):
        super().__init__()
        self.module = torch.nn.Linear(2, 2)
        self.fc = torch.nn.Linear(2, 2)


@pytest.mark.parametrize(
    'wrap',
    [
        torch.nn.DataParallel,
        torch.compile,
        AveragedModel,
        ExponentialMovingAverage,
        lambda network: torch.compile(torch.nn.DataParallel(network)),
        lambda network: torch.nn.DataParallel(torch.compile(network)),
        lambda network: torch.nn.DataParallel(torch.nn.DataParallel(network)),
    ],
)
def test_what_torch_and_mmengine_wrap_has_its_own_names(wrap):
    network = Inner()
    state = wrap(network).state_dict()
    found = unwrapped_state(state)
    assert state.keys() != network.state_dict().keys() == found.keys()
    assert all(torch.equal(found[key], value) for key, value in network.state_dict().items())


def test_parts_that_were_compiled_alone_have_their_own_names():
    network = Inner()
    wanted = list(network.state_dict())
    network.fc = torch.compile(network.fc)
    assert list(unwrapped_state(network.state_dict())) == wanted


@pytest.mark.parametrize(
    'keys', [['module.a', 'fc.b'], ['fc._orig_mod.a', 'fc.a'], ['modules.a'], ['steps'], []]
)
def test_names_of_a_network_itself_stay(keys):
    assert list(unwrapped_state(dict.fromkeys(keys, torch.zeros(1)))) == keys
