"""Whatever keeps most: every method that applies is tried, and the one of least measured loss is kept.

What is written is the winner's file, no different from one that was asked for by its name; the report tells
what the others came to. On the adapters of ``benchmarks/adapters.py``, at every size tried, that has been
``spectral``, which is why it is the default of ``compress``: trying the others costs time and has gained
nothing there. On adapters unlike those (vectors of some hundred entries, very sparse updates) it may.

``min over methods of sqrt(sum ||D - D'||^2 / sum ||D||^2)``, D the update ``scale B A`` of a module, D' what
decodes, each method at the budget that was asked for.

Cost: the sum of what its methods take; each solves the budget and decodes its result. When not to use it: for
many adapters of one kind; try it on one, then name the method that won.
"""

from __future__ import annotations

from collections.abc import Sequence

from paring.coding import Factors
from paring.registry import method

#: parameters up to which ternary vectors are fitted one after another in seconds
_SOON = 4_000_000


@method(sees="methods", reference="ours")
def auto(modules: Sequence[Factors], threads: int = 1, device: str = "cpu") -> Sequence[str]:
    """Try what applies; keep the least measured loss at the budget, and say what the others came to.

    Returns the names of the methods to be tried, each with its defaults: ternary coding only for adapters of
    up to 4 million parameters, for it would take minutes on larger ones.
    """
    small = sum(factors.numel for factors in modules) <= _SOON
    return ("spectral", "truncate", *(("compeft",) if small else ()))
