"""What is read does not eat the machine: refused in one line, before memory is taken for it."""

import gc
import os
import resource
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import mmscale
from mmscale import memory
from mmscale.apis.exports.export import export
from mmscale.arch import Arch, Block, Head, Stem
from mmscale.cost import count
from mmscale.launch.resume import find_checkpoints
from mmscale.memory import check_memory
from mmscale.models import checkpoints
from mmscale.models.checkpoints import load_checkpoint, restrict_torch_load, weights_of
from mmscale.models.converters import weights_for_source


def pages(column):
    """Memory of this process in bytes: 0 is what it may use, 1 is what it does."""
    return int(Path('/proc/self/statm').read_text().split()[column]) * resource.getpagesize()


@contextmanager
def at_most(count):
    """No more memory than so many bytes beyond what there is now; else a MemoryError."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages(0) + count, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.fixture(scope='module')
def giant():
    """A legal Arch of 24 GB."""
    first = Block('basic', 3, 1, 16, 2**13, 2**13, 1, act='relu')
    blocks = (first, *[replace(first, in_channels=2**13)] * 5)
    return Arch(32, Stem(16, act='relu'), (blocks,), Head(num_classes=10))


@pytest.fixture
def weights(tmp_path):
    torch.save({'state_dict': {'backbone.stem.conv.weight': torch.zeros(16, 3, 3, 3)}},
               tmp_path / 'any.pth')  # fmt: skip
    return tmp_path / 'any.pth'


def test_what_is_available_is_the_least_that_the_system_tells(tmp_path, monkeypatch):
    for name in ('_SYSTEM', '_GROUP_LIMIT'):
        monkeypatch.setattr(memory, name, tmp_path / name)
    assert memory.available_memory() is None
    check_memory('anything', 2**60)
    (tmp_path / '_SYSTEM').write_text('MemTotal: 9 kB\nMemAvailable:    2097152 kB\n')
    (tmp_path / '_GROUP_LIMIT').write_text('max\n')
    assert memory.available_memory() == 2**31
    (tmp_path / '_GROUP_LIMIT').write_text(f'{2**30}\n')
    check_memory('a part', 2**30)
    with pytest.raises(ValueError, match=r'^it: takes 2\.0 GiB of memory, of which 1\.0 GiB are'):
        check_memory('it', 2**31)


@pytest.mark.parametrize('source', ['arch', 'config'])
def test_weights_are_compared_before_the_network_is_built(
    source, giant, weights, tmp_path, monkeypatch
):
    monkeypatch.setattr('mmscale.memory.available_memory', lambda: None)
    if source == 'config':
        backbone = dict(type='mmscale.ArchNet', arch=giant.to_json())
        source = dict(model=dict(type='mmpretrain.ImageClassifier', backbone=backbone))
    else:
        giant.save(tmp_path / 'giant.json')
        source = tmp_path / 'giant.json'
    with at_most(2**31), pytest.raises(ValueError, match=r'any\.pth does not fit the network'):
        export(source, tmp_path / 'out', weights, formats=['mmpretrain'])


def test_weights_are_compared_before_a_network_of_timms_is_built(giant, monkeypatch):
    monkeypatch.setattr('mmscale.memory.available_memory', lambda: None)
    with at_most(2**31), pytest.raises(ValueError, match='the weights do not fit the Arch'):
        weights_for_source({'head.fc.weight': torch.zeros(10, 2**13)}, giant, 'timm')


def test_a_network_that_does_not_fit_is_not_built(giant, tmp_path, monkeypatch):
    monkeypatch.setattr('mmscale.memory.available_memory', lambda: 2**33)
    giant.save(tmp_path / 'giant.json')
    with at_most(2**31):
        for use in (
            lambda: mmscale.build(tmp_path / 'giant.json'),
            lambda: export(tmp_path / 'giant.json', tmp_path / 'out', random_weights=True,
                           formats=['mmpretrain']),
            lambda: mmscale.to_timm(giant),
        ):  # fmt: skip
            with pytest.raises(ValueError, match=r'6,\d{3},\d{3},\d{3} parameters: takes 2\d\.\d'):
                use()
        assert count(giant).params > 6 * 10**9


def test_images_that_do_not_fit_are_not_made(tmp_path):
    block = Block('basic', 3, 1, 4, 4, 4, 1, act='relu')
    arch = Arch(2**20, Stem(4, act='relu'), ((block,),), Head(num_classes=2))
    with at_most(2**31), pytest.raises(ValueError, match='on 1048576 x 1048576 px: takes 4'):
        export(arch, tmp_path / 'out', random_weights=True, formats=['mmpretrain'])
    assert not (tmp_path / 'out').exists()


def test_the_holes_of_a_file_take_no_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, '_LARGE_BYTES', 2**24)
    large = torch.zeros(2**28, dtype=torch.uint8)
    torch.save({'state_dict': {'large': large}}, tmp_path / 'whole.pth')
    del large
    with (tmp_path / 'whole.pth').open('rb') as whole, (tmp_path / 'a.pth').open('wb') as file:
        while part := whole.read(2**20):
            if any(part):
                file.write(part)
            else:
                file.seek(len(part), os.SEEK_CUR)
    restrict_torch_load()
    gc.collect()
    before = pages(1)
    for read in (load_checkpoint, torch.load):
        found = weights_of('a.pth', read(str(tmp_path / 'a.pth')))
        assert pages(1) - before < 2**27
    assert found['large'].shape == (2**28,) and not found['large'][-1]


def test_a_checkpoint_is_written_over_while_its_content_is_in_use(tmp_path):
    path = str(tmp_path / 'a.pth')
    torch.save({'state_dict': {'large': torch.ones(2**22)}}, path)
    content = load_checkpoint(path)
    torch.save(content, path)
    assert load_checkpoint(path)['state_dict']['large'].sum() == 2**22


def test_weights_that_repeat_each_other_are_refused(tmp_path):
    base = torch.zeros(2**20)
    tied = {f'{i}': base for i in range(20)}
    assert len(weights_of('a.pth', tied)) == 20
    torch.save({f'{i}': base for i in range(200)}, tmp_path / 'a.pth')
    found = load_checkpoint(str(tmp_path / 'a.pth'))
    with pytest.raises(ValueError, match='the weights repeat each other'):
        weights_of('a.pth', found)


def test_a_name_of_a_checkpoint_is_no_large_file(tmp_path):
    with (tmp_path / 'last_checkpoint').open('wb') as file:
        file.truncate(20 * 10**9)
    with at_most(2**30):
        assert find_checkpoints(tmp_path) == []
