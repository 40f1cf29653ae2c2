_base_ = './arch-net_digits.py'

model = dict(backbone=dict(arch="""{{ fileDirname }}/archs/digits-s4.json"""))
