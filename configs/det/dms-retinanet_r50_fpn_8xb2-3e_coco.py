# Learns the widths and depths of RetinaNet-R50 on COCO, in a quarter of the 1x schedule: half of
# its multiply-adds are left. Then tools/prune.py, whose --recipe is the base of this file.
_base_ = '../_base_/models/retinanet_r50_fpn.py'
custom_imports = dict(imports=['mmscale.models', 'mmscale.engine'])

model = dict(
    _delete_=True,
    type='mmscale.DMSModel',
    target=0.5,
    input_shape=(3, 800, 1280),
    model={{_base_.model}},
)
custom_hooks = [dict(type='mmscale.DMSHook', interval=100)]

# The learning rate stays: it falls when the network that was found is trained.
param_scheduler = [dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500)]
train_cfg = dict(max_epochs=3)
