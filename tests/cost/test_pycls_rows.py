"""Networks of three families, written as Archs, against complexities that pycls computed.

``tests/data/pycls_base.csv`` holds the unscaled networks: computed with the unmodified code of
pycls at commit 5719de6, which adds bias additions to flops and max-pool outputs to acts.
"""

import csv
import json
from pathlib import Path

import pytest

from mmscale.arch import Arch, Block, Head, SqueezeExcite, Stem
from mmscale.cost import count

DATA = Path(__file__).parents[1] / 'data' / 'pycls_base.csv'
EFFICIENTNET_KERNELS = (3, 3, 5, 3, 5, 5, 3)
EFFICIENTNET_STRIDES = (1, 2, 2, 2, 1, 2, 1)


def efficientnet(row):
    """Squeeze width is a quarter of the block's input; blocks without expansion are dsconvs."""
    stages, channels = [], row['stem_w']
    for i, (depth, width) in enumerate(zip(row['depths'], row['widths'], strict=True)):
        blocks = []
        for j in range(depth):
            hidden = channels * row['bot_muls'][i]
            stride = EFFICIENTNET_STRIDES[i] if j == 0 else 1
            blocks.append(
                Block(
                    kind='dsconv' if hidden == channels else 'mbconv',
                    kernel=EFFICIENTNET_KERNELS[i],
                    stride=stride,
                    in_channels=channels,
                    hidden_channels=hidden,
                    out_channels=width,
                    groups=hidden,
                    se=SqueezeExcite(int(channels * 0.25), act='silu', gate='sigmoid'),
                    act='silu',
                    residual='identity' if stride == 1 and channels == width else 'none',
                )
            )
            channels = width
        stages.append(tuple(blocks))
    head = Head(row['head_w'], num_classes=1000, act='silu')
    return Arch(row['resolution'], Stem(row['stem_w'], act='silu'), tuple(stages), head)


def anynet(row):
    """RegNet X, Y, Z, ResNet and ResNeXt: Z has linear blocks without projections, X no SE."""
    linear = row['base'].startswith('RegNetZ')
    resnet = row['base'].startswith('ResNe')
    act = 'silu' if linear else 'relu'
    stages, channels = [], row['stem_w']
    for i, (depth, width) in enumerate(zip(row['depths'], row['widths'], strict=True)):
        blocks = []
        for j in range(depth):
            stride = (1 if resnet and i == 0 else 2) if j == 0 else 1
            hidden = round(width * row['bot_muls'][i])
            se = None
            if row['base'].startswith(('RegNetY', 'RegNetZ')):
                se = SqueezeExcite(round(channels * 0.25), act=act, gate='sigmoid')
            identity = stride == 1 and channels == width
            blocks.append(
                Block(
                    kind='mbconv' if linear else 'bottleneck',
                    kernel=3,
                    stride=stride,
                    in_channels=channels,
                    hidden_channels=hidden,
                    out_channels=width,
                    groups=hidden // min(row['group_ws'][i], hidden),
                    se=se,
                    act=act,
                    residual='identity' if identity else 'none' if linear else 'projection',
                )
            )
            channels = width
        stages.append(tuple(blocks))
    stem = Stem(row['stem_w'], kernel=7 if resnet else 3, act=act, max_pool=resnet)
    head = Head(row['head_w'], num_classes=1000, act=act)
    return Arch(row['resolution'], stem, tuple(stages), head)


def read_rows(path):
    numbers = ('resolution', 'flops', 'params', 'acts', 'stem_w', 'head_w')
    lists = ('depths', 'widths', 'bot_muls', 'group_ws')
    with path.open(encoding='utf-8', newline='') as file:
        for row in csv.DictReader(file):
            row.update({key: int(row[key]) for key in numbers})
            row.update({key: json.loads(row[key] or 'null') for key in lists})
            yield row


def build(row):
    return efficientnet(row) if row['base'].startswith('EfficientNet') else anynet(row)


@pytest.mark.parametrize('row', list(read_rows(DATA)), ids=lambda row: row['base'])
def test_arch_costs_what_pycls_computed(row):
    arch = build(row)
    cost = count(arch, 'pycls')
    assert (cost.flops, cost.params, cost.acts) == (row['flops'], row['params'], row['acts'])
    assert Arch.from_json(json.loads(json.dumps(arch.to_json()))) == arch


def test_rows_cover_every_family():
    families = {row['base'].partition('-')[0] for row in read_rows(DATA)}
    assert families == {'EfficientNet', 'RegNetX', 'RegNetY', 'RegNetZ', 'ResNet', 'ResNeXt'}


def test_conventions_differ_by_bias_additions_and_max_pool_outputs():
    rows = {row['base']: row for row in read_rows(DATA)}
    efficientnet_b0 = build(rows['EfficientNet-B0'])
    assert count(efficientnet_b0).flops == 385_814_752
    assert count(efficientnet_b0, 'pycls').flops - count(efficientnet_b0).flops == 10_340
    assert count(efficientnet_b0).acts == count(efficientnet_b0, 'pycls').acts
    resnet = build(rows['ResNet-50'])
    assert count(resnet, 'pycls').flops - count(resnet).flops == 1000
    assert count(resnet, 'pycls').acts - count(resnet).acts == 64 * 56 * 56
