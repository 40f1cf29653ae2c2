# What search-random_resnet_digits.py finds with seed 0.
_base_ = './arch-net_resnet_digits.py'

model = dict(backbone=dict(arch="""{{ fileDirname }}/archs/resnet-random.json"""))
