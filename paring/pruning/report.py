"""What pruning and retraining did, and what is in masks."""

from __future__ import annotations

from dataclasses import dataclass, field

from paring.report import Jsonable, Perplexities, Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Retraining(Report):
    """What retraining did. ``trained`` numbers of ``parameters`` were trained by the loss, whose ``losses``
    are those of the steps, and ``reconstructed`` block by block; ``block_errors`` are relative errors before
    and after that; ``sparsity`` is that of the pruned tensors as written, ``pruned`` the entries that were
    kept at zero.
    """

    parameters: int | None = None
    trained: int | None = None
    reconstructed: int | None = None
    tokens: int | None = None
    losses: list[float] | None = None
    block_errors: list[tuple[float, float]] | None = None
    gaps: dict[str, float] | None = None
    sparsity: float | None = None
    pruned: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruning(Report):
    """What ``prune`` made. Counts are over the tensors that were pruned: their ``elements``, how many were
    zero before and are ``zeros`` now, how many the mask keeps. ``pattern`` says what groups keep,
    ``retraining`` what was done after that, ``perplexity`` what all that did on a held-out text.
    """

    elements: int
    kept: int | None = None
    zeros: int | None = None
    zeros_before: int | None = None
    sparsity: float | None = None
    pattern: str | None = None
    mask: str | None = None
    retraining: Retraining | None = None
    perplexity: Perplexities | None = None


@dataclass(frozen=True, slots=True)
class MaskReport:
    """One tensor's mask: how many entries stay, what groups keep at most, rows (last axis) that are empty."""

    name: str
    shape: tuple[int, ...]
    kept: int
    density: float
    pattern: str | None
    empty_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskStats(Jsonable):
    """What is in a mask. ``digest`` is the same for the same mask however it was made."""

    command: str = "mask stats"
    inputs: list[str]
    elements: int
    kept: int
    density: float
    digest: str
    tensors: list[MaskReport]


@dataclass(frozen=True, slots=True)
class OverlapReport:
    """Two masks of one tensor: what both keep, what only one keeps; ``iou`` is both over either."""

    name: str
    both: int
    only_first: int
    only_second: int
    iou: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskDiff(Jsonable):
    """How two masks differ, in all and by tensor; ``missing`` names tensors that only one has."""

    command: str = "mask diff"
    inputs: list[str]
    both: int
    only_first: int
    only_second: int
    iou: float
    tensors: list[OverlapReport]
    missing: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskMade(Jsonable):
    """A mask that was written."""

    command: str
    inputs: list[str]
    output: str
    elements: int
    kept: int
    density: float
    digest: str
    warnings: list[str] = field(default_factory=list)
    seconds: float | None = None
