"""How many entries go: the decimal as it was typed, and exact counts of it."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from paring.errors import OptionError


def fraction(value: str | float | Fraction, option: str = "--sparsity") -> Fraction:
    """A sparsity in [0, 1) as the decimal it was typed as: .29 is 29/100, whatever its float is.

    Raises OptionError for what is no such number.
    """
    try:
        found = value if isinstance(value, Fraction) else Fraction(str(value).strip())
    except (ValueError, ZeroDivisionError):
        raise OptionError(f"{option} {value}: expected a share such as .5") from None
    if not 0 <= found < 1:
        hint = f"; {value} % is {float(found) / 100:g}" if 1 < found < 100 else ""
        raise OptionError(f"{option} {value}: a sparsity is a share in [0, 1){hint}")
    return found


def decimal(value: Fraction) -> str:
    """The number as one would type it: what :func:`fraction` reads as the same number."""
    text = repr(float(value))
    return text if Fraction(text) == value else str(value)


def pruned(share: Fraction, n: int) -> int:
    """How many of ``n`` entries go: the whole part of their share."""
    return share.numerator * n // share.denominator


def rounded(shares: Sequence[Fraction | float], total: int, most: Sequence[int]) -> list[int]:
    """Whole numbers near ``shares``, none above its ``most``, that add up to ``total`` exactly: the largest
    remainders are rounded up, of equal ones the first. Raises ValueError where ``most`` is not enough.
    """
    if total > sum(most):
        raise ValueError(f"{total} do not fit into {sum(most)}")
    out = [min(int(share), top) for share, top in zip(shares, most, strict=True)]
    rest = total - sum(out)
    order = sorted(range(len(out)), key=lambda i: (int(shares[i]) - shares[i], i))
    while rest:
        step = 1 if rest > 0 else -1
        for i in order if rest > 0 else order[::-1]:
            if rest and 0 <= out[i] + step <= most[i]:
                out[i] += step
                rest -= step
    return out


def pattern(text: str) -> tuple[int, int]:
    """``2:4`` as (keep, of). Raises OptionError."""
    first, mark, second = text.partition(":")
    if not mark or not first.strip().isdigit() or not second.strip().isdigit():
        raise OptionError(f"--pattern {text}: expected keep:of, such as 2:4")
    return group(int(first), int(second))


def group(keep: int | None, of: int | None) -> tuple[int, int]:
    """How many of how many neighbours stay. Raises OptionError for one without the other, and for what makes
    no sense."""
    if keep is None or of is None:
        raise OptionError("--keep and --of go together, as in --keep 2 --of 4")
    if of < 2 or not 0 < keep <= of:
        raise OptionError(f"--keep {keep} --of {of}: expected to keep 1 or more of 2 or more")
    return keep, of
