"""Spectral coding: singular components of every update, bits where they pay, on a trellis near the bound.

The update of a module is ``B A = sum_c s_c u_c v_c`` (QR of both factors, SVD of the r x r core; the dense
product is never formed). Rank vectors of trained adapters are as good as Gaussian, and Gaussian components of
unequal energy are best coded by *reverse water-filling*: bits go where another one takes away most error, and
components that are not worth their first bits are left out. Here every rank vector u and v of every module
competes at one price of a bit; what it gets, from .7 to 7.5 bits an entry, is spent by entropy-coded
trellis-coded quantisation, which at equal error takes 2 to 10 % more bits than any code must. The vectors v
come first; u is what then fits the update best, given what became of v; and the scales are fitted last.

The nearest update at a size is shorter than the true one: what a code cannot tell it leaves out. An update
that is too short everywhere does less than it should, which hurts more than the same distance in other
directions: ``norm`` lengthens every module's update by ``(||D|| / ||D'||)^norm``. Measured on three adapters
(``benchmarks/adapters.py``), .6 halves the divergence from the adapter's own predictions at ratios of 64 and
100, at an error larger by a fiftieth. Use 0 where the distance itself is what counts.

Cost: O((in + out) r^2) a module, and for every entry that is coded a search through the trellis, in
proportion to its states; about half of the time is the search. When not to use it: where files must be read
by other decoders of ternary files, or bit planes be computed with; then take ``compeft``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from paring.coding import Factors, Family
from paring.errors import OptionError
from paring.registry import method

if TYPE_CHECKING:
    from paring.compress._deltas import Deltas
    from paring.finetuned.parts import Matrix


def _refuse(states: int) -> None:
    if states and states not in (4, 8, 16, 32, 64, 128, 256):
        raise OptionError(f"--states {states}: a power of two from 4 to 256, or 0")


def _deltas(*, states: int = 0) -> Callable[[Sequence[Matrix], int], Deltas]:
    """What codes the deltas of a full fine-tune: a function of matrices and threads."""
    _refuse(states)

    def coder(matrices: Sequence[Matrix], threads: int) -> Deltas:
        from paring.compress._deltas import Deltas

        return Deltas(matrices, states, threads)

    return coder


@method(
    sees="modules",
    reference=(
        "ours; reverse water-filling: Cover and Thomas, Elements of Information Theory, 10.3.3; "
        "ECTCQ: Fischer and Wang 1992"
    ),
    deltas=_deltas,
)
def spectral(
    modules: Sequence[Factors],
    threads: int = 1,
    device: str = "cpu",
    *,
    states: int = 0,
    norm: float = 0.6,
) -> Family:
    """Spectral coding: the SVD of every update, bits where they pay, near to the least possible size.

    Options:
        states: of the trellis, a power of two from 4 to 256: more are slower and better; 0 takes 256 for
            small adapters and fewer for large ones
        norm: how much of the norm that an update has lost is given back to it, from 0 (none: the nearest
            update) to 1 (all); some of it keeps more of what an adapter does

    Returns the family over the price of a bit. Raises OptionError for what cannot be meant. Decompositions
    and fits are in fp64; scales are fp32 of few bits.
    """
    from paring.compress._spectral import Spectral

    _refuse(states)
    if not 0 <= norm <= 1:
        raise OptionError(f"--norm {norm}: a number from 0 to 1")
    return Spectral(modules, states, norm, threads, device)
