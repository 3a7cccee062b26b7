"""What commands found and did: dataclasses in Python, JSON with ``--json``; tables are the command line's."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class ModuleReport:
    """One module: shape ``(out, in)``; density, zeros, coded bits a parameter, relative error where they
    apply."""

    name: str
    shape: tuple[int, int]
    rank: int | None = None
    density: float | None = None
    bits: float | None = None
    error: float | None = None
    scale: float | None = None
    scale_source: str | None = None
    zeros: int | None = None


@dataclass(frozen=True, slots=True)
class CarriedReport:
    """A tensor that was carried rather than compressed, its stored bytes, and why.

    ``error`` is its own relative error where carrying it rounded it (``--carry fp16``).
    """

    name: str
    bytes: int
    why: str = ""
    error: float | None = None


@dataclass(frozen=True, slots=True)
class TriedReport:
    """A method that was tried: what it came to, or why it came to nothing."""

    method: str
    bytes_out: int | None = None
    error: float | None = None
    why: str | None = None


class Jsonable:
    """``to_json`` of a dataclass: a plain dict without what does not apply."""

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = _plain(asdict(self))  # type: ignore[call-overload]
        return found


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed(Jsonable):
    """What was pushed to the Hub: to which repository and revision (None: main), as which commit; ``url`` is
    where to look at it.
    """

    command: str = "push"
    repo: str
    url: str
    revision: str | None = None
    commit: str
    files: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report(Jsonable):
    """What a command that writes did. Sizes in bytes.

    ``ratio`` is ``bytes_in / bytes_out``, ``ratio_fp16`` the same against 16 bits an element of the source,
    ``bits_per_param`` is 8 ``bytes_out`` over those elements, ``error`` the total relative error of the
    updates. ``merged`` counts tensors made of several, ``carried`` names those that go along unchanged,
    ``files`` are those of the output where there are several; ``tried`` are the methods that it was chosen
    from, ``pushed`` is where it went on the Hub.
    """

    command: str
    inputs: list[str]
    output: str | None = None
    method: str | None = None
    recipe: dict[str, Any] | None = None
    bytes_in: int | None = None
    bytes_out: int | None = None
    ratio: float | None = None
    ratio_fp16: float | None = None
    bits_per_param: float | None = None
    error: float | None = None
    modules: list[ModuleReport] = field(default_factory=list)
    carried: list[CarriedReport] = field(default_factory=list)
    merged: int | None = None
    files: list[str] | None = None
    tried: list[TriedReport] | None = None
    warnings: list[str] = field(default_factory=list)
    seconds: float | None = None
    peak_rss_bytes: int | None = None
    device: str | None = None
    dry_run: bool | None = None
    pushed: Pushed | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection(Jsonable):
    """What is in a file. ``packed`` holds the manifest's facts when it is a packed one."""

    command: str = "inspect"
    inputs: list[str]
    kind: str
    dialect: str
    base: str | None
    bytes_in: int
    elements: int
    dtypes: dict[str, int]
    modules: list[ModuleReport]
    carried: list[CarriedReport]
    problems: list[str]
    metadata: dict[str, str]
    packed: dict[str, Any] | None = None


@dataclass(slots=True, kw_only=True)
class Verification(Jsonable):
    """Checks made on a file: those that passed, by name, and those that failed, with what was found."""

    command: str = "verify"
    inputs: list[str]
    passed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    error: float | None = None
    error_recorded: float | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return not self.failed

    def to_json(self) -> dict[str, Any]:
        return {**_plain(asdict(self)), "ok": self.ok}


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A tensor that a result does not hold, and why; ``share`` is its part of all squared change."""

    name: str
    shape: tuple[int, ...]
    why: str
    share: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Extraction(Report):
    """What ``extract`` made. ``error`` is over the modules extracted; ``error_all`` counts what was left out
    as lost; ``left_out`` holds what changed or could not be compared.
    """

    left_out: list[LeftOut] = field(default_factory=list)
    error_all: float | None = None


@dataclass(frozen=True, slots=True)
class PerplexityReport:
    """A perplexity; ``nll`` is its logarithm, the mean over tokens in nats, ``nll_error`` the standard error
    of that over windows, None for one window.
    """

    perplexity: float
    nll: float
    nll_error: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Perplexities:
    """What pruning and retraining did to the perplexity on a held-out text, ``data`` with the digest
    ``sha256``: all on the same ``windows`` of ``window`` tokens, one every ``stride``, in which ``scored``
    tokens were predicted. ``dense`` is the model as it was given.
    """

    data: str
    sha256: str
    windows: int
    window: int
    stride: int
    scored: int
    dtype: str
    device: str
    dense: PerplexityReport
    pruned: PerplexityReport
    retrained: PerplexityReport | None = None


@dataclass(frozen=True, slots=True)
class KeptReport:
    """A tensor merged with its zeros kept: its sparsity, the share ``||(1 - M) D|| / ||D||`` of the update
    that was discarded for them, how many entries were to change, and how many rounding left as they were.
    """

    name: str
    shape: tuple[int, ...]
    sparsity: float
    discarded: float
    updates: int
    updates_lost: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseMerge(Report):
    """What ``merge --keep-mask`` made: :class:`KeptReport` by tensor, and the same of all together."""

    kept: list[KeptReport]
    sparsity: float
    discarded: float
    updates: int
    updates_lost: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shrinking(Report):
    """What ``shrink`` made: sizes ``before`` and ``after`` (layers, hidden, heads, ...), ``elements`` of the
    source and ``elements_left``; ``checked`` says whether transformers has tried to load it.
    """

    before: dict[str, int]
    after: dict[str, int]
    elements: int
    elements_left: int
    checked: bool


@dataclass(frozen=True, slots=True)
class ScaleReport:
    """Modules of one scale: its value, where it came from, how the result has it, and how many they are."""

    scale: float
    source: str
    kept: str
    modules: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion(Report):
    """What ``convert`` made: from which dialect to which, and what became of scales.

    ``derived`` counts the modules that were computed from tensors of other kinds (LoHa, ...), ``held`` those
    that the dialect has as they were. ``renamed`` maps modules to their names in the result.
    """

    source_dialect: str
    dialect: str
    scales: list[ScaleReport] = field(default_factory=list)
    derived: dict[str, int] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)


def peak_rss_bytes() -> int | None:
    """The largest resident set this process has had; None on Windows, which does not tell it this way."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
