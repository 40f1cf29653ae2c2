# The scaling strategy of a given base model: after search-evolution_digits.py, the sequential
# baseline.
_base_ = './search-mcea_digits.py'

test_cfg = dict(
    search=dict(
        _delete_=True,
        type='mmscale.ScalingSearch',
        base='work_dirs/search-evolution_digits/archs/scaling_stage_0.json',
    )
)
