# Random search on the digit data, at as many evaluations as search-mcea_digits.py.
_base_ = './search-mcea_digits.py'

test_cfg = dict(search=dict(_delete_=True, type='mmscale.RandomSearch', evaluations=200))
