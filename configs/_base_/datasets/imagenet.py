# ImageNet-1k to train, validate and test with.
_base_ = './imagenet_train.py'

val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ImageNet', data_root='data/imagenet', split='val', pipeline={{_base_.test_pipeline}}
    ),
    collate_fn=dict(type='default_collate'),
    persistent_workers=True,
    pin_memory=True,
)
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_dataloader = val_dataloader
test_evaluator = val_evaluator
