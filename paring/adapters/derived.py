"""Modules whose A and B are not in the file but follow from what is: which tensors, and by what algebra.

A :class:`Rule` is data of a dialect: how names look, when it applies, and a function that reads shapes and
configuration (never values) and returns what a plain LoRA of the same update would be. The arithmetic is
done when factors are read, in fp64, from the tensors as stored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from paring.adapters import embedded
from paring.adapters.algebra import F64, Pair
from paring.checkpoint import Checkpoint, TensorInfo
from paring.dtypes import FLOATS, Stored

#: elements of the factors of one module, at most
LARGEST = 1 << 31
#: the shape of a base's weight, by a module's name in the view, or None where it is not known
Shapes = Callable[[str], tuple[int, ...] | None]


class RefusedError(Exception):
    """The update of a module is no matrix product, or not known: its tensors are carried, and this is why."""


class BrokenError(Exception):
    """What is wrong with a file, as a sentence without its path."""


@dataclass(frozen=True, slots=True)
class Derived:
    """How the factors of a module follow from other tensors.

    ``tensors`` maps roles to names of tensors of the file (or is empty for what a seed makes); ``compute``
    takes them in fp64, by role, and returns A ``(r, in)`` and B ``(out, r)``. ``shapes`` are those that the
    two would have as tensors of a plain LoRA. A ``native`` form is one that PEFT's LoRA itself has, and a
    plain pair would not fit the module that it belongs to: stacked experts, groups of a convolution.
    """

    kind: str
    tensors: Mapping[str, str]
    compute: Callable[[Mapping[str, F64]], Pair]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    native: bool = False

    def factors(self, read: Callable[[str], F64]) -> Pair:
        """A ``(r, in)`` and B ``(out, r)`` in fp64; ``read`` gives tensors by name, see :func:`wide`."""
        A, B = self.compute({role: read(name) for role, name in self.tensors.items()})
        return A.reshape(len(A), -1), B


def wide(stored: Stored) -> F64:
    """The values in their shape, fp64, which holds every dtype's exactly (integers up to 2^53)."""
    return stored.f64() if stored.dtype in FLOATS else stored.data.astype("float64")


@dataclass(frozen=True, slots=True)
class Group:
    """The tensors of one module that a rule is asked about. ``name`` is the module's in the view."""

    module: str
    name: str
    tensors: Mapping[str, TensorInfo]
    checkpoint: Checkpoint
    config: Mapping[str, Any] | None
    shapes: Shapes
    scalar: Callable[[str], float | None]
    fellows: int  #: how many modules the rule is asked about, this one included

    def has(self, *roles: str) -> bool:
        return all(role in self.tensors for role in roles)

    def need(self, *roles: str) -> tuple[tuple[int, ...], ...]:
        """The shapes of the tensors in these roles. Raises BrokenError for one that is missing or empty."""
        for role in roles:
            if role not in self.tensors:
                have = next(iter(self.tensors.values())).name
                raise BrokenError(f"{have} has no matching {role}; the file is incomplete")
            if not self.tensors[role].numel:
                raise BrokenError(f"{self.tensors[role].name} is empty; a sharded save?")
        return tuple(self.tensors[role].shape for role in roles)

    def agree(self, one: int, other: int, what: str) -> int:
        """``one``, where both are the same. Raises BrokenError."""
        if one != other:
            raise BrokenError(f"{what} of module {self.name} disagree: {one} against {other}")
        return one

    def names(self, *roles: str) -> dict[str, str]:
        """role -> tensor, of those that are there."""
        return {role: self.tensors[role].name for role in roles if role in self.tensors}


@dataclass(frozen=True, slots=True)
class Made:
    """What a rule makes of a group: one module. ``kernel`` is that of a convolution, where it is known."""

    derived_from: Mapping[str, str]
    rank: int
    n_in: int
    n_out: int
    scale: float
    source: str
    compute: Callable[[Mapping[str, F64]], Pair]
    kernel: tuple[int, ...] = ()
    suffix: str = ""

    def shapes(self, weight: tuple[int, ...] | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Those of the factors' tensors: with a kernel's axes where it is known, from the base at best."""
        kernel = self.kernel
        if weight is not None and len(weight) > 2:
            kernel = weight[2:]
        width, cells = self.n_in, 1
        for axis in kernel:
            cells *= axis
        if not kernel or width % cells:
            return (self.rank, width), (self.n_out, self.rank)
        ones = (1,) * len(kernel)
        return (self.rank, width // cells, *kernel), (self.n_out, self.rank, *ones)


@dataclass(frozen=True, slots=True)
class Rule:
    """One kind of module that is derived: names by ``tensor`` (groups ``module`` and ``role``), ``when``.

    ``make`` raises RefusedError or BrokenError. ``lifts`` is the reason for which the kind is carried where
    nothing is derived. What is ``native`` is a form that PEFT's LoRA itself has; see :class:`Derived`.
    """

    kind: str
    tensor: re.Pattern[str]
    make: Callable[[Group], Sequence[Made]]
    when: Callable[[Group], bool] = lambda group: True
    lifts: str | None = None
    native: bool = False


@dataclass(slots=True)
class Outcome:
    """What the rules of a dialect found: modules made, groups refused, sentences of what is broken."""

    made: list[tuple[Group, Rule, Made]] = field(default_factory=list)
    refused: list[tuple[Group, str]] = field(default_factory=list)
    problems: list[tuple[Group, str]] = field(default_factory=list)

    def claimed(self) -> set[str]:
        """The tensors of modules that a rule applied to, shared ones aside."""
        groups = [
            *(g for g, _, _ in self.made),
            *(g for g, _ in self.refused),
            *(g for g, _ in self.problems),
        ]
        return {info.name for group in groups for info in group.tensors.values()}


def derive(
    rules: Iterable[Rule],
    checkpoint: Checkpoint,
    name_of: Callable[[str], str],
    shapes: Shapes,
    scalar: Callable[[str], float | None],
) -> Outcome:
    """Ask every rule about the modules whose names it matches; each tensor goes to the first that applies."""
    config_of = embedded.configs(checkpoint)
    out = Outcome()
    for rule in rules:
        claimed = out.claimed()
        found: dict[str, dict[str, TensorInfo]] = {}
        for name, info in checkpoint.tensors.items():
            if name not in claimed and (match := rule.tensor.match(name)):
                found.setdefault(match["module"], {})[match["role"]] = info
        for module, tensors in found.items():
            name = name_of(module)
            group = Group(
                module, name, tensors, checkpoint, config_of(name), shapes, scalar, len(found)
            )  # fmt: skip
            if not rule.when(group):
                continue
            try:
                _refuse_integers(group)
                out.made += [(group, rule, made) for made in _refuse_vast(rule.make(group))]
            except RefusedError as error:
                out.refused.append((group, str(error)))
            except BrokenError as error:
                out.problems.append((group, f"{checkpoint.path}: {error}"))
    return out


def _refuse_vast(found: Sequence[Made]) -> Sequence[Made]:
    """A small file may describe a product of any size; no model has such."""
    for made in found:
        if made.rank * (made.n_in + made.n_out) > LARGEST:
            side = f"{made.n_out} x {made.n_in}, rank {made.rank}"
            raise RefusedError(f"plain factors of it would be too large ({side})")
    return found


def _refuse_integers(group: Group) -> None:
    for role, info in group.tensors.items():
        if info.dtype not in FLOATS and not role.endswith("indices"):
            raise RefusedError(f"quantised or integer factor ({info.dtype})")


def shared(group: Group, *names: str) -> Iterator[TensorInfo]:
    """Tensors that all modules use. Raises BrokenError for one that is not there."""
    for name in names:
        if name not in group.checkpoint.tensors:
            have = next(iter(group.tensors.values())).name
            raise BrokenError(f"{have} needs {name}, which is not in the file; it is incomplete")
        yield group.checkpoint.tensors[name]
