"""Keeps what OpenMMLab packages say about parts that mmscale does not use off the screen."""

import contextlib
import io
import sys
import warnings
from collections.abc import Iterator

# mmpretrain prints the line (its OneDLDataset needs a package of its own); mmcv warns when it is
# built without compiled ops.
UNUSED_DATASET = 'Could not import OneDL'
UNUSED_OP = 'Fail to import ``MultiScaleDeformableAttention``'


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
    """Drops two known messages while a tool imports mmpretrain; everything else is shown.

    What the imports print appears when the block ends, also when it ends with an error.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), warnings.catch_warnings():
            warnings.filterwarnings('ignore', message=UNUSED_OP)
            yield
    finally:
        lines = printed.getvalue().splitlines(keepends=True)
        sys.stdout.writelines(line for line in lines if line.strip() != UNUSED_DATASET)
