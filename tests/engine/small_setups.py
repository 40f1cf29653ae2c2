"""Constants of the small setups, and a module that kills the process that imports it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

SPACE = dict(
    in_channels=1,
    num_classes=10,
    se=dict(),
    stem=dict(channels=4),
    stages=[
        dict(channels=4, stride=1, expand=1, depths=[1, 2], kernels=[3, 5]),
        dict(channels=6, stride=2, expand=2, depths=[1, 2, 3], kernels=[3, 5]),
    ],
    head=dict(channels=12),
    scaling_stages=[
        dict(depth=[1], width=[1], resolution=[12]),
        dict(depth=[1.2, 1.6, 2.2], width=[1.2, 1.4, 1.6], resolution=[12, 14, 16]),
    ],
)

# Imported through custom_imports, it kills the process at a chosen moment.
KILL_IN_EVALUATION = """
import os, signal
from mmscale.engine import SubnetEvaluator
evaluate, calls = SubnetEvaluator.evaluate, []
def killing_evaluate(self, arch):
    calls.append(arch)
    score = evaluate(self, arch)
    if len(calls) == {number}:
        os.kill(os.getpid(), signal.SIGKILL)
    return score
SubnetEvaluator.evaluate = killing_evaluate
"""

AUGMENT = [
    dict(type='mmscale.RandomResizedCropToResolution', crop_ratio_range=(0.5, 1.0)),
    dict(type='RandomFlip', prob=0.5),
]
PLAIN = [dict(type='mmscale.ResizeToResolution')]
RESOLUTION_SAMPLER = dict(type='mmscale.ResolutionSampler', seed=0)
DEFAULT_SAMPLER = dict(type='DefaultSampler', shuffle=False)
