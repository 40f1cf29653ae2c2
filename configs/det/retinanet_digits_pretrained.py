# The same from the weights of a classifier: first tools/train.py configs/scalenet/digits-s2.py
_base_ = './retinanet_digits.py'

model = dict(
    backbone=dict(
        init_cfg=dict(
            type='Pretrained', checkpoint='work_dirs/digits-s2/iter_600.pth', prefix='backbone.'
        )
    )
)
