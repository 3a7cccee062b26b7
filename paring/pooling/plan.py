"""What a pool will be made of, checked before it is: from headers, configuration and options alone."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paring
from paring import adapters, atomic, manifest
from paring.adapters.view import Adapter
from paring.budget import Budget
from paring.devices import pick
from paring.errors import OptionError, UnsupportedError
from paring.hub import names
from paring.packed import Packed, open_source
from paring.plan import SUFFIX, default_output, refuse_sealed, stem, thread_count
from paring.pooling.members import Member, holds_adapters, names_of
from paring.registry import Method


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """Adapters to be put in one pool, by name; ``kept`` is a pool that they are added to."""

    adapters: dict[str, Adapter]
    kept: Packed | None
    method: Method
    options: dict[str, Any]
    error: float | None
    output: Path
    overwrite: bool
    threads: int
    device: str

    @property
    def recipe(self) -> dict[str, Any]:
        """The exact options, to be stored in the output."""
        paths = (adapter.checkpoint.path for adapter in self.adapters.values())
        found = [str(origin) for path in paths if (origin := names.ref_of(path)) is not None]
        return {"error": self.error, **self.options, **({"sources": found} if found else {})}

    @property
    def bytes_in(self) -> int:
        """The sources' size as stored; of a pool that is added to, that of the pool."""
        return sum(a.checkpoint.nbytes for a in self.adapters.values()) + (
            self.kept.nbytes if self.kept else 0
        )

    def facts(self, name: str, digest: str) -> dict[str, Any]:
        """What the manifest tells of one adapter beside its error; what is empty is left out. ``digest`` is
        that of its tensors.
        """
        adapter = self.adapters[name]
        checkpoint = adapter.checkpoint
        told: dict[str, Any] = {
            "name": name,
            "digest": digest,
            "dialect": adapter.dialect,
            "kind": adapter.kind,
            "source": {"name": checkpoint.files[0].name, "bytes": checkpoint.nbytes, "sha256": digest},
            "config": adapter.config,
            "metadata": checkpoint.metadata,
        }
        return {key: value for key, value in told.items() if value or key == "digest"}

    def close(self) -> None:
        """Let go of all files."""
        for adapter in self.adapters.values():
            adapter.checkpoint.close()
        if self.kept is not None:
            self.kept.close()


def plan_pool(
    sources: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str] | None,
    *,
    budget: Budget,
    method: Method,
    options: dict[str, Any],
    carry: str = "lossless",
    overwrite: bool = False,
    threads: int | None = None,
    device: str = "auto",
) -> PoolPlan:
    """Check everything that headers, configuration and options can tell.

    Raises BadFileError, UnsupportedError, OptionError or OutputError; nothing has been written then.
    """
    parsed = method.parse(options)
    for flag, value in budget.recipe().items():
        if value is not None and flag != "error":
            raise OptionError(
                f"--{flag.replace('_', '-')}: method {method.name} loses nothing, or at most "
                "--error E: give that"
            )
    if carry != "lossless":
        raise OptionError(
            f"--carry {carry}: method {method.name} keeps tensors that are no factors as they are"
        )
    kept: Packed | None = None
    views: list[tuple[Path, Adapter]] = []
    inputs: list[Path] = []
    for source in map(Path, sources):
        opened = open_source(source, whole=True)
        inputs += [source, *opened.inputs]
        if not isinstance(opened, Packed):
            views.append((source, _view(opened)))
        elif not holds_adapters(opened):
            already = "in a pool" if isinstance(opened, Member) else "packed"
            raise UnsupportedError(f"{source} is {already} already: `paring decompress` it first")
        elif kept is not None:
            raise UnsupportedError(f"{kept.path} and {source} are pools: adapters can be added to one only")
        else:
            kept = opened
    if not views:
        raise UnsupportedError(f"{kept.path if kept else 'a pool'}: name at least one adapter to add to it")
    if output is None and (kept is not None or len(views) > 1):
        raise OptionError("several adapters go to one pool: say which file with -o")
    target = Path(output) if output is not None else default_output(views[0][0])
    if not target.name.endswith(".safetensors"):
        target = target.with_name(target.name + SUFFIX)
    atomic.refuse_same_file(target, inputs)
    atomic.refuse_existing(target, overwrite)
    refuse_sealed(target)
    named = _names([path for path, _ in views], names_of(kept) if kept else [])
    plan = PoolPlan(
        {name: view for name, (_, view) in zip(named, views, strict=True)}, kept, method, parsed,
        budget.error, target, overwrite, thread_count(threads), pick(device),
    )  # fmt: skip
    told = {"tool": f"paring {paring.__version__}", "recipe": plan.recipe}
    manifest.check({**told, "adapters": [plan.facts(name, "") for name in named]}, f"{target}: what it tells")
    atomic.check_room(target, plan.bytes_in)
    return plan


def _view(opened: Any) -> Adapter:
    adapter = adapters.read(opened)
    adapter.refuse_problems()
    if not opened.tensors:
        raise UnsupportedError(f"{opened.path} holds no tensors")
    foreign = "peft_type" in (adapter.config or {})  # of a kind that is not read: its tensors may repeat
    if adapter.dialect == "none" and not foreign and adapters.read(opened, derived=True).dialect == "none":
        raise UnsupportedError(
            f"{opened.path}: no adapter factors among its {len(opened.tensors)} tensors; "
            "compress takes adapters"
        )
    return adapter


def _names(paths: Sequence[Path], taken: Sequence[str]) -> list[str]:
    """A name for each adapter: its file's or folder's, or its folder's where that says nothing; never that of
    another one, nor a number, which says which one is meant.
    """
    out: list[str] = []
    used = set(taken)
    for path in paths:
        own = stem(path)
        if (
            own in ("adapter_model", "pytorch_lora_weights", "model")
            or [stem(p) for p in paths].count(own) > 1
        ):
            own = path.absolute().parent.name if path.is_file() else own
        base = re.sub(r"[/#\0]", "_", own) or "adapter"
        base = f"adapter-{base}" if base.isdecimal() else base
        name, number = base, 1
        while name in used:
            number += 1
            name = f"{base}-{number}"
        used.add(name)
        out.append(name)
    return out
