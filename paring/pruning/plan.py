"""What a pruning run will do, checked before it does: options, tensors, budgets, output."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, get_args

import paring
from paring import adapters, atomic, registry
from paring.checkpoint import Checkpoint
from paring.devices import pick
from paring.errors import BadFileError, OptionError, OutputError, UnsupportedError
from paring.merging.plan import SHARD_BYTES
from paring.merging.record import metadata
from paring.packed import Packed, open_source
from paring.plan import refuse_sealed, thread_count
from paring.pruning import allocating, budgets, outliers, sparsity
from paring.pruning.matrix import Budget
from paring.pruning.reading import matrices
from paring.pruning.statistics import open_stats
from paring.pruning.tensors import Left, Target, sort
from paring.registry import Method
from paring.resumable import Shard, shards

Scope = Literal["tensor", "row", "global"]
Lines = Literal["outputs", "inputs"]
Tail = Literal["error", "dense"]

#: the method whose scores order as magnitudes do says so among its invariants: bits are compared then
BY_MAGNITUDE = "magnitude"


@dataclass(frozen=True, slots=True)
class Request:
    """What a user asked to prune: the arguments of :func:`paring.api.prune`, stored in recipes."""

    model: str
    method: str = "magnitude"
    sparsity: str | float | None = None
    keep: int | None = None
    of: int | None = None
    scope: str | None = None
    allocate: str = "uniform"
    lines: str | None = None
    budgets: Mapping[str, Any] | None = None
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    tail: str = "error"
    stats: str | None = None
    shard_size: int = SHARD_BYTES
    options: Mapping[str, Any] | None = None
    refit: bool = False
    outliers: float = 5.0
    spread: float = 0.08

    def recipe(self) -> dict[str, Any]:
        """As JSON; what was left out is left out."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__}
        found["options"] = dict(self.options or {})
        if self.sparsity is not None:
            found["sparsity"] = sparsity.decimal(sparsity.fraction(self.sparsity))
        if self.allocate != "owl":
            del found["outliers"], found["spread"]
        given = {key: value for key, value in found.items() if value not in (None, False, (), [], {})}
        return {"paring": paring.__version__, "command": "prune", **given}


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """One run. ``budgets`` is what each matrix keeps, by name: empty where data has to tell (``scope``
    global, LAMP), and without those that are kept whole."""

    method: Method
    options: dict[str, Any]
    request: Request
    checkpoint: Checkpoint
    share: Fraction | None
    targets: Sequence[Target]
    left: Sequence[Left]
    budgets: Mapping[str, Budget]
    output: Path
    single: bool
    files: Sequence[Shard]
    overwrite: bool
    threads: int
    device: str
    recipe: dict[str, Any]
    mask: Path | None = None
    stats: Path | None = None
    #: names of tensors that ``--budget`` is for
    fixed: frozenset[str] = frozenset()
    warnings: list[str] = field(default_factory=list)

    @property
    def by_bits(self) -> bool:
        """Whether magnitudes are cut as they are stored, without scores."""
        request = self.request
        return (
            BY_MAGNITUDE in self.method.invariants and request.lines is None and not request.refit
            and all(not b.row and b.of is None for b in self.budgets.values()) and request.scope != "row"
        )  # fmt: skip

    @property
    def bytes_out(self) -> int:
        return sum(shard.nbytes for shard in self.files)


def plan_prune(
    request: Request,
    output: str | os.PathLike[str],
    *,
    save_mask: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    threads: int | None = None,
    device: str = "auto",
    places: Mapping[str, str] | None = None,
) -> PrunePlan:
    """The plan of a run; no tensor is read. ``places`` says where inputs are found that are not where the
    request names them.

    Raises OptionError, UnsupportedError, BadFileError, OutputError.
    """
    method, options, share = check(request)
    request = replace(request, options=options, scope=request.scope or _scope(request, method))
    device = pick(device)
    if device != "cpu" and not method.torch:
        raise UnsupportedError(f"--device {device}: {method.name} runs on the CPU only; leave --device out")
    found = {name: (places or {}).get(name, name) for name in inputs_of(request)}
    checkpoint = open_dense(found[request.model])
    config = checkpoint.config("config.json") or {}
    targets, left = sort(checkpoint, config, request.include, request.exclude)
    if not targets:
        raise UnsupportedError(f"{checkpoint.path} holds nothing that is pruned by default: see --include")
    given, fixed, warnings = budgets.of_targets(request, targets, share)
    _refuse_unturned(request, method, targets)
    target = Path(output)
    single = target.suffix == ".safetensors"
    mask = None if save_mask is None else Path(save_mask)
    _refuse_output(target, single, mask, checkpoint, overwrite)
    stats = None if request.stats is None else Path(found[request.stats])
    if stats is not None and not stats.is_file():
        raise BadFileError(f"--stats {stats}: there is no such file; `paring calibrate` makes one")
    if stats is not None:
        warnings += _measured(stats, request, method, checkpoint, targets, given)
    limit = 1 << 62 if single else request.shard_size
    recipe = request.recipe()
    layout = [(info.name, info.dtype, info.shape) for info in checkpoint.tensors.values()]
    files = shards(layout, "model", limit, metadata(checkpoint.metadata, recipe))
    if not target.with_name(f".{target.name}.resume").exists():  # which has taken its room
        atomic.check_room(target, sum(shard.nbytes for shard in files))
    return PrunePlan(
        method, options, request, checkpoint, share, targets, left, given, target, single, files, overwrite,
        thread_count(threads), device, recipe, mask, stats, fixed, warnings,
    )  # fmt: skip


def check(request: Request) -> tuple[Method, dict[str, Any], Fraction | None]:
    """What options alone can tell: the method, its options and the sparsity, parsed. Raises OptionError."""
    method = registry.load("prune", request.method)
    if method.sees == "model":
        raise OptionError(
            f"--method {method.name} retrains what is pruned: --retrain {method.name} --data TEXT"
        )
    options = method.parse(request.options or {})
    for option, value, allowed in (
        ("scope", request.scope, (None, *get_args(Scope))), ("tail", request.tail, get_args(Tail)),
        ("lines", request.lines, (None, *get_args(Lines))),
    ):  # fmt: skip
        if value not in allowed:
            names = ", ".join(name for name in allowed if name)
            raise OptionError(f"--{option} {value}: expected {names}")
    allocating.named(request.allocate)
    grouped = request.keep is not None or request.of is not None
    if grouped and (request.keep is None or request.of is None):
        raise OptionError("--keep and --of go together, as in --keep 2 --of 4")
    if (request.sparsity is not None) == grouped and not (request.budgets and not grouped):
        raise OptionError("say how much goes: --sparsity .5, or --keep 2 --of 4 (one of them)")
    if grouped:
        sparsity.group(request.keep or 0, request.of or 0)
    share = None if request.sparsity is None else sparsity.fraction(request.sparsity)
    fixed = [
        f"--{name} {value}" for name, value, default in (
            ("scope", request.scope or "tensor", "tensor"), ("allocate", request.allocate, "uniform"),
            ("lines", request.lines, None),
        ) if value != default
    ]  # fmt: skip
    if grouped and fixed:
        raise OptionError(f"{fixed[0]}: groups of {request.of} each keep {request.keep}; leave it out")
    if len(fixed) > 1 and not (request.scope == "row" and request.allocate != "uniform" and len(fixed) == 2):
        raise OptionError(f"{' '.join(fixed)}: these exclude each other")
    if request.budgets and request.scope == "global":
        raise OptionError("--budget gives tensors a share of their own, --scope global shares one threshold")
    if method.unit == "tensor" and (request.scope == "global" or request.lines or request.tail == "dense"):
        raise OptionError(
            f"{method.name} changes what stays and works matrix by matrix: --scope tensor or row, no "
            "--lines, --tail error"
        )
    if request.refit and request.scope == "global":
        raise OptionError("--refit works matrix by matrix: --scope tensor or row")
    wants = method.name if method.sees in ("norms", "grams") else "--refit" if request.refit else None
    wants = wants or ("--allocate owl" if request.allocate == "owl" else None)
    if wants and request.stats is None:
        raise OptionError(f"{wants} needs statistics of inputs: `paring calibrate` makes them, for --stats")
    if request.allocate == "owl":
        outliers.check(request.outliers, request.spread)
    if request.shard_size < 1:
        raise OptionError(f"--shard-size {request.shard_size}: at least 1")
    return method, options, share


def _scope(request: Request, method: Method) -> Scope:
    """What shares one threshold where nobody says: rows, where a method is published so."""
    free = request.of is None and request.lines is None and request.allocate != "lamp"
    return "row" if method.unit == "row" and free else "tensor"


def _measured(
    path: Path, request: Request, method: Method, checkpoint: Checkpoint, targets: Sequence[Target],
    given: Mapping[str, Budget],
) -> list[str]:  # fmt: skip
    """Refuse statistics that lack what is needed, or of other shapes; warn of those that are not needed."""
    products = method.sees == "grams" or request.refit
    if not products and method.sees != "norms" and request.allocate != "owl":
        return [f"{method.name} does not look at --stats"]
    found = open_stats(path)
    found.check(checkpoint, digest=False)
    names = [targets[index].matrix(number) for index, number in matrices(targets)]
    early = request.scope != "global" and request.allocate not in allocating.BY_DATA
    found.covers(name for name in names if name in given or not early)
    if products and not found.gram:
        wants = "--refit" if request.refit else method.name
        raise OptionError(f"{wants} needs products of inputs, and {path} has none: calibrate with --gram")
    return []


def inputs_of(request: Request) -> list[str]:
    """Every input by the name that the request has for it."""
    return [name for name in (request.model, request.stats) if name is not None]


def open_dense(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a checkpoint whose weights can be pruned. Raises UnsupportedError for packed files, adapters."""
    checkpoint = open_source(path)
    if isinstance(checkpoint, Packed):
        raise UnsupportedError(f"{path} is packed: `paring decompress` it first")
    adapter = adapters.read(checkpoint, derived=True)
    if adapter.dialect != "none" and adapter.modules:
        raise UnsupportedError(
            f"{path} is an adapter: prune takes checkpoints, `compress` makes adapters small"
        )
    return checkpoint


def _refuse_unturned(request: Request, method: Method, targets: Sequence[Target]) -> None:
    """Raise UnsupportedError where it matters which axis is the input and nothing tells."""
    indifferent = BY_MAGNITUDE in method.invariants and request.scope != "row"
    if indifferent and not (request.of or request.lines or request.budgets):
        return
    for target in targets:
        if target.turned is None:
            raise UnsupportedError(
                f"{target.name} {list(target.shape)} may be stored as (in, out), and no config.json says so: "
                "give the folder that holds the model with its config.json, or --exclude the tensor"
            )


def _refuse_output(
    target: Path, single: bool, mask: Path | None, checkpoint: Checkpoint, overwrite: bool
) -> None:
    atomic.refuse_same_file(target, [checkpoint.path, *checkpoint.inputs])
    if single:
        atomic.refuse_existing(target, overwrite)
        if checkpoint.path.is_dir() and target.parent.resolve() == checkpoint.path.resolve():
            raise OutputError(
                f"{target} would be a second checkpoint in {checkpoint.path}: choose another -o"
            )
    elif target.exists() and not target.is_dir():
        raise OutputError(f"{target} exists and is not a folder: choose another -o")
    refuse_sealed(target)
    if mask is not None:
        if mask.suffix != ".safetensors":
            raise OptionError(f"--save-mask {mask}: name a file that ends in .safetensors")
        if mask.absolute() == target.absolute() or target.absolute() in mask.absolute().parents:
            raise OptionError(f"--save-mask {mask}: name a file outside {target}, which is a model's")
        atomic.refuse_same_file(mask, [checkpoint.path, *checkpoint.inputs])
        refuse_sealed(mask)
