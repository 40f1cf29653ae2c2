"""Windows of tokens, from files and from the standard library."""

import sysconfig

import numpy as np
import pytest
import torch

from mmscale.datasets import StandardLibrary, TokenFile


def test_every_token_but_the_first_is_predicted_once(tmp_path):
    np.save(tmp_path / 'text.npy', np.arange(23, dtype=np.uint16))
    data = TokenFile(str(tmp_path / 'text.npy'), 5)
    assert len(data) == 5
    assert data[0]['inputs'].tolist() == [0, 1, 2, 3, 4]
    assert data[4]['inputs'].tolist() == [16, 17, 18, 19, 20]
    assert data[0]['inputs'].dtype == torch.int64
    predicted = [token for item in data for token in item['inputs'][1:].tolist()]
    assert predicted == list(range(1, 21))
    # The last window may end with the last token.
    np.save(tmp_path / 'text.npy', np.arange(21))
    assert len(TokenFile(str(tmp_path / 'text.npy'), 5)) == 5
    with pytest.raises(IndexError):
        data[5]


def test_standard_library():
    train, val = (StandardLibrary(split, 64) for split in ('train', 'val'))
    names = {
        split: [file.name for file in data.files]
        for split, data in (('train', train), ('val', val))
    }
    assert not set(names['train']) & set(names['val'])
    assert {'argparse.py', 'os.py', 'random.py'} <= set(names['train'] + names['val'])
    assert names['train'] == sorted(names['train'])
    assert 0.01 < len(val) / len(train) < 0.15
    text = b''.join(file.read_bytes() for file in val.files)
    assert bytes(val[3]['inputs'].tolist()) == text[3 * 63 : 3 * 63 + 64]
    assert torch.equal(val[3]['inputs'], StandardLibrary('val', 64)[3]['inputs'])


def test_a_python_without_source(monkeypatch, tmp_path):
    monkeypatch.setattr(sysconfig, 'get_path', lambda name: str(tmp_path))
    (tmp_path / '_sysconfigdata__linux_.py').write_text('made = 1')
    with pytest.raises(FileNotFoundError, match='no source files of the standard library'):
        StandardLibrary('train', 64)


def test_wrong_settings():
    for split, length, message in (
        ('test', 64, "split='test' is not one of train, val"),
        ('val', 1, 'length=1 must be an integer of 2 or more'),
        ('val', 2.5, r'length=2\.5 must be an integer'),
        ('val', 10**9, r'length=1000000000: the text has \d+ tokens'),
    ):
        with pytest.raises(ValueError, match=message):
            StandardLibrary(split, length)


@pytest.mark.parametrize('array', [np.zeros((3, 3), dtype=int), np.zeros(9)])
def test_a_file_of_something_else(array, tmp_path):
    np.save(tmp_path / 'text.npy', array)
    with pytest.raises(ValueError, match='are no tokens in a row'):
        TokenFile(str(tmp_path / 'text.npy'), 2)
