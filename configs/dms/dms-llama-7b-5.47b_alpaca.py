# LLaMA-7B comes down from 6.74 to the paper's 5.47 G parameters by its heads and MLPs alone, as
# the paper does on Alpaca with the whole model as the teacher; not run. The weights stay as they
# are, as their optimizer would not fit on one GPU beside the teacher.
_base_ = [
    '../_base_/models/llama_7b.py',
    '../_base_/datasets/alpaca.py',
    '../_base_/default_runtime.py',
]

model = dict(
    _delete_=True,
    type='mmscale.DMSModel',
    target=dict(params=5.47e9),
    search=['width'],
    width_kinds=['heads', 'width'],
    pipeline='p-',
    pretrained='data/llama-7b.pth',
    input_shape=(2048,),
    model={{_base_.model}},
)
custom_hooks = [
    dict(type='mmscale.IterationSeedHook'),
    dict(type='mmscale.StrictLoadHook'),
    dict(type='mmscale.DMSHook', interval=100),
]

# No parameter of the model is trained; the structure has an optimizer of its own.
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.0))
train_cfg = dict(by_epoch=False, max_iters=2000)
