"""Updates put in a sparse base so that its zeros stay zeros, and what that costs.

``mask``: ``W += M * D``, D the merged update ``scale * B @ A`` and M one where W is not zero: the merge of
MaskLoRA. ``scale``: ``W *= B @ A``, entry by entry, the adapter's own scale left out: the merge of ScaleLoRA
as published (both Zimmer et al., PERP, arXiv:2312.15230, section 2). An entry that is zero in the base keeps
its very bits, so patterns such as 2:4 survive as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from paring.errors import BadValueError, OptionError
from paring.merging.sources import Source, Updates

F32 = npt.NDArray[np.float32]
Keep = Literal["mask", "scale"]
#: a plain LoRA starts from products of zero, ScaleLoRA from products of one
_LEAST_MEAN = 0.5


@dataclass(frozen=True, slots=True)
class Tally:
    """Of some entries: updates ``lost`` in rounding, of so many that are not zero; zeros of the base; the
    squared norm of the update that was discarded for them, and of all of it.
    """

    lost: int = 0
    updates: int = 0
    zeros: int = 0
    discarded: float = 0.0
    energy: float = 0.0

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(a + b for a, b in zip(self.told(), other.told(), strict=True)))

    def told(self) -> list[Any]:
        """As a journal has it."""
        return [self.lost, self.updates, self.zeros, self.discarded, self.energy]

    @property
    def share(self) -> float:
        """``||(1 - M) D|| / ||D||``."""
        return float((self.discarded / self.energy) ** 0.5) if self.energy else 0.0


def tally_of(noted: Any) -> Tally:
    """What :meth:`Tally.told` was, or the number of lost updates alone."""
    return Tally(*noted) if isinstance(noted, list) else Tally(noted)


def applied(
    keep: str, merged: F32, base: F32, stays: npt.NDArray[np.bool_] | None = None
) -> tuple[F32, F32, Tally]:
    """The new values ``(k,)`` of a chunk, by how much they differ from ``base (k,)``, and what that costs.

    ``merged`` is the update, or with ``scale`` the factor of every entry. fp32; squared norms in fp64.
    ``stays`` is what ``--mask`` keeps: what it does not counts as zero, and takes no update either.
    """
    zero = base == 0 if stays is None else (base == 0) | ~stays
    zeros = int(np.count_nonzero(zero))
    if keep == "mask":
        wide = merged.astype(np.float64)
        energy, discarded = float(wide @ wide), float((wide[zero] ** 2).sum())
        update = np.where(zero, np.float32(0), merged)
        values = np.where(zero, base, base + update)
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            whole = np.where(base == 0, np.float32(0), base * merged - base)
            squares = whole.astype(np.float64) ** 2
            energy, discarded = float(squares.sum()), float(squares[zero].sum())
            values = np.where(zero, base, base * merged)
            update = np.where(zero, np.float32(0), whole)
    return values, update, Tally(0, int(np.count_nonzero(update)), zeros, discarded, energy)


def refuse_options(keep: str | None, request: Any) -> None:
    """Raise OptionError for a request that this cannot be meant with."""
    if keep is None:
        return
    if keep not in get_args(Keep):
        raise OptionError(f"--keep-mask {keep}: expected {' or '.join(get_args(Keep))}")
    if request.base is None and request.into is None:
        raise OptionError(f"--keep-mask {keep} keeps the zeros of a base: add --into SPARSE_BASE")
    if request.tokenizer is not None or request.method == "passthrough":
        raise OptionError(f"--keep-mask {keep}: not with --tokenizer or passthrough, which move entries")
    if keep == "scale":
        if len(request.models) != 1 or request.into is None:
            raise OptionError(
                "--keep-mask scale takes one adapter, --into a base, whose product multiplies weights"
            )
        plain = request.method in ("linear", "task_arithmetic") and request.scale == 1
        if not plain or request.weights is not None or request.patterns:
            raise OptionError("--keep-mask scale multiplies: it takes no --method, --weights or --scale")


def refuse_products(sources: Iterable[Source | None]) -> None:
    """Raise BadValueError for an adapter that is none of ScaleLoRA's: its products are nowhere near one."""
    for source in sources:
        if isinstance(source, Updates) and not source.mean() > _LEAST_MEAN:
            raise BadValueError(
                f"{source.path}: its products B @ A are {source.mean():.3g} on average, and would multiply "
                "weights: --keep-mask scale is for ScaleLoRA adapters, mask for plain ones"
            )


def totals(tallies: Sequence[Tally]) -> Tally:
    """All of them added up."""
    return sum(tallies, Tally())
