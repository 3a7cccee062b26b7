"""One BLAS thread: modules run in parallel threads of their own, as under the command line."""

import os

for _library in ("OPENBLAS", "MKL", "VECLIB"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
