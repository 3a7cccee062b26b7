"""How kernels are compiled: on first use, without the interpreter lock, and kept on disk where there is room.

Machine code is kept in the user's cache folder, not beside the sources as numba would have it: what it leaves
there no installer removes, and such a folder hides a later installation. NUMBA_CACHE_DIR, if set, is
respected. Where nothing can be written (a container that runs as nobody) each process compiles anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numba

from paring.kernels.machine import folder

F = TypeVar("F", bound=Callable[..., Any])


def jit(**options: Any) -> Callable[[F], F]:
    """``numba.njit`` with ``nogil`` and, where possible, ``cache``; ``options`` are numba's.

    Floats divide as numpy's do: a check for zero in a loop would keep it from becoming vectors.
    """
    options = {"nogil": True, "error_model": "numpy", **options}
    compiler: Any = numba.njit

    def compiled(function: F) -> F:
        made: F
        try:
            with _kept_elsewhere():
                made = compiler(cache=True, **options)(function)
        except RuntimeError:  # "no locator available": nowhere to keep it
            made = compiler(**options)(function)
        return made

    return compiled


@contextmanager
def _kept_elsewhere() -> Iterator[None]:
    """Meanwhile numba keeps what it decorates in our folder; others' functions stay where they are."""
    config: Any = numba.config
    before = config.CACHE_DIR
    config.CACHE_DIR = before or str(folder())
    try:
        yield
    finally:
        config.CACHE_DIR = before
