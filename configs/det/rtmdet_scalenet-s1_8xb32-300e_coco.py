_base_ = './rtmdet_scalenet-s0_8xb32-300e_coco.py'

model = dict(backbone=dict(arch='scalenet-s1'))
