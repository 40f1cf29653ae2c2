# ofa-mbv3.py with its resolutions as a scaling: the base model has 128 pixels, its larger relative
# the same blocks at 132 to 224, so that one network is searched for two budgets.
_base_ = './ofa-mbv3.py'

space = dict(
    resolution=None,
    scaling_stages=[
        dict(depth=[1.0], width=[1.0], resolution=[128]),
        dict(depth=[1.0], width=[1.0], resolution=list(range(132, 225, 4))),
    ],
)
