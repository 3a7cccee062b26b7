"""The verbs, for pipelines: what the command line does, as functions that return reports.

    from paring.api import compress, decompress, load

    report = compress("adapter_model.safetensors", ratio=20)
    print(report.output, report.ratio, report.error)
    tensors = load(report.output)

All errors raised on purpose are :class:`paring.errors.ParingError`. Nothing here prints.
"""

from __future__ import annotations

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
