"""The module view: for each adapted module its factors ``A (r, in)``, ``B (out, r)`` and its scale.

What fine-tuning added to a module's weight is ``delta (out, in) = scale * B @ A``. Factors of convolutions
are viewed as matrices (trailing axes flattened). (IA)^3 vectors multiply activations; their delta is ``l -
1``. Tensors that are neither are *carried*: named, counted, and never touched in silence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paring.adapters import checks, embedded
from paring.adapters.checks import scalar_of
from paring.adapters.derived import Derived, Outcome, Rule, Shapes, derive
from paring.adapters.peft_config import Plain, lora_config
from paring.checkpoint import Checkpoint
from paring.dtypes import FLOATS
from paring.errors import BadFileError
from paring.folders import CONFIG, WEIGHTS


@dataclass(frozen=True, slots=True)
class LowRank:
    """One adapted module. ``a`` and ``b`` name the tensors of A, ``(r, in)``, and B, ``(out, r)``.

    Of a ``derived`` module they are the names that a plain LoRA would have; the file has other tensors.
    """

    name: str
    a: str
    b: str
    rank: int
    n_in: int
    n_out: int
    scale: float
    scale_source: str
    derived: Derived | None = None

    @property
    def embedding(self) -> bool:
        """Whether this is known to be an embedding, whose weight is the transpose of the update."""
        return "lora_embedding" in self.a

    @property
    def tensors(self) -> tuple[str, ...]:
        """The tensors of the file that this module is made of."""
        return (self.a, self.b) if self.derived is None else tuple(self.derived.tensors.values())


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
            rest = len(self.problems) - 1
            more = f" (and {rest} more: see `paring inspect`)" if rest else ""
            raise BadFileError(self.problems[0] + more)

    def plain_config(self) -> dict[str, Any] | None:
        """``adapter_config.json`` of a plain LoRA with this view's modules: the file's own, or where modules
        are derived another that says the same of the rest; None where there is none.
        """
        if self.config is None or not any(module.derived for module in self.modules):
            return None if self.config is None else dict(self.config)
        plain = [Plain(m.name, m.rank, m.scale * m.rank) for m in self.modules]
        return lora_config(plain, self.config, self.base)


#: a name whose dots became underscores -> the dotted one, or None
Dotted = Callable[[str], str | None]
Scalars = Callable[[str], float | None]
#: (module name, rank, config, reader of scalar tensors) -> (scale, where it came from)
ScaleRule = Callable[[str, int, Mapping[str, Any] | None, Scalars], tuple[float, str]]


@dataclass(frozen=True, slots=True)
class Dialect:
    """A naming dialect as data. ``factor`` matches a factor's name with groups ``module`` and ``role``.

    ``roles`` maps a role to ``"a"`` or ``"b"``; ``scale`` is the rule; ``others`` explains names that are
    known but not factors (pattern -> why they are carried); ``nonlinear`` names the kinds whose factors must
    not be taken as a plain product: a tensor matching the pattern makes its whole module carried. ``vector``
    matches (IA)^3 vectors. ``rules`` make modules of kinds whose update is a product after algebra; ``plain``
    is how the factors A and B of a module are called, ``alpha`` its alpha where the format has one,
    ``embedding`` the factors of embeddings where they are told apart. ``scale_in`` says where a scale is
    kept (``alpha``, ``config``, or nowhere), ``file`` how a file in a folder is called, ``holds`` names the
    derived kinds that it has as ``MODULE.ROLE``. ``canonical`` makes a module's name in the view that of
    :mod:`.naming` (None: not known), ``named`` makes canonical names those of modules in a file.
    ``module_name`` makes a module's name in the view; of such a name, ``veto`` says
    why the configuration forbids a plain product, ``expected_rank`` what rank it states. ``kind`` names the
    sort of adapter.
    """

    name: str
    factor: re.Pattern[str]
    roles: Mapping[str, str]
    scale: ScaleRule
    plain: tuple[str, str] = ("{module}.lora_A.weight", "{module}.lora_B.weight")
    alpha: str | None = None
    rules: tuple[Rule, ...] = ()
    embedding: tuple[str, str] | None = None
    scale_in: str | None = None
    file: str = WEIGHTS
    holds: frozenset[str] = frozenset()
    canonical: Callable[[str, Dotted], str | None] = lambda module, dotted: module
    named: Callable[[Sequence[str]], list[str]] = list
    others: tuple[tuple[re.Pattern[str], str], ...] = ()
    nonlinear: tuple[tuple[re.Pattern[str], str], ...] = ()
    vector: re.Pattern[str] | None = None
    module_name: Callable[[str], str] = lambda module: module
    veto: Callable[[str, int, Mapping[str, Any] | None], str | None] = lambda module, rank, config: None
    expected_rank: Callable[[str, Mapping[str, Any] | None], int | None] = lambda module, config: None
    kind: Callable[[Mapping[str, Any] | None], str] = lambda config: "LoRA"

    def recognises(self, tensor: str, derived: bool = False) -> bool:
        """Whether a tensor of that name is a factor, an (IA)^3 vector, or what factors are derived from."""
        known = self.factor.match(tensor) or (self.vector and self.vector.match(tensor))
        return bool(known or (derived and any(rule.tensor.match(tensor) for rule in self.rules)))


def build(
    checkpoint: Checkpoint, dialect: Dialect | None, *, derived: bool = False, native: bool = True,
    shapes: Shapes | None = None,
) -> Adapter:  # fmt: skip
    """Classify every tensor of ``checkpoint`` under ``dialect``; apply its rules only where ``derived``."""
    config = checkpoint.config(CONFIG)
    base = config.get("base_model_name_or_path") if config else None
    base = base if isinstance(base, str) and base else None
    if dialect is None:
        why = dict.fromkeys(checkpoint.tensors, "not part of an adapter this version reads")
        carried = _carried(checkpoint, set(), why, None)
        return Adapter(checkpoint, "none", "checkpoint", (), (), carried, config, base, ())

    def scalar(tensor: str) -> float | None:
        return scalar_of(checkpoint, tensor)

    config_of = embedded.configs(checkpoint)
    rules = [rule for rule in dialect.rules if derived and (native or not rule.native)]
    outcome = derive(rules, checkpoint, dialect.module_name, shapes or (lambda module: None), scalar)
    pairs, vectors, problems = _classify(checkpoint, dialect, outcome.claimed())
    blocked = _nonlinear(checkpoint, dialect, {rule.lifts for rule in rules})
    modules: list[LowRank] = []
    why = {}
    refused: list[tuple[str, str]] = []
    for module, roles in pairs.items():
        name = dialect.module_name(module)
        problem = checks.problem(checkpoint, name, roles)
        if problem:
            problems.append(problem)
            why.update(dict.fromkeys(roles.values(), "its factors are incomplete or disagree"))
            continue
        a, b = checkpoint.tensors[roles["a"]], checkpoint.tensors[roles["b"]]
        own = config_of(name)
        reason = blocked.get(module) or checks.unfit(a, b) or dialect.veto(name, a.shape[0], own)
        if reason:
            why.update({a.name: reason, b.name: reason})
            refused.append((name, reason))
            continue
        expected = dialect.expected_rank(name, own)
        if expected is not None and expected != a.shape[0]:
            problems.append(
                f"{checkpoint.path}: module {name} has rank {a.shape[0]}, "
                f"but adapter_config.json says {expected}"
            )
        scale, source = dialect.scale(module, a.shape[0], own, scalar)
        n_in, n_out = a.numel // a.shape[0], b.numel // b.shape[1]
        modules.append(LowRank(name, a.name, b.name, a.shape[0], n_in, n_out, scale, source))
    _add_derived(outcome, dialect, blocked, modules, refused, problems, why)
    used = {name for module in modules for name in module.tensors} | {v.tensor for v in vectors}
    return Adapter(
        checkpoint, dialect.name, dialect.kind(config), tuple(modules), tuple(vectors),
        _carried(checkpoint, used, why, dialect), config, base, tuple(problems), tuple(refused),
    )  # fmt: skip


def _add_derived(
    outcome: Outcome,
    dialect: Dialect,
    blocked: Mapping[str, str],
    modules: list[LowRank],
    refused: list[tuple[str, str]],
    problems: list[str],
    why: dict[str, str],
) -> None:
    """What rules made, refused and found broken, added to what the plain factors gave."""
    for group, rule, made in outcome.made:
        if reason := blocked.get(group.module):
            refused.append((group.name, reason))
            why.update({info.name: reason for info in group.tensors.values()})
            continue
        shapes = made.shapes(group.shapes(group.name))
        derived = Derived(rule.kind, made.derived_from, made.compute, shapes, rule.native)
        a, b = (form.format(module=group.module + made.suffix) for form in dialect.plain)
        modules.append(
            LowRank(
                group.name + made.suffix,
                a,
                b,
                made.rank,
                made.n_in,
                made.n_out,
                made.scale,
                made.source,
                derived,
            )
        )
    for group, reason in outcome.refused:
        refused.append((group.name, reason))
        why.update({info.name: reason for info in group.tensors.values()})
    for group, problem in outcome.problems:
        problems.append(problem)
        why.update({info.name: "its factors are incomplete or disagree" for info in group.tensors.values()})


def _carried(
    checkpoint: Checkpoint, used: set[str], why: Mapping[str, str], dialect: Dialect | None
) -> tuple[Carried, ...]:
    """Every tensor that is not ``used``, with the reason."""
    return tuple(
        Carried(info.name, info.nbytes, why.get(info.name) or _why(info.name, dialect))
        for info in checkpoint.tensors.values()
        if info.name not in used
    )


def _classify(
    checkpoint: Checkpoint, dialect: Dialect, claimed: set[str]
) -> tuple[dict[str, dict[str, str]], list[Vector], list[str]]:
    """module -> {"a": tensor, "b": tensor}, the (IA)^3 vectors, and what is wrong already."""
    pairs: dict[str, dict[str, str]] = {}
    vectors = []
    problems = []
    for info in checkpoint.tensors.values():
        if info.name in claimed:
            continue
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


def _nonlinear(checkpoint: Checkpoint, dialect: Dialect, lifted: set[str | None]) -> dict[str, str]:
    """module -> the kind that makes its update more than ``scale * B @ A``, unless a rule knows it."""
    return {
        found["module"]: why
        for name in checkpoint.tensors
        for pattern, why in dialect.nonlinear
        if why not in lifted and (found := pattern.match(name))
    }


def _why(name: str, dialect: Dialect | None) -> str:
    others = dialect.others if dialect else ()
    return next((why for pattern, why in others if pattern.search(name)), "unknown tensor")
