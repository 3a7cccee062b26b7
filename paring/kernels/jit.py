"""How kernels are compiled: on first use, without the interpreter lock, and kept on disk where there is room.

numba wants a folder to keep machine code in, beside the source or under the user's home. Where neither can
be written (a container that runs as nobody) it refuses to compile at all: then kernels are compiled in each
process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

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
            made = compiler(cache=True, **options)(function)
        except RuntimeError:  # "no locator available": nowhere to keep it
            made = compiler(**options)(function)
        return made

    return compiled
