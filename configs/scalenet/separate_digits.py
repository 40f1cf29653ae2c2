# A search per scaling stage of its own, with the schedule of search_digits.py.
_base_ = './search_digits.py'

test_cfg = dict(search=dict(type='mmscale.SeparateSearch'))
