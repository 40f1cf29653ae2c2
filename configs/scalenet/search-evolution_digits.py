# Plain evolution at one budget, the base model's.
_base_ = './search-mcea_digits.py'

test_cfg = dict(
    search=dict(_delete_=True, type='mmscale.EvolutionSearch', strategy=None, evaluations=50)
)
