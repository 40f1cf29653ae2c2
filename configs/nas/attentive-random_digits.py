# What search-random_attentive_digits.py finds with seed 0.
_base_ = './arch-net_attentive_digits.py'

model = dict(backbone=dict(arch="""{{ fileDirname }}/archs/attentive-random.json"""))
