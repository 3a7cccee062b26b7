"""What of a delta goes to factors, signs and levels, and that prices choose well among them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from paring.api import compress, inspect, load
from tests.tuned import put


def test_planted_parts_are_found_by_what_suits_them(tmp_path: Path) -> None:
    """Rank 2 goes to the factors, scattered equal entries to signs, noise that is worth it to levels."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    base = {f"{name}.weight": normal(128, 96) for name in ("low", "sparse", "both", "dense")}
    low = normal(128, 2) @ normal(2, 96)
    sparse = 3 * torch.sign(normal(128, 96)) * (torch.rand(128, 96, generator=generator) < 0.02)
    added = {"low": low, "sparse": sparse, "both": low + sparse, "dense": 0.7 * normal(128, 96)}
    tuned = {f"{name}.weight": base[f"{name}.weight"] + added[name] for name in added}
    compress(put(tmp_path / "t", tuned), tmp_path / "p", base=put(tmp_path / "b", base), error=0.25)
    parts = {name: {n.split(":")[1] for n in load(tmp_path / "p") if n.startswith(name)} for name in added}
    assert parts["low"] == {"A", "B"} and parts["sparse"] == {"signs"}
    assert {"A", "B", "signs"} <= parts["both"] and "levels" in parts["dense"]
    packed = load(tmp_path / "p")
    assert packed["both.weight:A"].shape[0] == packed["low.weight:A"].shape[0] == 2
    where = packed["both.weight:signs"] != 0
    assert (where == (sparse != 0)).float().mean() > 0.995
    assert {m.name: m.rank for m in inspect(tmp_path / "p").modules}["low.weight"] == 2


def test_the_difference_of_bits_goes_both_ways() -> None:
    from paring.dtypes import Stored
    from paring.finetuned.restoring import added, difference

    rng = np.random.default_rng(0)
    for dtype, kind in (("F32", "<f4"), ("F16", "<f2"), ("F64", "<f8")):
        a, b = (rng.standard_normal(1000).astype(kind) for _ in range(2))
        b[:10] = -a[:10]
        found = difference(Stored(dtype, a), Stored(dtype, b))
        assert added(Stored(dtype, b), found).tobytes() == a.tobytes()
        near = difference(Stored(dtype, a), Stored(dtype, np.nextafter(a, a.dtype.type(np.inf))))
        assert set(np.unique(near.data)) <= {1, 2}
        up, down = (Stored(dtype, np.array(value, kind)) for value in (1.5, 1.25))  # scalars, too
        assert added(down, difference(up, down)).tobytes() == up.tobytes()
        assert added(up, difference(down, up)).tobytes() == down.tobytes()


def test_a_few_rows_that_learnt_among_many_that_drifted(tmp_path: Path) -> None:
    """As in embeddings: budgets are used up, and error falls, also where the many begin to be worth bits."""
    generator = torch.Generator().manual_seed(5)
    drift = 0.05 * torch.randn(3000, 48, generator=generator) * torch.rand(3000, 1, generator=generator)
    drift[:60] += torch.randn(60, 48, generator=generator) + 3 * torch.randn(48, generator=generator)
    base = {"emb.weight": torch.randn(3000, 48, generator=generator)}
    tuned = put(tmp_path / "t", {"emb.weight": base["emb.weight"] + drift})
    put(tmp_path / "b", base)
    before = 1.0
    for ratio in (250, 100, 60, 40, 25):
        report = compress(tuned, tmp_path / f"{ratio}", base=tmp_path / "b", ratio=ratio)
        assert report.ratio is not None and report.ratio < 1.05 * ratio, report.ratio
        assert report.error is not None and report.error < before
        before = report.error


def test_a_lower_price_never_costs_more_by_the_tables() -> None:
    """The least of error and price of bits, over all choices, falls with the price."""
    from paring.compress._deltas import Deltas
    from paring.finetuned.parts import Matrix

    rng = np.random.default_rng(0)
    delta = 1e-3 * rng.standard_normal((3000, 48)).astype(np.float32)
    delta[:60] += (rng.standard_normal((60, 48)) + 3 * rng.standard_normal(48)).astype(np.float32)
    coder = Deltas([Matrix("emb", 3000, 48, lambda start, stop: delta[start:stop])], 8, 1)
    costs = [
        choice.lost + coder.price(step) * choice.bits
        for step in range(0, 960, 4)
        for choice in [coder._choose(0, step)]
    ]
    assert all(later <= before * 1.001 for before, later in pairwise(costs))
