"""The module view: for each adapted module its factors ``A (r, in)``, ``B (out, r)`` and its scale.

What fine-tuning added to a module's weight is ``delta (out, in) = scale * B @ A``. Factors of convolutions
are viewed as matrices (trailing axes flattened). (IA)^3 vectors multiply activations; their delta is ``l -
1``. Tensors that are neither are *carried*: named, counted, and never touched in silence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from paring.checkpoint import Checkpoint, TensorInfo
from paring.dtypes import FLOATS
from paring.errors import BadFileError


@dataclass(frozen=True, slots=True)
class LowRank:
    """One adapted module. ``a`` and ``b`` name the tensors of A, ``(r, in)``, and B, ``(out, r)``."""

    name: str
    a: str
    b: str
    rank: int
    n_in: int
    n_out: int
    scale: float
    scale_source: str


@dataclass(frozen=True, slots=True)
class Vector:
    """One (IA)^3 vector: ``tensor`` multiplies activations, 1 means no change."""

    name: str
    tensor: str
    numel: int


@dataclass(frozen=True, slots=True)
class Carried:
    """A tensor that is not a factor, and why it is carried rather than compressed."""

    name: str
    nbytes: int
    why: str


@dataclass(frozen=True, slots=True)
class Adapter:
    """The module view of one checkpoint. ``problems`` are sentences; anything but inspection refuses them.

    ``refused`` are modules whose factors are carried because they are no plain product, and why.
    """

    checkpoint: Checkpoint
    dialect: str
    kind: str
    modules: tuple[LowRank, ...]
    vectors: tuple[Vector, ...]
    carried: tuple[Carried, ...]
    config: Mapping[str, Any] | None
    base: str | None
    problems: tuple[str, ...]
    refused: tuple[tuple[str, str], ...] = ()

    def refuse_problems(self) -> None:
        """Raise BadFileError with the first problem, and how many more there are."""
        if self.problems:
            more = (
                f" (and {len(self.problems) - 1} more: see `paring inspect`)"
                if len(self.problems) > 1
                else ""
            )
            raise BadFileError(self.problems[0] + more)


#: (module name, rank, config, reader of scalar tensors) -> (scale, where it came from)
ScaleRule = Callable[[str, int, Mapping[str, Any] | None, Callable[[str], float | None]], tuple[float, str]]


@dataclass(frozen=True, slots=True)
class Dialect:
    """A naming dialect as data. ``factor`` matches a factor's name with groups ``module`` and ``role``.

    ``roles`` maps a role to ``"a"`` or ``"b"``; ``scale`` is the rule; ``others`` explains names that are
    known but not factors (pattern -> why they are carried); ``nonlinear`` names the kinds whose factors must
    not be taken as a plain product: a tensor matching the pattern makes its whole module carried. ``vector``
    matches (IA)^3 vectors. ``module_name`` makes a module's name in the view; of such a name, ``veto`` says
    why the configuration forbids a plain product, ``expected_rank`` what rank it states. ``kind`` names the
    sort of adapter.
    """

    name: str
    factor: re.Pattern[str]
    roles: Mapping[str, str]
    scale: ScaleRule
    others: tuple[tuple[re.Pattern[str], str], ...] = ()
    nonlinear: tuple[tuple[re.Pattern[str], str], ...] = ()
    vector: re.Pattern[str] | None = None
    module_name: Callable[[str], str] = lambda module: module
    veto: Callable[[str, int, Mapping[str, Any] | None], str | None] = lambda module, rank, config: None
    expected_rank: Callable[[str, Mapping[str, Any] | None], int | None] = lambda module, config: None
    kind: Callable[[Mapping[str, Any] | None], str] = lambda config: "LoRA"

    def recognises(self, tensor: str) -> bool:
        """Whether a tensor of that name is a factor or an (IA)^3 vector."""
        return bool(self.factor.match(tensor) or (self.vector and self.vector.match(tensor)))


def build(checkpoint: Checkpoint, dialect: Dialect | None) -> Adapter:
    """Classify every tensor of ``checkpoint`` under ``dialect``."""
    config = checkpoint.config("adapter_config.json")
    base = config.get("base_model_name_or_path") if config else None
    base = base if isinstance(base, str) and base else None
    if dialect is None:
        carried = tuple(
            Carried(info.name, info.nbytes, "not part of an adapter this version reads")
            for info in checkpoint.tensors.values()
        )
        return Adapter(checkpoint, "none", "checkpoint", (), (), carried, config, base, ())
    pairs, vectors, problems = _classify(checkpoint, dialect)
    blocked = _nonlinear(checkpoint, dialect)
    modules: list[LowRank] = []
    why: dict[str, str] = {}
    refused: list[tuple[str, str]] = []
    for module, roles in pairs.items():
        name = dialect.module_name(module)
        problem = _problem(checkpoint, name, roles)
        if problem:
            problems.append(problem)
            why.update(dict.fromkeys(roles.values(), "its factors are incomplete or disagree"))
            continue
        a, b = checkpoint.tensors[roles["a"]], checkpoint.tensors[roles["b"]]
        reason = blocked.get(module) or _unfit(a, b) or dialect.veto(name, a.shape[0], config)
        if reason:
            why.update({a.name: reason, b.name: reason})
            refused.append((name, reason))
            continue
        expected = dialect.expected_rank(name, config)
        if expected is not None and expected != a.shape[0]:
            problems.append(
                f"{checkpoint.path}: module {name} has rank {a.shape[0]}, "
                f"but adapter_config.json says {expected}"
            )
        scale, source = dialect.scale(module, a.shape[0], config, lambda tensor: _scalar(checkpoint, tensor))
        n_in, n_out = a.numel // a.shape[0], b.numel // b.shape[1]
        modules.append(LowRank(name, a.name, b.name, a.shape[0], n_in, n_out, scale, source))
    used = {m.a for m in modules} | {m.b for m in modules} | {v.tensor for v in vectors}
    carried = tuple(
        Carried(info.name, info.nbytes, why.get(info.name) or _why(info.name, dialect))
        for info in checkpoint.tensors.values()
        if info.name not in used
    )
    kind = dialect.kind(config)
    return Adapter(
        checkpoint, dialect.name, kind, tuple(modules), tuple(vectors), carried, config, base,
        tuple(problems), tuple(refused),
    )  # fmt: skip


def _classify(
    checkpoint: Checkpoint, dialect: Dialect
) -> tuple[dict[str, dict[str, str]], list[Vector], list[str]]:
    """module -> {"a": tensor, "b": tensor}, the (IA)^3 vectors, and what is wrong already."""
    pairs: dict[str, dict[str, str]] = {}
    vectors = []
    problems = []
    for info in checkpoint.tensors.values():
        if found := dialect.factor.match(info.name):
            first = pairs.setdefault(found["module"], {}).setdefault(dialect.roles[found["role"]], info.name)
            if first != info.name:
                problems.append(
                    f"{checkpoint.path}: {first} and {info.name} are the same factor under two names"
                )
        elif (
            dialect.vector
            and (found := dialect.vector.match(info.name))
            and info.dtype in FLOATS
            and info.numel
        ):
            vectors.append(Vector(dialect.module_name(found["module"]), info.name, info.numel))
    return pairs, vectors, problems


def _nonlinear(checkpoint: Checkpoint, dialect: Dialect) -> dict[str, str]:
    """module -> the kind that makes its update more than ``scale * B @ A``."""
    return {
        found["module"]: why
        for name in checkpoint.tensors
        for pattern, why in dialect.nonlinear
        if (found := pattern.match(name))
    }


def _problem(checkpoint: Checkpoint, module: str, roles: Mapping[str, str]) -> str | None:
    """What is wrong with the factors of one module, as a sentence, or None."""
    where = checkpoint.path
    if len(roles) < 2:
        have, other = next(iter(roles.values())), "B" if "a" in roles else "A"
        return f"{where}: {have} has no matching {other}; the file is incomplete"
    a, b = checkpoint.tensors[roles["a"]], checkpoint.tensors[roles["b"]]
    for info in (a, b):
        if info.numel == 0:
            return (
                f"{where}: {info.name} is empty, shape {list(info.shape)}; sharded training saved only a "
                "placeholder: gather the full weights and save again"
            )
        if len(info.shape) < 2:
            shape = list(info.shape)
            return f"{where}: {info.name} has shape {shape}; a factor needs two axes (a sharded save?)"
    if a.shape[0] != b.shape[1] and not _grouped(a, b):
        return (
            f"{where}: ranks disagree in module {module}: "
            f"{a.name} {list(a.shape)} against {b.name} {list(b.shape)}"
        )
    return None


def _grouped(a: TensorInfo, b: TensorInfo) -> bool:
    """A grouped convolution: B is (out, r / groups, 1, ...)."""
    return len(a.shape) > 2 and len(b.shape) > 2 and a.shape[0] > b.shape[1] and a.shape[0] % b.shape[1] == 0


def _unfit(a: TensorInfo, b: TensorInfo) -> str | None:
    """Why two complete factors are still not a plain product of matrices."""
    if _grouped(a, b):
        return "grouped convolution: its factors are not one matrix product"
    if any(axis != 1 for axis in b.shape[2:]):
        return "the up factor has a kernel: not one matrix product"
    for info in (a, b):
        if info.dtype not in FLOATS:
            return f"quantised or integer factor ({info.dtype})"
    return None


def _why(name: str, dialect: Dialect) -> str:
    return next((why for pattern, why in dialect.others if pattern.search(name)), "unknown tensor")


def _scalar(checkpoint: Checkpoint, name: str) -> float | None:
    """The value of a one-element floating-point or integer tensor, or None when there is none."""
    info = checkpoint.tensors.get(name)
    if info is None or info.numel != 1:
        return None
    stored = checkpoint.read(name)
    return float((stored.f32() if info.dtype in FLOATS else stored.data).reshape(-1)[0])
