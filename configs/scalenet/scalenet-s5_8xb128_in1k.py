_base_ = './scalenet-s0_8xb128_in1k.py'

model = dict(backbone=dict(arch='scalenet-s5'), head=dict(dropout=0.4))
