# The same search of a trained ResNet-18 whose weights rest: 200 iterations of the structure alone.
# Needs model.pretrained=work_dirs/resnet18-w16_digits/iter_600.pth
_base_ = './dms-resnet18-w16_digits.py'

model = dict(pipeline='p-', pretrained='work_dirs/resnet18-w16_digits/iter_600.pth')

param_scheduler = []
train_cfg = dict(max_iters=200, val_interval=200)
