"""One thread for each worker, before it loads torch: it is the tests that run in parallel."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
