"""What ``diff`` found: in all, by tensor, and what it could not compare."""

from __future__ import annotations

from dataclasses import dataclass, field

from paring.report import Jsonable


@dataclass(frozen=True, slots=True)
class TensorDiff:
    """One tensor, or one module of adapters, compared; lists follow the inputs, None where one lacks it.

    ``change`` is ``||model - base|| / ||base||``, ``cosine`` that of model and base, ``changed`` the share of
    entries that are not equal, ``delta_norm`` ``||model - base||``. ``effective_rank`` is ``exp(entropy)`` of
    the delta's singular values over their sum, ``rank_90`` how many hold 90 % of its squared norm.
    ``delta_cosine`` and ``agreement`` hold one number for each pair of models (0-1, 0-2, ..., 1-2, ...).
    """

    name: str
    shape: tuple[int, ...]
    change: list[float | None]
    cosine: list[float | None]
    delta_norm: list[float | None]
    changed: list[float | None] | None = None
    effective_rank: list[float | None] | None = None
    rank_90: list[int | None] | None = None
    delta_cosine: list[float | None] | None = None
    agreement: list[float | None] | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class NotCompared:
    """A tensor that not all files have, or that holds no numbers to subtract, and what was found."""

    name: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference(Jsonable):
    """What ``diff`` found, in all and by tensor. Adapters have no base: the first stands in for it, and their
    deltas are their updates. ``delta_cosine`` and ``agreement`` are square, over ``inputs``.
    """

    command: str = "diff"
    kind: str
    base: str | None = None
    inputs: list[str]
    tensors: list[TensorDiff]
    not_compared: list[NotCompared]
    change: list[float | None]
    cosine: list[float | None]
    delta_norm: list[float | None]
    changed: list[float | None] | None = None
    delta_cosine: list[list[float | None]] | None = None
    agreement: list[list[float | None]] | None = None
    plot: str | None = None
    warnings: list[str] = field(default_factory=list)
    seconds: float | None = None
    peak_rss_bytes: int | None = None
