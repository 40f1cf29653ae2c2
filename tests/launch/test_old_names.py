from pathlib import Path

import pytest

from mmscale.launch.old_names import RENAMED_CONFIGS, now_called

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'


pytestmark = pytest.mark.usefixtures('own_environment')


@pytest.mark.parametrize('old', RENAMED_CONFIGS)
def test_the_new_name_is_there_and_the_old_one_is_not(old):
    assert not (CONFIGS / old).exists()
    assert (CONFIGS / RENAMED_CONFIGS[old]).is_file()


def test_a_tool_names_the_new_config(tool):
    old = CONFIGS / 'scalenet' / 'random_digits.py'
    code, error = tool('search.py', old)
    new = CONFIGS / 'scalenet' / 'search-random_digits.py'
    assert (code, error) == (2, f'error: config={old} is not a file; it is {new} now\n')


def test_so_does_a_tool_whose_config_has_an_old_one_as_its_base(tool):
    base = CONFIGS / 'dms' / 'retrain_arch_net_digits.py'
    Path('mine.py').write_text(f'_base_ = {str(base)!r}\n')
    code, error = tool('train.py', 'mine.py')
    assert code == 2 and error.count('\n') == 1
    assert error.endswith(f'it is {CONFIGS / "scalenet" / "arch-net_digits.py"} now\n')


@pytest.mark.parametrize(
    ('path', 'new'),
    [
        ('configs/dms/arch_net_digits.py', 'configs/dms/dms-digits-s2.py'),
        ('configs/dms/retrain_arch_net_digits.py', 'configs/scalenet/arch-net_digits.py'),
        ('dms/llama_7b.py', 'dms/dms-llama-7b-5.47b_alpaca.py'),
    ],
)
def test_the_new_path_is_given_as_the_old_one_was(path, new):
    assert now_called(path) == f'; it is {new} now'


def test_in_the_folder_itself(monkeypatch):
    monkeypatch.chdir(CONFIGS / 'det')
    assert now_called('retinanet_digits.py').endswith('det/retinanet_digits-s2_fpn_digits.py now')


@pytest.mark.parametrize('path', ['', '/', 'x.py', 'mine/random_digits.py', 'scalenet'])
def test_other_files_never_had_another_name(path):
    assert now_called(path) == ''
