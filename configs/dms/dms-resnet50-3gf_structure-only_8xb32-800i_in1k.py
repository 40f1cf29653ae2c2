# The protocol of the paper's Table 2: a trained ResNet-50 comes down to 3 G multiply-adds in 800
# iterations of its structure alone, and is tested as it is. Needs model.pretrained: a checkpoint
# of mmpretrain's ResNet-50.
_base_ = ['mmpretrain::_base_/datasets/imagenet_bs32.py', '../_base_/default_runtime.py']

model = dict(
    type='mmscale.DMSModel',
    target=dict(flops=3.0e9),
    input_shape=(3, 224, 224),
    pipeline='p-',
    pretrained='checkpoints/resnet50_8xb32_in1k.pth',
    model=dict(
        type='ImageClassifier',
        backbone=dict(type='ResNet', depth=50, style='pytorch'),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(
            type='LinearClsHead',
            num_classes=1000,
            in_channels=2048,
            loss=dict(type='CrossEntropyLoss'),
            topk=(1, 5),
        ),
    ),
)
custom_hooks = [
    dict(type='mmscale.IterationSeedHook'),
    dict(type='mmscale.StrictLoadHook'),
    dict(type='mmscale.DMSHook', interval=100, calibration_images=4096),
]

# Nothing but the structure is trained: the weights' optimizer has nothing to do.
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.0))
param_scheduler = []
train_cfg = dict(by_epoch=False, max_iters=800, val_interval=800)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(enable=False, base_batch_size=256)
