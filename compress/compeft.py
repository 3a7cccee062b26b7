"""ComPEFT (Yadav et al. 2023): ternary factors; as published, and in a basis where they lose far less.

Published rule (``--paper``): over the whole adapter as one vector v of d values, keep the signs of the
``int(d k) + 1`` largest magnitudes (ties included), times ``alpha * std(v)``, std before sparsifying,
unbiased.

On a LoRA that rule often keeps entries of A alone: A starts random and large, B starts at zero. Then B
decodes to zero and the adapter to the base model. Three freedoms mend it. *Scope*: the vector over which
threshold and scale are taken may be each factor kind, each tensor, or each rank vector. *Alpha*: ``lsq``
takes the least-squares scale, the mean magnitude of the survivors. *Basis*: ``B A = (B G)(G^-1 A)`` for any
invertible G, so the factors may be turned to the balanced SVD first; ``semidiscrete`` goes one step further
and fits ternary outer products to the module's update itself, each on the residual of those before it.

Cost: one pass for a histogram and one a threshold; ``component`` and ``semidiscrete`` O((in + out) r^2) a
module. When not to use it: below an error of about .4 a ternary code is spent; take a method with more
levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from paring.coding import Factors, Family
from paring.errors import OptionError
from paring.registry import method

Basis = Literal["trained", "svd", "semidiscrete"]
Scope = Literal["global", "factor", "tensor", "component"]

#: the published rule, for ``--paper``
PAPER = {"basis": "trained", "scope": "global", "alpha": 1.0}


@method(
    sees="modules",
    reference="Yadav, Choshen, Raffel, Bansal: ComPEFT, arXiv:2311.13171, algorithm 1",
    presets={"paper": PAPER},
    fixes=("density",),
)
def compeft(
    modules: Sequence[Factors],
    threads: int = 1,
    device: str = "cpu",
    *,
    density: float | None = None,
    basis: Basis = "semidiscrete",
    scope: Scope = "component",
    alpha: float | Literal["lsq"] = "lsq",
    sweeps: int = 8,
) -> Family:
    """ComPEFT: sparsify to signs, times a scale.

    Options:
        density: share of entries kept, in (0, 1]; leave it out to have it solved from the budget
        basis: trained = the factors as they are (published); svd = the balanced SVD; semidiscrete = ternary
            outer products fitted one after another to the update itself
        scope: what shares one threshold and one scale: global (published), factor (all A, all B), tensor, or
            component (each rank vector; densities follow from rate and distortion)
        alpha: scale as a multiple of the standard deviation before sparsifying (published: 1), or lsq
        sweeps: how often semidiscrete improves all its terms again

    Returns the family over ``density`` (or over the price of a bit). Raises OptionError for what cannot be
    meant. Values are fp32; thresholds are exact; standard deviations and fits accumulate in fp64.
    """
    from paring.compress import _ternary

    if density is not None and not 0.0 < density <= 1.0:
        raise OptionError(f"--density {density}: a density is a fraction in (0, 1]")
    if alpha != "lsq" and not 0.0 < alpha < float("inf"):
        raise OptionError(f"--alpha {alpha}: the scale's multiple must be positive and finite")
    if sweeps < 0:
        raise OptionError(f"--sweeps {sweeps}: must not be negative")
    if scope != "component":
        if basis == "semidiscrete":
            raise OptionError(
                "--basis semidiscrete fits rank vectors one by one: it cannot share a scale by "
                f"--scope {scope}; choose --basis trained or svd"
            )
        return _ternary.Thresholded(modules, basis, scope, alpha, density, threads, device)
    if alpha != "lsq":
        raise OptionError(
            f"--scope component takes least-squares scales: --alpha {alpha} needs "
            "--scope global, factor or tensor"
        )
    return _ternary.Fitted(modules, basis, sweeps, density, threads)
