"""Heavy reductions and element-wise work, by topic. Kernels know arrays, not files.

Each topic is a package with ``reference.py`` (numpy, plain: the specification), ``cpu.py`` (numba) and, where
it pays, ``gpu.py`` (torch): same names, same results. numba and torch are imported when a kernel is first
asked for.
"""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType
from typing import Any


@cache
def module(topic: str, name: str) -> ModuleType:
    """``paring.kernels.TOPIC.NAME``, imported on first use and found at once from then on."""
    return importlib.import_module(f"{__name__}.{topic}.{name}")


def module_for(topic: str, values: Any) -> ModuleType:
    """The kernels of a topic for ``values``: ``gpu`` for torch tensors, ``cpu`` for numpy arrays."""
    return module(topic, "gpu" if hasattr(values, "is_cuda") else "cpu")
