# A search per scaling stage of its own, with the schedule of search-mcea_digits.py.
_base_ = './search-mcea_digits.py'

test_cfg = dict(search=dict(type='mmscale.SeparateSearch'))
