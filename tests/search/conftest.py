"""Lets the tests of this folder import `analytic_problem`, which subprocesses run too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
