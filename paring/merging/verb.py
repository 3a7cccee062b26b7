"""``merge``: what options can tell, checked; then one merge, or its stages one after another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from paring import registry
from paring.devices import pick
from paring.errors import OptionError, UnsupportedError
from paring.hub.names import PathLike
from paring.merging import stages
from paring.merging.places import placed
from paring.merging.request import Request, check
from paring.merging.single import How, merge_one
from paring.report import Report


def merge(
    request: Request,
    output: PathLike,
    *,
    overwrite: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    memory: int | None = None,
    device: str = "auto",
    places: Mapping[str, str] | None = None,
) -> Report:
    """Carry out ``request``. Raises every ParingError; nothing is half written then.

    ``places`` says where inputs are found that are not where the request names them.
    """
    _, options = check(request)
    request, places = placed(request, places or {})
    request = replace(request, options=options)  # as they were, whatever later defaults are
    if request.keep_mask is not None and device not in ("auto", "cpu"):
        raise UnsupportedError(f"--device {device}: --keep-mask works on the CPU only; leave --device out")
    device = "cpu" if request.keep_mask is not None else _device(request.method, pick(device))
    if request.base is not None and request.into is not None:
        raise OptionError("--base and --into both name the base: give one of them")
    how = How(overwrite, dry_run, threads, memory, device=device)
    if request.stages:
        return stages.merge(request, Path(output), how, places)
    return merge_one(request, Path(output), how, places)


def _device(method: str, device: str) -> str:
    """The device that a rule runs on: the CPU where it is written for no other."""
    if device != "cpu" and not registry.load("merge", method).torch:
        raise UnsupportedError(f"--device {device}: {method} runs on the CPU only; leave --device out")
    return device
