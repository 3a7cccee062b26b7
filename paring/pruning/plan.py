"""What a pruning run will do, checked before it does: options, tensors, budgets, output."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from paring import adapters, atomic
from paring.checkpoint import Checkpoint
from paring.devices import pick
from paring.errors import BadFileError, OptionError, OutputError, UnsupportedError
from paring.merging.record import metadata
from paring.outputs import Output
from paring.packed import Packed, open_source
from paring.plan import refuse_sealed, thread_count
from paring.pruning import allocating, budgets
from paring.pruning.masks import MaskFile, of_mask, open_mask
from paring.pruning.matrix import Budget
from paring.pruning.reading import matrices
from paring.pruning.request import BY_MAGNITUDE, Request, check, inputs_of, scope_of, wants_stats
from paring.pruning.statistics import open_stats
from paring.pruning.tensors import Left, Target, sort
from paring.registry import Method
from paring.resumable import Shard


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
    #: a mask that says all that stays
    given: MaskFile | None = None
    #: names of tensors that ``--budget`` is for
    fixed: frozenset[str] = frozenset()
    warnings: list[str] = field(default_factory=list)

    @property
    def by_bits(self) -> bool:
        """Whether magnitudes are cut as they are stored, without scores."""
        request = self.request
        return self.given is None and (
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
    if request.mask is None:
        request = replace(request, options=options, scope=request.scope or scope_of(request, method))
    device = pick(device)
    if device != "cpu" and not method.torch:
        raise UnsupportedError(f"--device {device}: {method.name} runs on the CPU only; leave --device out")
    found = {name: (places or {}).get(name, name) for name in inputs_of(request)}
    checkpoint = open_dense(found[request.model])
    config = checkpoint.config("config.json") or {}
    given = None
    if request.mask is not None:
        given = open_mask(found[request.mask])
        targets, left = of_mask(given, checkpoint)
    else:
        targets, left = sort(checkpoint, config, request.include, request.exclude)
    if not targets:
        raise UnsupportedError(f"{checkpoint.path} holds nothing that is pruned by default: see --include")
    allotted, fixed, warnings = budgets.of_targets(request, targets, share)
    _refuse_unturned(request, method, targets)
    stats = None if request.stats is None else Path(found[request.stats])
    mask = None if save_mask is None else Path(save_mask)
    recipe = request.recipe()
    layout = [(info.name, info.dtype, info.shape) for info in checkpoint.tensors.values()]
    facts = metadata(checkpoint.metadata, recipe)
    made = Output(Path(output), layout, facts, overwrite, request.shard_size)
    beside = [file for file in (stats, None if given is None else given.path) if file is not None]
    _refuse_output(made, mask, checkpoint, [checkpoint.path, *checkpoint.inputs, *beside])
    if stats is not None and not stats.is_file():
        raise BadFileError(f"--stats {stats}: there is no such file; `paring calibrate` makes one")
    if stats is not None and wants_stats(request, method) is None:
        warnings.append(f"{method.name} does not look at --stats")
        stats = None
    elif stats is not None:
        _refuse_unmeasured(stats, request, method, targets, allotted)
    return PrunePlan(
        method, options, request, checkpoint, share, targets, left, allotted, made.path, made.single,
        made.files, overwrite, thread_count(threads), device, recipe, mask, stats, given, fixed, warnings,
    )  # fmt: skip


def _refuse_unmeasured(
    path: Path, request: Request, method: Method, targets: Sequence[Target], given: Mapping[str, Budget]
) -> None:
    """Refuse statistics that lack what is needed. Whether they are of this model is seen when the work
    begins, for that takes reading it."""
    products = method.sees == "grams" or request.refit
    found = open_stats(path)
    names = [targets[index].matrix(number) for index, number in matrices(targets)]
    early = request.scope != "global" and request.allocate not in allocating.BY_DATA
    found.covers(name for name in names if name in given or not early)
    if products and not found.gram:
        wants = "--refit" if request.refit else method.name
        raise OptionError(f"{wants} needs products of inputs, and {path} has none: calibrate with --gram")


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
    made: Output, mask: Path | None, checkpoint: Checkpoint, inputs: Sequence[str | Path]
) -> None:
    target = made.path
    made.refuse(inputs)
    if made.single and checkpoint.path.is_dir() and target.parent.resolve() == checkpoint.path.resolve():
        raise OutputError(f"{target} would be a second checkpoint in {checkpoint.path}: choose another -o")
    if mask is not None:
        if mask.suffix != ".safetensors":
            raise OptionError(f"--save-mask {mask}: name a file that ends in .safetensors")
        if mask.absolute() == target.absolute() or target.absolute() in mask.absolute().parents:
            raise OptionError(f"--save-mask {mask}: name a file outside {target}, which is a model's")
        atomic.refuse_same_file(mask, inputs)
        refuse_sealed(mask)
