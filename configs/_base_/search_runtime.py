# What evolution of one network needs on top of the runtime that all configs share; children set
# load_from and test_cfg.budget.
_base_ = './default_runtime.py'

custom_hooks = [dict(type='mmscale.StrictLoadHook')]
test_cfg = dict(
    type='mmscale.SearchLoop',
    search=dict(type='mmscale.EvolutionSearch', population=64, generations=40),
    tolerance=0.05,
    weights=[1],
)
