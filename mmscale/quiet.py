"""Keeps what OpenMMLab packages say about parts that mmscale does not use off the screen."""

import contextlib
import io
import sys
import warnings
from collections.abc import Iterator

# mmpretrain and mmdet print a line (OneDL needs a package of its own); mmcv warns when it is
# built without compiled ops.
UNUSED_DATASETS = ('Could not import OneDL', 'Could not import OneDL. Skipping OneDL datasets.')
UNUSED_OP = 'Fail to import ``MultiScaleDeformableAttention``'


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
    """Drops known messages while a tool imports OpenMMLab packages; everything else is shown.

    What the imports print appears when the block ends, also when it ends with an error.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), warnings.catch_warnings():
            warnings.filterwarnings('ignore', message=UNUSED_OP)
            yield
    finally:
        lines = printed.getvalue().splitlines(keepends=True)
        sys.stdout.writelines(line for line in lines if line.strip() not in UNUSED_DATASETS)
