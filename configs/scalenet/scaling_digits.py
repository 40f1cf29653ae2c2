# The scaling strategy of a given base model: after evolution_digits.py, the sequential baseline.
_base_ = './search_digits.py'

test_cfg = dict(
    search=dict(
        _delete_=True,
        type='mmscale.ScalingSearch',
        base='work_dirs/evolution_digits/archs/scaling_stage_0.json',
    )
)
