"""What a merge will do, checked before it does: which tensor is merged from what, copied or refused.

Everything here comes from headers, configurations and options. Every tensor of every input ends in a
:class:`MergePlan` as a target or a copy, or the plan is refused with the tensor named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paring.dtypes import FLOATS
from paring.errors import UnsupportedError
from paring.merging.inputs import Model
from paring.merging.models import Target
from paring.merging.sources import Entry
from paring.merging.vocabularies.vocabulary import Vocabulary
from paring.merging.weights import Weighting
from paring.pruning.masks import MaskFile
from paring.registry import Method
from paring.resumable import Shard


@dataclass(frozen=True, slots=True)
class Copied:
    """A tensor that is carried over bit for bit from ``source`` (0 is the base), and who else must agree.

    ``names`` are its names in the models where they are not its own.
    """

    name: str
    source: int
    entry: Entry
    others: tuple[int, ...]
    why: str
    names: Mapping[int, str] = field(default_factory=dict)

    def named(self, model: int) -> str:
        """Its name in a model."""
        return self.names.get(model, self.name)


@dataclass(frozen=True, slots=True)
class MergePlan:
    """One merge: ``models[0]`` is the base or None. Targets come in the order they are written."""

    method: Method
    options: dict[str, Any]
    models: Sequence[Model | None]
    deltas: bool
    scale: float
    targets: Sequence[Target]
    copied: Sequence[Copied]
    output: Path
    single: bool
    files: Sequence[Shard]
    overwrite: bool
    threads: int
    recipe: dict[str, Any]
    warnings: list[str] = field(default_factory=list)
    #: what changes in the donor's configuration
    config: dict[str, Any] = field(default_factory=dict)
    #: with ``--tokenizer``, what the rows of embeddings stand for
    vocabulary: Vocabulary | None = None
    #: whether zeros of the base stay zeros, and how: ``mask`` or ``scale``
    keep_mask: str | None = None
    #: with ``--mask``, what stays
    mask: MaskFile | None = None

    @property
    def donor(self) -> Model:
        """Whose configuration and tokenizer the result gets: the base's, or the first model's."""
        return next(model for model in self.models if model is not None)

    @property
    def bytes_in(self) -> int:
        return sum({model.path: model.checkpoint.nbytes for model in self.models if model}.values())

    @property
    def bytes_out(self) -> int:
        return sum(shard.nbytes for shard in self.files)


def align(
    models: Sequence[Model | None],
    tensors: Sequence[Mapping[str, Entry] | None],
    updates: frozenset[int],
    deltas: bool,
    weighting: Weighting,
    dtype: str | None,
    missing: str,
) -> tuple[list[Target], list[Copied], list[str]]:
    """Targets, copies and warnings. ``tensors[i]`` are those of model i; ``updates`` are adapters, which
    leave alone what they do not name.

    Raises UnsupportedError or BadFileError naming the tensor.
    """
    whole = [i for i, entries in enumerate(tensors) if entries is not None and i not in updates]
    donor = whole[0]
    targets: list[Target] = []
    copied: list[Copied] = []
    warnings: list[str] = []
    names = dict.fromkeys(name for i in whole for name in tensors[i] or ())
    for i in updates:
        for name in tensors[i] or ():
            if name not in names:
                raise UnsupportedError(f"{_path(models, i)}: {name} is not in {_path(models, donor)}")
    for name in names:
        found = {i: entries[name] for i, entries in enumerate(tensors) if entries and name in entries}
        kinds = {entry.dtype in FLOATS for entry in found.values()}
        if len(kinds) > 1:
            raise UnsupportedError(f"{name} {_each(models, found, 'dtype')}: floats and integers do not mix")
        if kinds == {False}:
            copied.append(_copy(models, found, name, whole, warnings))
            continue
        lacking = [i for i in whole if i not in found and (deltas or i != 0)]
        if lacking and missing == "refuse":
            raise UnsupportedError(_missing(models, name, found, lacking))
        if lacking:
            first = min(found)
            copied.append(Copied(name, first, found[first], (), f"not in {_path(models, lacking[0])}"))
            warnings.append(
                f"{name} is not in {_path(models, lacking[0])}: copied from {_path(models, first)}"
            )
            continue
        _same_shape(models, name, found)
        first = min(i for i in found if i not in updates)
        if deltas and set(found) == {0}:  # of adapters alone, that leave it as it is
            copied.append(Copied(name, 0, found[0], (), "no adapter touches it"))
            continue
        own = dtype or found[first].dtype
        in_each = tuple(name if i in found else None for i in range(len(tensors)))
        targets.append(Target(name, found[first].shape, own, in_each, weighting.of(name)))
    return targets, copied, warnings


def _path(models: Sequence[Model | None], index: int) -> Path:
    model = models[index]
    assert model is not None
    return model.path


def _each(models: Sequence[Model | None], found: Mapping[int, Entry], what: str) -> str:
    """``is (2, 3) in A, (4, 3) in B``"""
    seen: dict[str, int] = {}
    for i, entry in found.items():
        seen.setdefault(str(getattr(entry, what)), i)
    return "is " + ", ".join(f"{value} in {_path(models, i)}" for value, i in seen.items())


def _copy(
    models: Sequence[Model | None],
    found: Mapping[int, Entry],
    name: str,
    whole: Sequence[int],
    warnings: list[str],
) -> Copied:
    if len({(entry.dtype, entry.shape) for entry in found.values()}) > 1:
        raise UnsupportedError(f"{name} {_each(models, found, 'dtype')} and {_each(models, found, 'shape')}")
    first, *rest = sorted(found)
    if lacking := [i for i in whole if i not in found]:
        warnings.append(_elsewhere(models, name, lacking[0], first))
    return Copied(name, first, found[first], tuple(rest), f"{found[first].dtype}, carried unchanged")


def _same_shape(models: Sequence[Model | None], name: str, found: Mapping[int, Entry]) -> None:
    shapes = {entry.shape for entry in found.values()}
    if len(shapes) == 1:
        return
    where = _each(models, found, "shape")
    rests = {shape[1:] for shape in shapes}
    if len(rests) == 1 and any(word in name for word in ("emb", "wte", "shared", "lm_head", "head")):
        raise UnsupportedError(f"{name} {where}: vocabularies differ; add --tokenizer base, or union")
    raise UnsupportedError(f"{name} {where}: these models have different architectures")


def _elsewhere(models: Sequence[Model | None], name: str, lacking: int, first: int) -> str:
    return f"{name} is not in {_path(models, lacking)}: copied from {_path(models, first)}"


def _missing(
    models: Sequence[Model | None], name: str, found: Mapping[int, Entry], lacking: Sequence[int]
) -> str:
    here, there = _path(models, min(found)), _path(models, lacking[0])
    if "head" in name or "embed" in name:
        more = "one ties its head to its embedding and the other does not?"
    else:
        more = "different architectures, or a damaged download?"
    return f"{name} is in {here} but not in {there} ({more}); --missing copy takes it where it is"


def layout(
    targets: Sequence[Target], copied: Sequence[Copied], order: Sequence[str]
) -> list[tuple[str, str, tuple[int, ...]]]:
    """All tensors of the result, in the donor's order, others after them."""
    specs = {target.name: (target.name, target.dtype, target.shape) for target in targets}
    specs |= {copy.name: (copy.name, copy.entry.dtype, copy.entry.shape) for copy in copied}
    return [specs[name] for name in dict.fromkeys([*order, *specs]) if name in specs]
