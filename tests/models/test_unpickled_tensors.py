"""Tensors of checkpoints are what torch reads, and lie inside their storages."""

import io
import pickle
import warnings

import pytest
import torch

from mmscale.models import unpickling
from mmscale.models.checkpoints import restrict_torch_load


def save(value, new_format, path):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.save(value, path, _use_new_zipfile_serialization=new_format)


@pytest.mark.parametrize('new_format', [True, False])
def test_tensors_are_what_torch_reads(new_format, tmp_path, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 5, generator=generator)
    value = {
        'views': [base, base[1:3, ::2], base.t(), base[:, 0].expand(3, 6), base[:0]],
        'kinds': [
            torch.ones(3, dtype=kind)
            for kind in (torch.float16, torch.bfloat16, torch.int8, torch.bool, torch.complex64)
        ],
        'parameter': torch.nn.Parameter(torch.ones(2)),
        'gradient': torch.zeros(2, requires_grad=True),
        'scalar': torch.tensor(3),
    }
    save(value, new_format, tmp_path / 'a.pth')
    expected = torch.load(tmp_path / 'a.pth', weights_only=True)
    monkeypatch.setattr(torch.serialization, '_weights_only_unpickler', unpickling)
    found = torch.load(tmp_path / 'a.pth', weights_only=True)
    assert type(found['parameter']) is torch.nn.Parameter and found['gradient'].requires_grad
    for key in ('views', 'kinds'):
        for mine, theirs in zip(found[key], expected[key], strict=True):
            assert torch.equal(mine, theirs) and mine.dtype == theirs.dtype
            assert mine.stride() == theirs.stride()
    # Views still share their storage.
    found['views'][0][1, 0] = 7
    assert found['views'][1][0, 0] == 7


@pytest.mark.parametrize('new_format', [True, False])
@pytest.mark.parametrize(
    ('old', 'new', 'message'),
    [
        (b'K\x04\x85', b'J\xff\xff\xff\x7f\x85', 'larger than its storage'),
        (b'K\x04\x85', b'J\xff\xff\xff\xff\x85', 'whose shape is none'),
        (b'K\x01\x85', b'J\xff\xff\xff\x7f\x85', 'larger than its storage'),
        (b'_rebuild_tensor_v2', b'_rebuild_tensor_v4', 'neither a tensor nor a plain value'),
    ],
)
def test_tensors_stay_inside_their_storage(new_format, old, new, message):
    class Crafted(pickle._Pickler):
        def persistent_id(self, thing):
            if isinstance(thing, torch.storage.TypedStorage):
                place = ('storage', torch.FloatStorage, '0', 'cpu', 4)
                return place if new_format else (*place, None)
            return None

    file = io.BytesIO()
    Crafted(file, 2).dump(torch.zeros(4))
    content = file.getvalue()
    assert old in content
    machine = unpickling.Unpickler(io.BytesIO(content.replace(old, new)))
    machine.persistent_load = lambda place: torch.storage.TypedStorage(
        wrap_storage=torch.UntypedStorage(16), dtype=torch.float32, _internal=True
    )
    with pytest.raises(pickle.UnpicklingError, match=message):
        machine.load()


def test_tensors_that_processes_hand_on_are_read():
    """Pickled alone, a tensor brings its storage as a file of torch's inside."""
    restrict_torch_load()
    tensor = torch.arange(6).reshape(2, 3)
    read = pickle.loads(pickle.dumps({'score': tensor}))  # noqa: S301 - our own bytes
    assert torch.equal(read['score'], tensor)
