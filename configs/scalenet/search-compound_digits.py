# Uniform compound scaling of a given base model, scored like the networks of a search.
_base_ = './search-mcea_digits.py'

test_cfg = dict(
    search=dict(
        _delete_=True,
        type='mmscale.GivenFamily',
        base='work_dirs/search-mcea_digits/archs/scaling_stage_0.json',
        strategy='compound',
    )
)
