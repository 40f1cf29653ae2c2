"""Settings that every test runs under."""

import os

# Before torch is imported: one thread a process, asleep while it waits.
os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('MKL_NUM_THREADS', '1')
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
os.environ.setdefault('MPLBACKEND', 'Agg')

from hypothesis import settings

# No deadline, as no test may depend on time; the same examples in every run.
settings.register_profile('mmscale', deadline=None, derandomize=True)
settings.load_profile('mmscale')
