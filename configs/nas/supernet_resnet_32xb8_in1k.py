# The super-supernet of the ResNet space on ImageNet, with ScaleNet's schedule.
_base_ = [
    '../_base_/models/super_net_in1k.py',
    '../_base_/search_spaces/resnet.py',
    '../_base_/datasets/imagenet_train.py',
    '../_base_/schedules/imagenet_super_net_sgd.py',
    '../_base_/super_net_runtime.py',
]

model = dict(backbone=dict(space={{_base_.space}}))

# The data are what no search scores.
train_dataloader = dict(
    batch_size=8, dataset=dict(dataset=dict(ann_file='meta/train_without_search.txt'))
)
default_hooks = dict(checkpoint=dict(interval=5000))
auto_scale_lr = dict(enable=False, base_batch_size=256)
