# Random search at as many evaluations as search-evolution_resnet_digits.py takes at most.
_base_ = './search-evolution_resnet_digits.py'

test_cfg = dict(search=dict(_delete_=True, type='mmscale.RandomSearch', evaluations=144))
