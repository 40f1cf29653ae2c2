# One to eight digits of several sizes among clutter to train, validate and test with.
_base_ = './digits_detection_train.py'

val_dataloader = dict(
    batch_size=25,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmscale.DigitsDetection',
        split='search',
        pipeline={{_base_.test_pipeline}},
        test_mode=True,
    ),
)
# Without a file of annotations the metric takes them from the images' own `instances`.
val_evaluator = dict(type='CocoMetric', metric='bbox')
test_dataloader = dict(
    batch_size=25,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmscale.DigitsDetection',
        split='test',
        pipeline={{_base_.test_pipeline}},
        test_mode=True,
    ),
)
test_evaluator = val_evaluator
