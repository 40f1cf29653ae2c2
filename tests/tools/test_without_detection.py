"""Without mmdet and mmcv's compiled ops all but detection works, and detection says what to do."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MISSING = ['MMDetection', "mmcv's compiled ops"]
CONFIG = ROOT / 'configs/det/retinanet_scalenet-s1_fpn_1x_coco.py'
# Inherits nothing from mmdet.
OWN_CONFIG = "default_scope = 'mmdet'\nmodel = dict(type='RetinaNet')\n"

# Everything in one process, as its imports take most of the time; a tool runs in a fork of it.
PROGRAM = """
import importlib, os, pkgutil, runpy, sys, types

# A module that is None in there cannot be imported.
sys.modules.update(dict.fromkeys(['mmdet', 'mmcv._ext']))
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
    print(model(torch.rand(2, 1, 24, 24)).shape, flush=True)

folder, *cases = sys.argv[1:]
for missing, config in zip(cases[::2], cases[1::2]):
    pid = os.fork()
    if pid == 0:
        sys.stderr = open(f'{folder}/{missing}', 'w')
        if missing != 'MMDetection':
            sys.modules['mmdet'] = types.ModuleType('mmdet')
        sys.argv = ['train.py', config, '--work-dir', f'{folder}/work']
        code = 0
        try:
            runpy.run_path('tools/train.py', run_name='__main__')
        except SystemExit as end:
            code = end.code
        sys.stderr.close()
        os._exit(code)
    print(missing, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.fixture(scope='module')
def done(tmp_path_factory):
    """What the program writes, and the folder of the trainings that it tries."""
    folder = tmp_path_factory.mktemp('tried')
    (folder / 'detector.py').write_text(OWN_CONFIG)
    cases = zip(MISSING, (CONFIG, folder / 'detector.py'), strict=True)
    words = [folder, *(word for case in cases for word in case)]
    found = subprocess.run(
        [sys.executable, '-c', PROGRAM, *map(str, words)],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    return found.stdout.splitlines(), folder


@pytest.mark.slow
def test_search_and_classification_work(done):
    assert done[0].count('torch.Size([2, 10])') == 2


@pytest.mark.slow
@pytest.mark.parametrize('missing', MISSING)
def test_a_detection_config_says_what_to_install(missing, done):
    lines, folder = done
    assert f'{missing} 2' in lines
    said = (folder / missing).read_text()
    assert said.startswith(f'error: detection needs {missing}, ')
    assert said.endswith('install with: make detection (docs/detection.md)\n')
    assert said.count('\n') == 1
    assert not (folder / 'work').exists()
