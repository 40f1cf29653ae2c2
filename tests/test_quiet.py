import warnings

import pytest

from mmscale.quiet import UNUSED_DATASETS, UNUSED_OP, quiet_imports


def test_only_the_known_messages_are_dropped(capsys):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        with quiet_imports():
            print('before')
            print(*UNUSED_DATASETS, sep='\n')
            print(UNUSED_DATASETS[0], 'and more')
            warnings.warn(UNUSED_OP + ' from ``mmcv.ops``', stacklevel=1)
            warnings.warn('another', stacklevel=1)
    assert capsys.readouterr().out == f'before\n{UNUSED_DATASETS[0]} and more\n'
    assert [str(warning.message) for warning in caught] == ['another']


def test_output_is_shown_when_the_import_fails(capsys):
    with pytest.raises(ImportError), quiet_imports():
        print('why it failed')
        raise ImportError
    assert capsys.readouterr().out == 'why it failed\n'
