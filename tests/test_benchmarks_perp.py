"""The arithmetic of the retraining benchmark."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import perp, repaired


def row(level, pruned="50%", recipe=None, noise=0.0, **more):
    rng = np.random.default_rng(0)
    spread = rng.normal(0, 0.3, 40)
    own = np.random.default_rng(1).normal(0, noise, 40) if noise else 0
    losses = {"austen": list(level + spread + own), "brown": list(level + 0.5 + spread)}
    return {"losses": losses, "row": {"pruned": pruned, "recipe": recipe, "options": {}}, **more}


def test_the_share_recovered_is_of_the_gain_of_full_retraining():
    bare, full = row(6.0), row(4.0)
    assert repaired.recovered(full, bare, full) == (1.0, 0.0)
    assert repaired.recovered(bare, bare, full)[0] == 0
    share, error = repaired.recovered(row(4.4), bare, full)
    assert share == pytest.approx(0.8) and error == pytest.approx(0, abs=1e-12)  # all windows alike
    share, error = repaired.recovered(row(4.4, noise=0.2), bare, full)
    assert share == pytest.approx(0.8, abs=0.05) and 0.005 < error < 0.05


def test_the_table_has_a_line_a_row():
    cost = {"trained": 0.009, "minutes": 3.0, "peak_rss_bytes": 2**30}
    found = {
        "dense": row(3.5, None),
        "50% bare": row(6.0),
        "50% full retraining": row(4.0, recipe="perp", **cost),
        "50% reconstruction": row(4.5, recipe="reconstruct", **cost),
    }
    lines = repaired.table(found).splitlines()
    assert len(lines) == 6 and "| 75.0% ± 0.0% | each block whole, then 0.90% | 3.0 | 1.0 GiB |" in lines[-1]
    assert lines[2].endswith("|  |  |  |  |") and "32.52" in lines[2]


def test_rows_cover_what_is_compared():
    names = set(perp.rows())
    assert set(perp.FIVE) <= names
    for kind in ("50%", "60%", "2:4"):
        for what in ("bare", "wanda", "sparsegpt", "full retraining", "reconstruction + PERP"):
            assert f"{kind} {what}" in names
