# The front of score against multiply-adds on the digit data: the best network at every budget.
_base_ = './search-mcea_digits.py'

test_cfg = dict(
    search=dict(
        _delete_=True,
        type='mmscale.ParetoSearch',
        metric='flops',
        cost_range=[0.5e6, 12e6],
        population=16,
        generations=10,
    ),
    # A range of costs takes the place of budgets.
    budget=None,
    tolerance=None,
    weights=None,
)
