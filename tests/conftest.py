"""One BLAS thread: modules run in parallel threads of their own, as under the command line."""

import os

import pytest

for _library in ("OPENBLAS", "MKL", "VECLIB"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Folders of tiny models of transformers, by their types."""
    from tests.shrinking import made_in

    return made_in(tmp_path_factory.mktemp("models"))
