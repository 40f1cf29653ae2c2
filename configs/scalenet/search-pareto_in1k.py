# The front of score against multiply-adds on ImageNet, over the published search space.
_base_ = './search-mcea_in1k.py'

test_cfg = dict(
    search=dict(
        _delete_=True,
        type='mmscale.ParetoSearch',
        metric='flops',
        cost_range=[0.2e9, 4e9],
        population=64,
        generations=40,
    ),
    # A range of costs takes the place of budgets.
    budget=None,
    tolerance=None,
    weights=None,
)
