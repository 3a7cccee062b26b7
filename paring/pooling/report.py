"""What pooling found and did."""

from __future__ import annotations

from dataclasses import dataclass, field

from paring.report import Inspection, Report


@dataclass(frozen=True, slots=True)
class LevelReport:
    """What is stored at one level: repeated tensors, rank vectors, shards, or as difference from a related
    adapter. ``tensors`` counts tensors, ``bytes_told`` what they take decoded, ``bytes`` what they take in
    the file beside what they are told by.
    """

    level: str
    tensors: int
    bytes_told: int
    bytes: int


@dataclass(frozen=True, slots=True)
class MemberReport:
    """One adapter of a pool. ``bytes_source`` is its file's size, ``bytes_decoded`` that of its tensors,
    ``bytes_alone`` all that it needs to be
    decoded alone, ``bytes_own`` what no other adapter needs; ``repeated_within`` counts decoded bytes that it
    has more than once, ``shared_with`` by name those that others have too.
    """

    name: str
    tensors: int
    bytes_source: int | None
    bytes_decoded: int
    bytes_alone: int
    bytes_own: int
    repeated_within: int
    shared_with: dict[str, int]
    error: float | None = None


@dataclass(frozen=True, slots=True)
class SharingReport:
    """Who shares what in a pool, in bytes. ``public`` and ``private`` count shards of pools that more than
    one tensor uses, or only one.
    """

    adapters: list[MemberReport]
    levels: list[LevelReport]
    repeated_within: int
    repeated_across: int
    public: int
    private: int


@dataclass(frozen=True, slots=True)
class RelationReport:
    """How far two adapters span the same: mean overlaps over the modules that they have in common, on the
    side of A and of B, and what two unrelated ones would measure.
    """

    first: str
    second: str
    overlap_a: float
    overlap_b: float
    chance: float

    @property
    def most(self) -> float:
        return max(self.overlap_a, self.overlap_b)


@dataclass(frozen=True, slots=True)
class CandidateReport:
    """One way to store something that was measured: bytes with it and without, at the same error, whether it
    was taken, and in words why.
    """

    what: str
    bytes: int
    bytes_without: int
    taken: bool
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolReport(Report):
    """What ``compress --method mos`` made. ``gain`` is the bytes saved against the same adapters stored one
    by one in the same way; 0 and ``answer`` "no gain" where nothing is shared.
    """

    sharing: SharingReport
    relations: list[RelationReport] = field(default_factory=list)
    candidates: list[CandidateReport] = field(default_factory=list)
    gain: int = 0
    answer: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolInspection(Inspection):
    """What is in a pool."""

    sharing: SharingReport
    plot: str | None = None
