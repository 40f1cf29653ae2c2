# A search per scaling stage of its own: five of them, of some forty networks each.
_base_ = './search-mcea_digits.py'

test_cfg = dict(
    search=dict(
        _delete_=True,
        type='mmscale.SeparateSearch',
        population=6,
        generations=3,
        rounds=2,
        num_base_models=2,
    )
)
