"""The line about an original of OpenMMLab beside its onedl- build, on real metadata."""

import sys

import pytest

from mmscale.launch.installed import installed_twice
from mmscale.launch.runner import run_tool


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A function that installs a distribution's metadata where nothing else is installed."""
    monkeypatch.setattr(sys, 'path', [str(tmp_path)])

    def install(name, version):
        folder = tmp_path / f'{name.replace("-", "_")}-{version}.dist-info'
        folder.mkdir()
        (folder / 'METADATA').write_text(
            f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n', encoding='utf-8'
        )

    return install


@pytest.mark.parametrize(
    'names', [(), ('mmengine', 'mmcv', 'mmdet'), ('onedl-mmengine', 'onedl-mmcv'),
              ('mmengine', 'onedl-mmcv')]
)  # fmt: skip
def test_nothing_is_said_of_single_ones(site, names, capsys):
    for name in names:
        site(name, '1.0')
    assert installed_twice() is None
    run_tool(lambda: None)
    assert capsys.readouterr().err == ''


def test_what_replaced_what_and_the_way_out(site):
    for name in ('mmengine', 'onedl-mmengine', 'mmcv-lite', 'onedl-mmcv', 'onedl-mmdetection'):
        site(name, '0.10' if 'engine' in name else '2.3')
    assert installed_twice() == (
        'mmengine 0.10 and onedl-mmengine 0.10, mmcv-lite 2.3 and onedl-mmcv 2.3 are installed '
        'together and share a folder (mmengine, mmcv), which may hold files of either; mend it '
        'with: pip uninstall mmengine onedl-mmengine mmcv-lite onedl-mmcv; '
        "pip install --no-deps 'onedl-mmengine==0.10' 'onedl-mmcv==2.3'"
    )


@pytest.mark.parametrize(('rank', 'lines'), [(None, 1), ('0', 1), ('3', 0)])
def test_a_tool_says_it_once_and_goes_on(site, rank, lines, monkeypatch, capsys):
    monkeypatch.delenv('RANK', raising=False)
    if rank is not None:
        monkeypatch.setenv('RANK', rank)
    site('mmdet', '3.3.0')
    site('onedl-mmdetection', '3.5.1')
    run_tool(lambda: print('done'))
    out, err = capsys.readouterr()
    assert out == 'done\n'
    assert err.count('\n') == lines
    assert ('warning: mmdet 3.3.0 and onedl-mmdetection 3.5.1 are' in err) == (lines == 1)
