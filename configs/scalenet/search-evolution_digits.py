# Plain evolution at one budget, the base model's, with the generations of search-mcea_digits.py.
_base_ = './search-mcea_digits.py'

test_cfg = dict(
    search=dict(
        _delete_=True, type='mmscale.EvolutionSearch', strategy=None, population=6, generations=6
    )
)
