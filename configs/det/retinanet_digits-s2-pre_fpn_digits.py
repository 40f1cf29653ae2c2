# The same from the weights that the search of this backbone left: first
# tools/train.py configs/scalenet/supernet_digits.py, then
# tools/search.py configs/scalenet/search-mcea_digits.py
_base_ = './retinanet_digits-s2_fpn_digits.py'

model = dict(
    backbone=dict(
        init_cfg=dict(
            type='Pretrained',
            checkpoint='work_dirs/search-mcea_digits/weights/scaling_stage_2.pth',
            prefix='backbone.',
        )
    )
)
