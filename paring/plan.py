"""What will happen, checked before it does: from headers, configuration and options alone.

A :class:`CompressPlan` holds all that can be known before the first factor is read, and has refused
whatever can be refused by then.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import paring
from paring import adapters, atomic, manifest, registry
from paring.adapters.view import Adapter, Carried
from paring.budget import Budget
from paring.checkpoint import Checkpoint
from paring.devices import pick
from paring.dtypes import numel
from paring.errors import OptionError, OutputError, UnsupportedError
from paring.hub import names
from paring.packed import Packed, open_source
from paring.registry import Method

Carry = Literal["lossless", "fp16", "drop"]
SUFFIX = ".paring.safetensors"
#: methods that take every tensor as stored, all together or one at a time
_WHOLE = ("weights", "tensors")


@dataclass(frozen=True, slots=True)
class CompressPlan:
    """One source to be compressed: what from, by what, into what, within what."""

    source: Checkpoint
    adapter: Adapter
    method: Method
    options: dict[str, Any]
    budget: Budget
    carry: Carry
    output: Path
    overwrite: bool
    threads: int
    device: str

    @property
    def elements(self) -> int:
        """Elements of the source, of all tensors."""
        return sum(numel(info.shape) for info in self.source.tensors.values())

    @property
    def most_bytes(self) -> int | None:
        """The largest packed file that the budget allows, None for an error budget or a fixed coding."""
        if fixing(self.method, self.options) is not None or (self.whole and not self.asked):
            return None
        return self.budget.most_bytes(self.source.nbytes, self.elements)

    @property
    def asked(self) -> bool:
        """Whether the budget is one that somebody asked for, not the default."""
        return any(value is not None for value in self.budget.recipe().values())

    @property
    def whole(self) -> bool:
        """Whether the method takes every tensor as stored: then nothing is carried beside it."""
        return self.method.sees in _WHOLE

    @property
    def recipe(self) -> dict[str, Any]:
        """The exact options, to be stored in the output."""
        origin = names.ref_of(self.source.path)
        source = {} if origin is None else {"source": str(origin)}
        return {**self.budget.recipe(), "carry": self.carry, **self.options, **source}

    def facts(self, source_digest: str) -> dict[str, Any]:
        """What the manifest tells beside tensors and losses; what is empty is left out."""
        source = {"name": self.source.files[0].name, "bytes": self.source.nbytes, "sha256": source_digest}
        facts: dict[str, Any] = {
            "tool": f"paring {paring.__version__}",
            "dialect": self.adapter.dialect,
            "kind": self.adapter.kind,
            "method": self.method.name,
            "recipe": self.recipe,
            "source": source,
            "config": self.adapter.plain_config(),
            "metadata": self.source.metadata,
            "dropped": [tensor.name for tensor in self.dropped],
        }
        return {key: value for key, value in facts.items() if value or key == "recipe"}

    @property
    def dropped(self) -> tuple[Carried, ...]:
        """The tensors that are not factors, and are left out: never a scalar, which may be a module's
        alpha."""
        carried = self.adapter.carried if self.carry == "drop" and not self.whole else ()
        return tuple(tensor for tensor in carried if not is_scalar(self.source, tensor))

    @property
    def carried(self) -> tuple[Carried, ...]:
        """The tensors that are not factors, and stay in the file."""
        if self.whole:
            return ()
        dropped = {tensor.name for tensor in self.dropped}
        return tuple(tensor for tensor in self.adapter.carried if tensor.name not in dropped)


def plan_compress(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str] | None,
    *,
    budget: Budget,
    method: str,
    options: dict[str, Any],
    carry: str = "lossless",
    overwrite: bool = False,
    threads: int | None = None,
    device: str = "auto",
) -> CompressPlan:
    """Check everything that headers, configuration and options can tell.

    Raises BadFileError, UnsupportedError, OptionError or OutputError; nothing has been written then.
    """
    chosen = registry.load("compress", method)
    parsed = chosen.parse(options)
    if carry not in get_args(Carry):
        raise OptionError(f"--carry {carry}: expected {', '.join(get_args(Carry))}")
    if (own := fixing(chosen, parsed)) is not None and any(
        value is not None for value in budget.recipe().values()
    ):
        flag = "--" + own.replace("_", "-")
        raise OptionError(f"{flag} fixes what is kept, {budget} asks to have it solved: give one of them")
    if chosen.sees in _WHOLE and carry != "lossless":
        raise OptionError(f"--carry {carry}: method {method} keeps every tensor itself; leave it out")
    threads, device = thread_count(threads), pick(device)
    source = Path(source)
    checkpoint = open_source(source)
    if isinstance(checkpoint, Packed):
        raise UnsupportedError(f"{source} is packed already: `paring decompress` it first")
    target = Path(output) if output is not None else default_output(source)
    atomic.refuse_same_file(target, [source, *checkpoint.inputs])
    atomic.refuse_existing(target, overwrite)
    refuse_sealed(target)
    adapter = adapters.read(checkpoint, derived=True, native=False)
    if chosen.sees not in _WHOLE:
        adapter.refuse_problems()
    if not (checkpoint.tensors if chosen.sees in _WHOLE else (*adapter.modules, *adapter.vectors)):
        raise UnsupportedError(_nothing(adapter))
    plan = CompressPlan(
        checkpoint, adapter, chosen, parsed, budget, cast("Carry", carry), target, overwrite, threads, device
    )  # fmt: skip
    manifest.check(plan.facts(""), f"{source}: what a packed file tells of it")
    atomic.check_room(target, plan.most_bytes or checkpoint.nbytes // (1 if plan.whole else 4))
    return plan


def fixing(method: Method, options: Mapping[str, Any]) -> str | None:
    """The option that says by itself how much is kept, or None."""
    return next((name for name in method.fixes if options.get(name) is not None), None)


def is_scalar(source: Checkpoint, tensor: Carried) -> bool:
    """Whether a carried tensor is a single number: an alpha, say, without which factors mean something
    else."""
    return source.tensors[tensor.name].numel == 1


def refuse_sealed(target: Path) -> None:
    """Raise OutputError now when the folder of ``target`` cannot be written in or made."""
    here = next(folder for folder in target.absolute().parents if os.path.lexists(folder))
    if not here.is_dir():
        raise OutputError(f"cannot write {target}: {here} is not a folder")
    if not os.access(here, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {target}: {here} is read-only, or not yours to write in")


def _nothing(adapter: Adapter) -> str:
    """Why there is nothing to compress."""
    path, carried = adapter.checkpoint.path, adapter.carried
    if not carried:
        return f"{path} holds no tensors"
    if adapter.dialect == "none":
        return (
            f"{path}: no adapter factors among its {len(carried)} tensors (the first is {carried[0].name}); "
            "compress takes adapters, or a full fine-tune with its --base"
        )
    return f"{path}: nothing here can be compressed; {carried[0].name} is {carried[0].why}"


def stem(source: Path) -> str:
    """What a source is called: a folder's name, a file's without its suffix, or a repository's."""
    if (named := names.title(source)) is not None:
        return named
    source = source.absolute()
    return source.name if source.is_dir() else source.stem


def default_output(source: Path) -> Path:
    """``NAME.paring.safetensors`` beside the source; here, for one from the Hub."""
    folder = source.absolute().parent if names.ref_of(source) is None else Path.cwd()
    return folder / (stem(source) + SUFFIX)


def outputs(sources: list[Path], folder: Path) -> list[Path]:
    """One output for each of many sources, in ``folder``; files of one name take their folder's.

    Raises OptionError when two sources would still share an output.
    """
    stems = [stem(source) for source in sources]
    named = [
        source.absolute().parent.name if source.is_file() and stems.count(own) > 1 else own
        for source, own in zip(sources, stems, strict=True)
    ]
    for name in named:
        if named.count(name) > 1:
            twins = [str(source) for source, own in zip(sources, named, strict=True) if own == name]
            raise OptionError(
                f"{twins[0]} and {twins[1]} would both be written to {name}{SUFFIX}: compress them apart"
            )
    return [folder / (name + SUFFIX) for name in named]


def thread_count(threads: int | None) -> int:
    """``threads``, or as many as this process may use. Raises OptionError below 1."""
    if threads is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if threads < 1:
        raise OptionError(f"--threads {threads}: at least 1")
    return threads
