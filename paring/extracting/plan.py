"""What of a fine-tune a LoRA can hold, by names, shapes and configurations: the plan of ``extract``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

from paring.checkpoint import Checkpoint, TensorInfo
from paring.dtypes import FLOATS
from paring.errors import OptionError, UnsupportedError
from paring.layers import EMBEDDING, turned
from paring.matching import prefixes, unwrapped
from paring.merging.inputs import Model
from paring.merging.models import Target

Kind = Literal["linear", "conv", "embedding"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A weight that becomes factors. ``turned``: it is stored as (in, out), the other way round."""

    target: Target
    module: str
    kind: Kind
    turned: bool = False

    @property
    def names(self) -> tuple[str, str]:
        """What PEFT calls A and B."""
        own, end = ("lora_embedding_", "") if self.kind == "embedding" else ("lora_", ".weight")
        return tuple(f"base_model.model.{self.module}.{own}{role}{end}" for role in "AB")  # type: ignore[return-value]

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weight as stored, trailing axes flattened."""
        return self.target.shape[0], self.target.numel // max(1, self.target.shape[0])


@dataclass(frozen=True, slots=True)
class Rest:
    """A tensor that becomes no factors. ``target`` is None where there are no two of it to compare.

    ``why`` is why; ``full`` whether it could be written whole, as a tensor of its own.
    """

    name: str
    shape: tuple[int, ...]
    why: str
    target: Target | None = None
    full: bool = False


@dataclass(slots=True)
class Sorted:
    """Every tensor of both checkpoints is in ``pieces`` or ``rest``; ``tied`` maps heads to their embedding.

    ``tuned`` and ``base`` map a name in the whole model to the checkpoint's.
    """

    pieces: list[Piece] = field(default_factory=list)
    rest: list[Rest] = field(default_factory=list)
    tied: dict[str, str] = field(default_factory=dict)
    tuned: Mapping[str, str] = field(default_factory=dict)
    base: Mapping[str, str] = field(default_factory=dict)


def sort(
    tuned: Model, base: Model, *, patterns: Sequence[str], embeddings: bool, missing: str, config: Any
) -> Sorted:
    """Pair the tensors of both and sort them. Raises UnsupportedError or OptionError, with the tensor."""
    ours, theirs = tuned.checkpoint, base.checkpoint
    p, q = prefixes(ours.tensors.keys(), theirs.tensors.keys())
    mine = {unwrapped(p + name): name for name in ours.tensors}
    other = {unwrapped(q + name): name for name in theirs.tensors}
    out = Sorted(tuned=mine, base=other)
    if not mine.keys() & other.keys():
        raise UnsupportedError(f"{tuned.path} and {base.path} have no tensor in common: not of one model")
    out.tied = _tied(tuned, base, mine, other, config)
    for name in dict.fromkeys([*mine, *other]):
        if name in out.tied:
            out.rest.append(Rest(name, (), f"tied to {out.tied[name]}"))
        elif name in mine and name in other:
            _pair(
                out, name, ours.tensors[mine[name]], theirs.tensors[other[name]], patterns, embeddings, config
            )
        else:
            here, there = (tuned, base) if name in mine else (base, tuned)
            info = here.checkpoint.tensors[mine.get(name) or other[name]]
            if missing == "refuse" and info.dtype in FLOATS:
                raise UnsupportedError(
                    f"{info.name} is in {here.path} but not in {there.path}: is that its base? "
                    "--missing skip leaves such tensors out"
                )
            full = here is tuned and info.dtype in FLOATS
            out.rest.append(Rest(name, info.shape, f"only in {here.path}", full=full))
    if patterns and not out.pieces:
        raise OptionError(f"--modules {', '.join(patterns)}: no weight matrix of {tuned.path} is called so")
    if not out.pieces:
        raise UnsupportedError(f"{tuned.path} holds no weight matrices that a LoRA could hold")
    return out


def _pair(
    out: Sorted,
    name: str,
    tuned: TensorInfo,
    base: TensorInfo,
    patterns: Sequence[str],
    embeddings: bool,
    config: Mapping[str, Any],
) -> None:
    """Sort one tensor that both have."""
    if tuned.shape != base.shape:
        shapes = f"{list(tuned.shape)} in {tuned.file}, {list(base.shape)} in {base.file}"
        if tuned.shape[1:] == base.shape[1:]:
            raise UnsupportedError(
                f"{name} is {shapes}: vocabularies differ; resize the base's first, with its tokenizer"
            )
        raise UnsupportedError(f"{name} is {shapes}: not of one model")
    floats = tuned.dtype in FLOATS, base.dtype in FLOATS
    if not all(floats):
        if any(floats):
            raise UnsupportedError(f"{name} is {tuned.dtype} in {tuned.file}, {base.dtype} in {base.file}")
        out.rest.append(Rest(name, tuned.shape, f"{tuned.dtype}, no numbers to subtract"))
        return
    target = Target(name, tuned.shape, tuned.dtype, (base.name, tuned.name), (1.0,))
    module, _, leaf = name.rpartition(".")
    kind, why = _kind(module, leaf, tuned.shape)
    if kind is None:
        out.rest.append(Rest(name, tuned.shape, why, target, full=True))
    elif patterns and not any(fnmatchcase(module, p) or fnmatchcase(module, f"*.{p}") for p in patterns):
        out.rest.append(Rest(name, tuned.shape, "not one of --modules", target))
    elif kind == "embedding" and not embeddings:
        out.rest.append(Rest(name, tuned.shape, "an embedding: --embeddings extracts it", target))
    else:
        out.pieces.append(Piece(target, module, kind, kind == "linear" and _turned(name, module, config)))


def _kind(module: str, leaf: str, shape: tuple[int, ...]) -> tuple[Kind | None, str]:
    """What sort of layer a weight belongs to, or why it cannot become factors."""
    if leaf != "weight" or not module:
        axes = "a bias" if leaf == "bias" else "a parameter that is no layer's weight"
        return None, axes
    if len(shape) == 2 and all(shape):
        return ("embedding" if EMBEDDING.fullmatch(module.rpartition(".")[2]) else "linear"), ""
    if len(shape) == 4 and all(shape):
        # one input channel and many outputs: each channel by itself, whose groups the file does not tell
        return (None, "a convolution in groups") if shape[1] == 1 < shape[0] else ("conv", "")
    return None, "one axis" if len(shape) == 1 else f"{len(shape)} axes"


def _turned(name: str, module: str, config: Mapping[str, Any]) -> bool:
    """Whether a weight is stored as (in, out). Raises UnsupportedError when nothing tells."""
    stored = turned(module, config)
    if stored is None:
        raise UnsupportedError(
            f"{name} may be a Conv1D of GPT-2, stored as (in, out), and no config.json says so: give the "
            "folder that holds the model with its config.json"
        )
    return stored


def _tied(
    tuned: Model, base: Model, mine: Mapping[str, str], other: Mapping[str, str], config: Mapping[str, Any]
) -> dict[str, str]:
    """Heads that are their embedding: absent from one file, or the same bits in both; head -> embedding.

    Raises UnsupportedError for a head that one of the two ties and the other does not.
    """
    out: dict[str, str] = {}
    if config.get("tie_word_embeddings") is False:
        return out  # equal they may be, but each has factors of its own
    for name in dict.fromkeys([*mine, *other]):
        parts = name.split(".")
        # heads stand outside the numbered layers
        if parts[-1] != "weight" or len(parts) < 2 or any(part.isdigit() for part in parts):
            continue
        if EMBEDDING.fullmatch(parts[-2]):
            continue
        places = [(tuned, mine), (base, other)]
        found = [_same_bits(model.checkpoint, names, name) for model, names in places]
        if not any(found):
            continue
        embedding = next(twin for twin in found if twin)
        untied = next(
            (m for (m, ns), twin in zip(places, found, strict=True) if name in ns and not twin), None
        )
        if untied is None:
            out[name] = embedding
        else:
            raise UnsupportedError(
                f"{name} is tied to {embedding} in one of {tuned.path} and {base.path}, and has values of "
                f"its own in {untied.path}: untie the base's first (tie_word_embeddings false in config.json)"
            )
    return out


def _same_bits(checkpoint: Checkpoint, names: Mapping[str, str], name: str) -> str | None:
    """The embedding whose bits the head ``name`` has in this file, or None."""
    if name not in names:
        return None
    info = checkpoint.tensors[names[name]]
    if len(info.shape) != 2 or info.dtype not in FLOATS:
        return None
    for twin, stored in names.items():
        rival = checkpoint.tensors[stored]
        if (rival.shape, rival.dtype) == (info.shape, info.dtype) and twin.endswith(".weight"):
            module = twin.removesuffix(".weight").rpartition(".")[2]
            if EMBEDDING.fullmatch(module) and _equal(checkpoint, info.name, stored):
                return twin
    return None


def _equal(checkpoint: Checkpoint, first: str, second: str) -> bool:
    return checkpoint.read(first).tobytes() == checkpoint.read(second).tobytes()
