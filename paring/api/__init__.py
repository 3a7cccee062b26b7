"""The verbs, for pipelines: what the command line does, as functions that return reports.

    from paring.api import compress, decompress, load

    report = compress("adapter_model.safetensors", ratio=20)
    print(report.output, report.ratio, report.error)
    tensors = load(report.output)

All errors raised on purpose are :class:`paring.errors.ParingError`. Nothing here prints.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paring.api.compressing import compress, convert, decompress
    from paring.api.merging import diff, extract, merge, merge_recipe, search
    from paring.api.pruning import apply_mask, calibrate, evaluate, prune, shrink
    from paring.api.results import inspect, push, rerun, verify
    from paring.loading import load, load_into, to_torch

__all__ = [
    "apply_mask",
    "calibrate",
    "compress",
    "convert",
    "decompress",
    "diff",
    "evaluate",
    "extract",
    "inspect",
    "load",
    "load_into",
    "merge",
    "merge_recipe",
    "prune",
    "push",
    "rerun",
    "search",
    "shrink",
    "to_torch",
    "verify",
]

#: where the verbs are; one that is not asked for is not imported
_HOMES = {
    "compressing": ("compress", "convert", "decompress"),
    "merging": ("diff", "extract", "merge", "merge_recipe", "search"),
    "pruning": ("apply_mask", "calibrate", "evaluate", "prune", "shrink"),
    "results": ("inspect", "push", "rerun", "verify"),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = next((f"{__name__}.{file}" for file, verbs in _HOMES.items() if name in verbs), "paring.loading")
    found = globals()[name] = getattr(import_module(home), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
