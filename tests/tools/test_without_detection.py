"""Without mmdet and mmcv's compiled ops all but detection works, and detection says what to do."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / 'configs/det/retinanet_scalenet-s1_fpn_1x_coco.py'
# A module that is None in there cannot be imported.
WITHOUT = 'import sys\nsys.modules.update(dict.fromkeys({names!r}))\n'

WORKS = """
import importlib, pkgutil
import mmscale

for module in pkgutil.walk_packages(mmscale.__path__, 'mmscale.'):
    importlib.import_module(module.name)
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmscale.registry import MODELS

init_default_scope('mmpretrain')
for name in ('digits-s0', 'supernet_digits'):
    config = Config.fromfile(f'configs/scalenet/{name}.py')
    model = MODELS.build(config.model)
    print(model(torch.rand(2, 1, 24, 24)).shape)
"""


def run(names, program, *arguments):
    return subprocess.run(
        [sys.executable, '-c', WITHOUT.format(names=names) + program, *arguments],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip


@pytest.mark.slow
def test_search_and_classification_work():
    done = run(['mmdet', 'mmcv._ext'], WORKS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('torch.Size([2, 10])') == 2


@pytest.mark.slow
@pytest.mark.parametrize('missing', ['MMDetection', "mmcv's compiled ops"])
def test_a_detection_config_says_what_to_install(missing, tmp_path):
    names, config = ['mmdet', 'mmcv._ext'], CONFIG
    program = 'import runpy\nrunpy.run_path("tools/train.py", run_name="__main__")'
    if missing != 'MMDetection':
        # Whether mmdet is here or not; the config inherits nothing from it.
        program = f'import types\nsys.modules["mmdet"] = types.ModuleType("mmdet")\n{program}'
        config = tmp_path / 'detector.py'
        config.write_text("default_scope = 'mmdet'\nmodel = dict(type='RetinaNet')\n")
    done = run(names, program, str(config), '--work-dir', str(tmp_path / 'work'))
    assert done.returncode == 2
    assert done.stderr.startswith(f'error: detection needs {missing}, ')
    assert done.stderr.endswith('install with: make detection (docs/detection.md)\n')
    assert done.stderr.count('\n') == 1
    assert not (tmp_path / 'work').exists()
