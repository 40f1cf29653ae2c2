"""What an Arch's file remembers of a config: names and numbers, checked like all that is read."""

import json
from dataclasses import replace

import pytest
from mmengine.config import Config

from mmscale.arch import Arch, get_arch
from mmscale.arch.origin import Origin, origin_of, read_origin
from mmscale.errors import UsageError

ORIGIN = Origin('search.py', 'FashionMNIST', (72.9,), (90.0,))


def test_it_is_beside_the_network_and_not_of_it(tmp_path):
    arch = get_arch('ResNet-18')
    arch.save(tmp_path / 'a.json', ORIGIN)
    arch.save(tmp_path / 'b.json')
    assert read_origin(tmp_path / 'a.json') == ORIGIN
    assert read_origin(tmp_path / 'b.json') is None
    assert Arch.from_json(tmp_path / 'a.json') == Arch.from_json(tmp_path / 'b.json') == arch
    assert Origin.from_json('x', json.loads(json.dumps(ORIGIN.to_json()))) == ORIGIN
    assert replace(ORIGIN, to_rgb=True).preprocessor == dict(mean=[72.9], std=[90], to_rgb=True)


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        ('search.py', 'expected an object'),
        (dict(file='x'), 'unknown key file'),
        (dict(config='../../evil.py'), r"origin.config='../../evil.py' must be a name"),
        (dict(config='a\nb'), 'must be a name'),
        (dict(dataset="x'; import os"), 'must be a name'),
        (dict(dataset=['a']), 'must be a name'),
        (dict(config='a' * 121), 'must be a name'),
        (dict(mean=[1], std=[float('nan')]), r'origin\.std\[0\]=nan'),
        (dict(mean=['1'], std=[1]), r"origin\.mean\[0\]='1'"),
        (dict(mean=[1]), 'mean and std must be of the same channels'),
        (dict(mean=[1] * 65, std=[1] * 65), 'must be numbers, one a channel'),
        (dict(to_rgb='yes'), "origin.to_rgb='yes' must be true or false"),
    ],
)
def test_what_is_no_name_and_no_number_is_refused(data, message, tmp_path):
    path = tmp_path / 'a.json'
    path.write_text(json.dumps({**get_arch('ResNet-18').to_json(), 'origin': data}))
    for read in (read_origin, Arch.from_json):
        with pytest.raises(UsageError, match=message) as error:
            read(path)
        assert str(path) in str(error.value) and '\n' not in str(error.value)


def test_what_is_remembered_of_configs(tmp_path):
    path = tmp_path / "o'neil.py"
    path.write_text('')
    part = dict(type='mmpretrain.CIFAR10', data_root='/home/me')
    both = dict(type='ConcatDataset', datasets=[part, dict(type='FashionMNIST')])
    config = Config(
        dict(
            train_dataloader=dict(dataset=dict(type='RepeatDataset', dataset=both)),
            test_dataloader=dict(dataset=dict(type='ImageNet')),
            model=dict(data_preprocessor=dict(mean=[1, 2, 3], std=(4, 5, 6), bgr_to_rgb=True)),
        ),
        filename=str(path),
    )
    found = origin_of(config, 'a.py')
    assert found == Origin('a.py', 'CIFAR10, FashionMNIST', (1, 2, 3), (4, 5, 6), True)
    assert origin_of(config).config is None  # it could not be read back
    assert str(origin_of({})) == 'not known'
    # Of something else than numbers nothing is remembered.
    for mean in (127.5, ['x'], [[1]], None):
        assert origin_of(dict(data_preprocessor=dict(mean=mean, std=[1]))).mean is None
