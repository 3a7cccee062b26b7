"""PCB-merging (Du et al. 2024): parameters compete, within their model and between models, for their place.

Of every entry of every delta: *intra*, how large it is in its own model; *inter*, how far the other models
pull the same way. The product is its score; each model keeps the ``density`` best scores, less the lowest of
them and scaled to 1, as weights of a mean over the models.

The authors' code has three rules and their paper a fourth; all are here. With ``mu`` the magnitudes
winsorised at their ``clip`` quantiles and scaled to 0 .. 1, ``s`` their signs, n models:

- ``E`` (default): ``exp(n mu_i^2) * sum_j tanh(s_i mu_i s_j mu_j)``. Does not depend on the scale.
- ``V``: ``exp(n mu_i^2) * tanh(tau_i sum_j s_j mu_j)``
- ``A``, ``N``: ``exp(n mu_i^2) * tanh(tau_i sum_j tau_j)``; A clips at .0001, N at .01. Raw products make
  A, N and V depend on the scale.
- ``paper``: softmax over all entries in place of exp and tanh, a plain mask in place of the shifted scores,
  no clipping.

Clip and threshold are taken over the whole model, as published, never by tensor. Cost: three passes (a
sampled bracket each for the quantiles). When not to use it: at densities of .4 and more it is no better than
ties.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from paring.errors import OptionError
from paring.kernels import merging
from paring.merge._common import check_density
from paring.merging.models import F32, F64, Blend, Models, Place
from paring.registry import method

Rule = Literal["E", "A", "N", "V", "paper"]


@method(
    sees="deltas",
    reference="Du et al.: Parameter Competition Balancing for Model Merging, arXiv:2410.02396",
    torch=True,
    invariants=("order",),
)
def pcb(models: Models, *, density: float = 0.1, rule: Rule = "E", clip: float | None = None) -> Blend:
    """PCB: parameter competition balancing.

    Options:
        density: share of each model's entries kept, in (0, 1]
        rule: E (scale-free), V, A, N as in the authors' code, or paper
        clip: share of magnitudes winsorised at either end; by default .01, for rule A .0001
    """
    check_density(density)
    if clip is not None and not 0 <= clip < 0.5:
        raise OptionError(f"--clip {clip}: a share below one half")
    if rule == "paper":
        return _paper(models, density)
    share = clip if clip is not None else 0.0001 if rule == "A" else 0.01
    low, high = models.ranked(lambda d: [int(d * share), max(0, int(d * (1 - share) - 1))]).T.copy()

    def scores(chunk: F32) -> F32:
        return merging.pcb_scores(chunk, low, high, rule)

    threshold, top = models.ranked(
        lambda d: [min(d - 1, int(d * (1 - density))), d - 1], of=scores, signed=True
    ).T.copy()
    return Blend(lambda chunk, place: merging.pcb(chunk, low, high, threshold, top, place.weights, rule))


def _paper(models: Models, density: float) -> Blend:
    """The paper's formula, in fp64: a softmax's sums, then the quantile of the scores, then the mean."""
    n = models.n
    pairs = [(i, j) for i in range(n) for j in range(n)]

    def products(chunk: F32) -> F64:
        wide = chunk.astype(np.float64)
        return np.concatenate([wide * wide, *(wide[i : i + 1] * wide[j : j + 1] for i, j in pairs)])

    def least(chunk: F32, place: Place) -> F64:
        found: F64 = products(chunk).min(axis=1)
        return found

    def most(chunk: F32, place: Place) -> F64:
        found: F64 = products(chunk).max(axis=1)
        return found

    lowest, highest = models.totals(least, join=np.minimum), models.totals(most, join=np.maximum)
    width = np.where(highest > lowest, highest - lowest, 1.0)
    gain = np.concatenate([np.full(n, float(n)), np.ones(n * n)])

    def powers(chunk: F32) -> F64:
        scaled: F64 = np.exp(gain[:, None] * ((products(chunk) - lowest[:, None]) / width[:, None] - 1))
        return scaled

    sums = models.totals(lambda chunk, place: powers(chunk).sum(axis=1))

    def scores(chunk: F32) -> F64:
        shares = powers(chunk) / sums[:, None] * models.numel
        inter: F64 = shares[n:].reshape(n, n, -1).sum(axis=1)
        return shares[:n] * inter

    threshold = models.ranked(
        lambda d: [min(d - 1, int(d * (1 - density)))], of=lambda chunk: scores(chunk).astype(np.float32)
    )

    def blend(chunk: F32, place: Place) -> F32:
        found = scores(chunk)
        kept = np.where(found.astype(np.float32) >= threshold, found, 0.0)
        total = (kept * chunk * place.weights[:, None]).sum(axis=0)
        share = kept.sum(axis=0)
        out: F32 = np.divide(total, share, out=np.zeros_like(total), where=share > 0).astype(np.float32)
        return out

    return Blend(blend)
