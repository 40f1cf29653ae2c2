"""Spaces of every kind of block, small enough to train, and classifiers of them."""

import torch

from mmscale.arch import HierarchicalSampler, SearchSpace
from mmscale.models import SuperNet, SuperNetClassifier

SE = dict(ratio=0.25)


def space_of(stages, **settings):
    common = dict(in_channels=1, num_classes=4, act='relu', resolution=[9, 12])
    common |= dict(stem=dict(channels=4), head=dict(channels=0), stages=stages)
    return SearchSpace(**(common | settings))


SPACES = {
    'mbconv': space_of(
        [
            dict(channels=4, depths=1, kernels=3, kind='dsconv'),
            dict(channels=[5, 6], stride=2, depths=[1, 2], kernels=[3, 5], expands=[2, 3],
                 se=[False, SE]),
            dict(channels=[6, 8], depths=[1, 3], kernels=[3, 5], expands=[1, 2],
                 act=['relu', 'silu']),
        ],
        stem=dict(channels=[3, 4]),
        head=dict(channels=8),
    ),
    'fused_mbconv': space_of(
        [
            dict(channels=[4, 6], stride=2, depths=[1, 2], kernels=[1, 3], expands=[1, 2],
                 kind='fused_mbconv', se=[False, SE]),
            dict(channels=[6, 9], depths=[1, 2], kernels=[3, 5], expands=2, kind='fused_mbconv'),
        ],
        head=dict(channels=[8, 10], hidden_channels=[5, 7]),
    ),
    'bottleneck': space_of(
        [
            dict(channels=[8, 12, 16], depths=[1, 2], kernels=[3, 5], expands=[0.5, 1],
                 kind='bottleneck'),
            dict(channels=[12, 16], stride=2, depths=[1, 2], kernels=3, expands=[0.25, 0.5],
                 kind='bottleneck', se=[False, SE]),
        ],
        stem=dict(channels=8, max_pool=True),
    ),
    'grouped': space_of(
        [
            dict(channels=[8, 16], stride=2, depths=[1, 2], kernels=[3, 5], kind='bottleneck',
                 group_widths=4),
            dict(channels=[16, 24], stride=2, depths=[1, 2], kernels=3, kind='bottleneck',
                 group_widths=[4, 8], se=SE),
            dict(channels=[16, 24], depths=[1, 2], kernels=3, expands=[1, 2], group_widths=[1, 8]),
        ],
    ),
    'basic': space_of(
        [
            dict(channels=[6, 8], depths=[1, 2], kernels=[3, 5], expands=[1, 2], kind='basic'),
            dict(channels=[8, 10], stride=2, depths=[1, 2], kernels=3, kind='basic'),
        ],
        stem=dict(channels=[6, 8]),
        head=dict(channels=6, hidden_channels=[5, 6]),
    ),
    'mixed': space_of(
        [
            dict(channels=[8, 12], depths=[1, 2], kernels=[3, 5], expands=[1, 2], se=[False, SE],
                 kind=['mbconv', 'fused_mbconv', 'bottleneck', 'basic'], group_widths=[0, 1, 4]),
            dict(channels=8, stride=2, depths=[1, 3], skips='anywhere', expands=2,
                 kind=['mbconv', 'conv'], kernels=[1, 3], first=dict(kind='conv', kernels=1)),
        ],
    ),
    'scaled': space_of(
        [
            dict(channels=[4, 6], depths=[1, 2], kernels=[3, 5], kind=['mbconv', 'bottleneck'],
                 expands=[1, 2]),
            dict(channels=[6, 8], stride=2, depths=[1, 2], kernels=[3, 5], kind='basic'),
        ],
        resolution=None,
        scaling_stages=[
            dict(depth=[1], width=[1], resolution=[9]),
            dict(depth=[1, 1.6], width=[1.3, 1.7], resolution=[9, 12]),
        ],
    ),
}  # fmt: skip


def make_classifier(space, kernels='shared', mode='single', head=None, neck=None, **settings):
    torch.manual_seed(0)
    backbone = SuperNet(space, kernels=kernels, **settings)
    if head is None:
        own = space.largest()
        head = dict(type='LinearClsHead', num_classes=own.head.num_classes, topk=(1,))
        widths = dict(in_channels=own.feature_channels)
        if own.head.hidden_channels:
            head['type'] = 'StackedLinearClsHead'
            widths['mid_channels'] = [own.head.hidden_channels]
        if not backbone.head_varies:
            head |= widths
    neck = neck or dict(type='GlobalAveragePooling')
    return SuperNetClassifier(backbone, mode=mode, neck=neck, head=head)


def draws_of(space, number, seed=0):
    sampler = HierarchicalSampler(space, seed, 'uniform')
    return [sampler.draw(i) for i in range(number)]


def archs_of(space, number, seed=0):
    drawn = [draw.arch for draw in draws_of(space, number, seed)]
    return list(dict.fromkeys([space.smallest(), space.largest(), *drawn]))


def images_of(arch, number=2):
    generator = torch.Generator().manual_seed(0)
    shape = number, arch.stem.in_channels, arch.resolution, arch.resolution
    return torch.randn(shape, dtype=torch.float64, generator=generator)
