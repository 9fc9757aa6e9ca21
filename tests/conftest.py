"""One thread for each worker, before it loads torch: it is the tests that run in parallel.

A fuzzer tries `LLMSIM_FUZZ` cases, the same ones each time; `benchmarks/fuzz.py` tries others.
"""

import os

from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile(
    "few",
    max_examples=int(os.environ.get("LLMSIM_FUZZ", "100")),
    derandomize=True,
    deadline=None,  # the judge has its own
    database=None,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("few")
