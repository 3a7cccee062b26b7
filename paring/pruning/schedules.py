"""How sparsity grows over a run, and what that makes of its average density.

:class:`Gradual` is the cubic schedule (Zhu and Gupta, arXiv:1710.01878) between two points of a run. Jin et
al. (The Journey Matters, ICLR 2025) place them at 25 % and 75 % **of compute**: a step on a pruned model
costs less, so these are other fractions of the tokens, and :func:`token_span` converts.
:func:`average_density` is that paper's N_avg / N_0, the mean density over tokens, which its scaling law
counts as the model's size.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from paring.errors import OptionError
from paring.pruning.sparsity import pruned


def count(share: float | str | Fraction, n: int) -> int:
    """``floor(share * n)`` with the decimal as typed: .29 of 100 is 29."""
    return pruned(share if isinstance(share, Fraction) else Fraction(str(share)), n)


def cubic(progress: float, final: float, initial: float = 0.0) -> float:
    """Sparsity at ``progress`` in [0, 1] of the pruning phase: fast at first, slow as little is left."""
    left = 1 - min(1.0, max(0.0, progress))
    return final + (initial - final) * left**3


def ramp(epoch: int, start: int, rate: float) -> float:
    """PDP's share of the final sparsity at ``epoch``: 0 before ``start``, then ``rate`` more each epoch."""
    return min(1.0, max(0.0, rate * (epoch - start + 1)))


@dataclass(frozen=True, slots=True)
class Gradual:
    """Dense until ``start``, the cubic schedule until ``end``, then ``final`` sparsity.

    ``start`` and ``end`` are fractions of the run's tokens (steps of equal size), in [0, 1];
    :meth:`over_compute` takes fractions of its compute. Sparsities are of the prunable parameters.
    """

    final: float
    start: float = 0.25
    end: float = 0.75
    initial: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.initial <= self.final < 1:
            raise OptionError(
                f"a schedule from sparsity {self.initial} to {self.final}: both must be in [0, 1), rising"
            )
        if not 0 <= self.start <= self.end <= 1:
            raise OptionError(
                f"a schedule from {self.start} to {self.end} of a run: expected 0 <= start <= end <= 1"
            )

    @classmethod
    def over_compute(
        cls, final: float, start: float = 0.25, end: float = 0.75, initial: float = 0.0, prunable: float = 1.0
    ) -> Gradual:
        """The schedule whose ``start`` and ``end`` are fractions of compute; see :func:`token_span`."""
        first, last = token_span(final, start, end, initial, prunable)
        return cls(final, first, last, initial)

    def at(self, share: float) -> float:
        """Sparsity when ``share`` of all tokens have been seen."""
        if share < self.start:
            return self.initial
        if share >= self.end:
            return self.final
        return cubic((share - self.start) / (self.end - self.start), self.final, self.initial)


def token_span(
    final: float, start: float = 0.25, end: float = 0.75, initial: float = 0.0, prunable: float = 1.0
) -> tuple[float, float]:
    """The fractions of tokens at which ``start`` and ``end`` of the compute are spent.

    Compute a token is taken as proportional to the density, ``prunable`` being the share of parameters that
    the sparsities are of. The cubic schedule's mean density is that of a quarter of the way left.
    """
    before, while_pruning, after = _tokens(final, start, end, initial, prunable)
    whole = before + while_pruning + after
    return before / whole, (before + while_pruning) / whole


def average_density(
    final: float, start: float = 0.25, end: float = 0.75, initial: float = 0.0, prunable: float = 1.0
) -> float:
    """Mean density over the tokens of a run whose ``start`` and ``end`` are fractions of **compute**."""
    return 1 / sum(_tokens(final, start, end, initial, prunable))


def _tokens(
    final: float, start: float, end: float, initial: float, prunable: float
) -> tuple[float, float, float]:
    """Tokens before, while and after pruning, each as its compute over its mean density."""
    Gradual(final, start, end, initial)  # refuses what cannot be meant
    dense, sparse = 1 - prunable * initial, 1 - prunable * final
    return start / dense, (end - start) / (sparse + (dense - sparse) / 4), (1 - end) / sparse
