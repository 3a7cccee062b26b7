"""From arguments to a :class:`~paring.merging.plan.MergePlan`: open, align, refuse, lay out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_type_hints

from paring import atomic
from paring.dtypes import parse_dtype
from paring.errors import OptionError, OutputError, UnsupportedError
from paring.hub.names import PathLike
from paring.merging import configs
from paring.merging import layers as numbered
from paring.merging.inputs import Model, assumed_scales, different_bases, full_tensors, refuse_kinds
from paring.merging.models import Target
from paring.merging.modules import weight_names
from paring.merging.plan import Copied, MergePlan, align, layout
from paring.merging.request import Request, check
from paring.merging.sources import Entry
from paring.merging.tasks import Tasks, entries_of, packs
from paring.merging.vocabularies.vocabulary import choose
from paring.merging.weights import Weighting, layers_in, parse
from paring.packed import Packed
from paring.plan import refuse_sealed, thread_count
from paring.pruning.masks import MaskFile
from paring.registry import Method
from paring.resumable import shards


def refuse_pack(output: Path, method: Method) -> None:
    """Raise OptionError for a packed file as the output of a rule that makes one model."""
    if packs(output) and get_type_hints(method.function).get("return") is not Tasks:
        raise OptionError(f"-o {output}: a packed file is for several tasks, {method.name} makes one model")


def plan_checkpoint(
    request: Request,
    models: Sequence[Model],
    base: Model | None,
    output: PathLike,
    *,
    overwrite: bool = False,
    threads: int | None = None,
    mask: MaskFile | None = None,
) -> MergePlan:
    """The plan of a merge whose result is a checkpoint. No tensor is read.

    Raises OptionError, UnsupportedError, BadFileError, OutputError.
    """
    method, options = check(request)
    opened: list[Model | None] = [base, *models]
    if all(model.updates for model in opened if model is not None):
        raise UnsupportedError("only adapters and no base to put them in: this is no merge of checkpoints")
    # an adapter is an update of the base, so with one among them all models are seen as updates
    deltas = method.sees != "weights" or any(model.updates for model in models)
    if request.keep_mask == "scale":
        _refuse_derived(models)
    if request.keep_mask is not None and not deltas:
        raise OptionError(f"--keep-mask {request.keep_mask}: {method.name} merges weights, not deltas")
    if deltas and base is None:
        why = f"{method.name} works on deltas" if method.sees != "weights" else "an adapter is among them"
        raise OptionError(f"{why}: add --base, the model that these were tuned from")
    if request.keep_mask is not None and packs(Path(output)):
        raise OptionError(f"--keep-mask {request.keep_mask}: not for a packed file of several tasks")
    stacked = method.name == "passthrough"
    warnings = [] if stacked else [*alike(opened), *different_bases(models), *assumed_scales(models)]
    warnings += _left_out(models, request.carried)
    whole = [model for model in opened if model is not None and not model.updates]
    entries = {name: Entry(info.shape, info.dtype) for name, info in whole[0].checkpoint.tensors.items()}
    tensors: list[Mapping[str, Entry] | None] = [
        None if model is None else _entries(model, entries, request.carried) for model in opened
    ]
    updates = frozenset(i for i, model in enumerate(opened) if model is not None and model.updates)
    weights = parse(request.weights, len(models), 1.0)
    if any(entry.dtype == "F64" for found in tensors for entry in (found or {}).values()):
        warnings.append("fp64 tensors are merged in fp32")
    vocabulary = None
    if request.tokenizer is not None:
        named = request.base if request.base is not None else request.into
        vocabulary = choose(request.tokenizer, opened, [named, *request.models], tensors)
        tensors, warnings = vocabulary.entries(tensors), warnings + vocabulary.warnings
    choice = None
    if request.layers:
        tail, stack = request.tail == "last", options.get("stack")
        choice = numbered.choose(
            opened, tensors, request.layers, stacked=stacked, tail=tail, stack=stack, cast=bool(request.dtype)
        )
        tensors, warnings = choice.tensors, warnings + choice.warnings
    weighting = Weighting(weights, tuple(request.patterns), choice.count if choice else layers_in(entries))
    dtype = parse_dtype(request.dtype)
    more: list[str] = []
    if choice and stacked:
        targets, copied = numbered.stack(choice, opened, weighting, dtype)
    else:
        targets, copied, more = align(opened, tensors, updates, deltas, weighting, dtype, request.missing)
    weighting.refuse_unused([*(target.name for target in targets), *(copy.name for copy in copied)])
    if choice and not stacked:
        targets, copied = choice.renamed(targets, copied)
    target = Path(output)
    single = target.suffix == ".safetensors"
    refuse_pack(target, method)
    if mask is not None:
        _refuse_mask(mask, target, targets, copied)
    if single and vocabulary and vocabulary.added:
        raise OptionError("--tokenizer union makes a tokenizer: name a folder with -o, not a file")
    recipe = request.recipe()
    files = _files(request, targets, copied, whole[0], single, recipe)
    _refuse_output(target, single, [model for model in opened if model is not None], overwrite)
    if not target.with_name(f".{target.name}.resume").exists():  # which has taken its room
        atomic.check_room(target, sum(shard.nbytes for shard in files))
    return MergePlan(
        method, options, opened, deltas, request.scale, targets, copied, target, single, files,
        overwrite, thread_count(threads), recipe, [*warnings, *more],
        configs.joined(choice.config if choice else {}, vocabulary.config if vocabulary else {}), vocabulary,
        request.keep_mask, mask,
    )  # fmt: skip


def _refuse_mask(mask: MaskFile, output: Path, targets: Sequence[Target], copied: Sequence[Copied]) -> None:
    """Raise BadFileError for another model's mask, OptionError where there is no model to mask."""
    if packs(output):
        raise OptionError("--mask is for a merged checkpoint, not for packed tasks")
    shapes = {target.name: target.shape for target in targets}
    mask.refuse_other(shapes | {copy.name: copy.entry.shape for copy in copied}, output)


def _entries(model: Model, base: Mapping[str, Entry], carried: str) -> dict[str, Entry]:
    """The tensors that a model has, or of the base that it updates. Raises UnsupportedError."""
    if model.task is not None:
        return _task_entries(model, base)
    if model.adapter is None:
        infos = model.checkpoint.tensors
        return {name: Entry(info.shape, info.dtype) for name, info in infos.items()}
    refuse_kinds(model)
    for vector in model.adapter.vectors:
        raise UnsupportedError(
            f"{model.path}: {vector.name} multiplies activations: it cannot be put in a base"
        )
    if carried != "drop" and (along := full_tensors(model)):
        raise UnsupportedError(
            f"{model.path}: {along[0]} is a full tensor and no factor; --carried drop leaves it out"
        )
    return {name: Entry(base[name].shape, "F32") for name in weight_names(model.adapter, base).values()}


def _refuse_derived(models: Sequence[Model]) -> None:
    """Only a plain pair of factors is a product that weights can be multiplied by."""
    for model in models:
        derived = next((m for m in model.adapter.modules if m.derived), None) if model.adapter else None
        if derived is not None or model.adapter is None:
            what = f"module {derived.name} is no plain pair of factors" if derived else "it is no adapter"
            raise UnsupportedError(f"{model.path}: {what}: --keep-mask scale takes ScaleLoRA adapters")


def _left_out(models: Sequence[Model], carried: str) -> list[str]:
    """Warnings of full tensors beside factors that do not get into a checkpoint."""
    named = [(model.path, full_tensors(model)) for model in models if carried == "drop"]
    return [f"{path}: {along[0]} and {len(along) - 1} more are left out" for path, along in named if along]


def _task_entries(model: Model, base: Mapping[str, Entry]) -> dict[str, Entry]:
    """What a task of a packed file updates. Raises UnsupportedError where the base has other tensors."""
    found = entries_of(cast(Packed, model.checkpoint), len(cast(Packed, model.checkpoint).facts["tasks"]))
    for name, entry in found.items():
        if name not in base or base[name].shape != entry.shape:
            raise UnsupportedError(f"{model.path}: {name} is not so in the base: is it another's?")
    return found


def alike(opened: Sequence[Model | None]) -> list[str]:
    """Warnings of models that are given twice, or alone; ``opened[0]`` is the base or None."""
    models = [model for model in opened[1:] if model is not None]
    warnings = []
    if len(models) == 1:
        warnings.append("only one model: the result is that model, or its scaled update")
    seen: dict[Path, int] = {}
    for model in models:
        real = model.path.resolve()
        seen[real] = seen.get(real, 0) + 1
    warnings += [f"{path} is given {times} times" for path, times in seen.items() if times > 1]
    base = opened[0]
    if base is not None and base.path.resolve() in seen:
        warnings.append(f"{base.path} is the base and a model: its delta is zero")
    return warnings


def _files(
    request: Request,
    targets: Sequence[Any],
    copied: Sequence[Copied],
    donor: Model,
    single: bool,
    recipe: Mapping[str, Any],
) -> list[Any]:
    from paring.merging.record import metadata

    stem = "model"
    limit = 1 << 62 if single else request.shard_size
    told = metadata(donor.checkpoint.metadata, recipe)
    return shards(layout(targets, copied, list(donor.checkpoint.tensors)), stem, limit, told)


def _refuse_output(target: Path, single: bool, models: Sequence[Model], overwrite: bool) -> None:
    inputs = [path for model in models for path in (model.path, *model.checkpoint.inputs)]
    atomic.refuse_same_file(target, inputs)
    if single:
        atomic.refuse_existing(target, overwrite)
        for model in models:
            if model.path.is_dir() and target.parent.resolve() == model.path.resolve():
                raise OutputError(f"{target} would be a second checkpoint in {model.path}: choose another -o")
    elif target.exists() and not target.is_dir():
        raise OutputError(f"{target} exists and is not a folder: choose another -o")
    refuse_sealed(target)
