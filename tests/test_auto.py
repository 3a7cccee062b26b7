"""``auto``: the best of what applies, by measure; its file is the winner's own."""

from pathlib import Path

import numpy as np
import pytest

from paring import registry
from paring.api import compress
from paring.dtypes import from_f32
from paring.errors import BudgetError
from paring.packed import open_source
from tests.helpers import put_adapter
from tests.make_golden import lora

ROTTEN = Path(__file__).parent.parent / "fixtures" / "adapters" / "rotten"


def test_the_least_loss_wins_and_the_others_are_told(tmp_path):
    auto = compress(ROTTEN, tmp_path / "auto", method="auto", ratio=40)
    plain = compress(ROTTEN, tmp_path / "plain", method="spectral", ratio=40)
    assert auto.method == "spectral"
    assert [tried.method for tried in auto.tried] == ["spectral", "truncate", "compeft"]
    assert auto.error == min(tried.error for tried in auto.tried) == plain.error
    assert all(tried.bytes_out <= auto.bytes_in / 40 for tried in auto.tried)
    assert (tmp_path / "auto").read_bytes() == (tmp_path / "plain").read_bytes()
    assert plain.tried is None


def test_the_smallest_file_wins_where_the_loss_is_asked_for(tmp_path):
    report = compress(ROTTEN, tmp_path / "x", method="auto", error=0.6)
    assert report.error <= 0.6
    assert report.bytes_out == min(tried.bytes_out for tried in report.tried)


def test_another_method_wins_where_it_is_better(tmp_path):
    """Updates of one rank vector, ternary as they are: signs tell all of them."""
    rng = np.random.default_rng(0)
    tensors = {}
    for layer in range(40):
        for part, shape in (("lora_A", (1, 256)), ("lora_B", (256, 1))):
            signs = rng.choice([-1.0, 1.0], shape) * 0.5
            tensors[f"base_model.model.l.{layer}.q.{part}.weight"] = from_f32(signs.astype(np.float32), "F32")
    source = put_adapter(tmp_path / "s", tensors, {"peft_type": "LORA", "r": 1, "lora_alpha": 1})
    report = compress(source, tmp_path / "x", method="auto", bits_per_param=2)
    assert report.method == "compeft"
    assert report.error < 1e-3
    assert open_source(tmp_path / "x").facts["method"] == "compeft"


def test_what_cannot_be_met_by_any_says_the_best(tmp_path):
    source = put_adapter(tmp_path / "s", lora())
    with pytest.raises(BudgetError, match="the best that can be had is --ratio"):
        compress(source, tmp_path / "x", method="auto", ratio=10_000)


def test_large_adapters_are_not_fitted_for_minutes():
    class Large:
        numel = 5_000_000

    assert registry.load("compress", "auto").function([Large()]) == ("spectral", "truncate")
