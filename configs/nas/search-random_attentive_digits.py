# Random search at as many evaluations as search-evolution_attentive_digits.py takes at most.
_base_ = './search-evolution_attentive_digits.py'

test_cfg = dict(search=dict(_delete_=True, type='mmscale.RandomSearch', evaluations=144))
