"""A damaged checkpoint is one line, wherever the damage is, and never other weights."""

import os
import pickle
import random

import pytest
import torch

from mmscale.models.checkpoints import load_checkpoint, read_part

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
