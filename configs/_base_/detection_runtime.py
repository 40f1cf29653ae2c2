# What detection configs need on top of the runtime that all configs share.
_base_ = './default_runtime.py'

default_scope = 'mmdet'
visualizer = dict(
    type='DetLocalVisualizer', vis_backends={{_base_.vis_backends}}, name='visualizer'
)
