"""MoS shard deduplication within an error: every way is measured, and taken only where it is smaller."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from paring import adapters, api
from paring.coding import measured, total_error
from paring.errors import OptionError
from paring.factors import read_factors
from paring.mos.routing import Sizes
from paring.packed import open_source
from paring.pooling import alike
from paring.pooling.hashing import divisors, shortest_of
from tests import pooling

REAL = Path(__file__).parents[1] / "fixtures" / "adapters"


def pool(sources, target, error, **options):
    report = api.compress(sources, target, method="mos", device="cpu", threads=2, error=error, **options)
    opened = open_source(report.output, whole=True)
    for i, (source, told) in enumerate(zip(sources, opened.facts["adapters"], strict=True), 1):
        factors = read_factors(adapters.read(open_source(source)))
        member = open_source(f"{report.output}#{i}")
        assert set(member.tensors) == set(open_source(source).tensors)
        found = total_error(measured(factors, dict(member.read_all())))
        assert found <= error and found == pytest.approx(told["error"], abs=1e-6)
    return report


def tried(report, what):
    return next(one for one in report.candidates if what in one.what)


def real(name, tmp_path, modules=6):
    """Some modules of a real adapter."""
    factors = read_factors(adapters.read(open_source(REAL / name)))[:modules]
    some = {f.name.removeprefix("base_model.model."): (f.A, f.B) for f in factors}
    return some, pooling.put(tmp_path / name, some)


def test_a_checkpoint_of_the_same_run_is_several_times_better_than_by_itself(tmp_path):
    modules, first = real("brown", tmp_path)
    second = pooling.put(tmp_path / "later", pooling.same_run(modules))  # .7 % of A, 27 % of B
    report = pool([first, second], tmp_path / "pool", 0.05)
    found = tried(report, "later as difference from brown")
    assert found.taken and found.bytes < 0.5 * found.bytes_without
    # at as many bytes as the difference takes, it alone loses several times as much
    lines = [pool([second], tmp_path / f"one{error}", error) for error in (0.12, 0.2, 0.3)]
    by_bytes = {line.sharing.adapters[0].bytes_alone: line.error for line in lines}
    assert min(by_bytes) < found.bytes * 1.25
    assert min(error for nbytes, error in by_bytes.items() if nbytes < 1.25 * found.bytes) > 0.05 * 3
    assert report.sharing.adapters[1].shared_with["brown"] > 0


@pytest.mark.parametrize("how", ["gauge", "scaled", "flipped"])
def test_the_same_update_in_other_factors_takes_next_to_nothing(tmp_path, how):
    modules = pooling.gaussian(0, n_in=192, n_out=160)
    rng = np.random.default_rng(1)
    other = {}
    for name, (A, B) in modules.items():
        G = np.linalg.qr(rng.standard_normal((4, 4)))[0] @ np.diag([0.5, 2, 1, 3])
        if how == "gauge":
            other[name] = (np.linalg.inv(G) @ A).astype(np.float32), (B @ G).astype(np.float32)
        else:
            by = np.float32(0.37) if how == "scaled" else np.float32(-1)
            other[name] = A * by, B
    sources = [pooling.put(tmp_path / "a", modules), pooling.put(tmp_path / "b", other)]
    report = pool(sources, tmp_path / "pool", 0.1)
    found = tried(report, "b as difference from a")
    assert found.taken and found.bytes < 0.06 * found.bytes_without
    assert report.relations[0].overlap_a > 0.999


def test_a_renamed_copy_is_told_as_the_other(tmp_path):
    modules = pooling.gaussian(0)
    sources = [pooling.put(tmp_path / "a", modules), pooling.put(tmp_path / "b", modules, form="kohya")]
    report = pool(sources, tmp_path / "pool", 0.2)
    assert report.sharing.adapters[1].bytes_own < 150
    assert not any("difference" in one.what for one in report.candidates)  # there is nothing to differ
    assert {level.level for level in report.sharing.levels} == {"alone", "tensor"}


def test_related_adapters_of_more_ranks_than_inputs(tmp_path):
    modules = pooling.gaussian(1, r=16, n_in=8, n_out=300)
    later = pooling.same_run(modules, 0.001, 0.01)
    sources = [pooling.put(tmp_path / "a", modules), pooling.put(tmp_path / "b", later)]
    report = pool(sources, tmp_path / "pool", 0.2)
    assert tried(report, "b as difference from a").bytes > 0


def test_one_side_in_common_is_coded_once(tmp_path):
    modules, later = pooling.gaussian(0, n_in=256), pooling.gaussian(1, n_in=256)
    frozen = {name: (A, later[name][1]) for name, (A, _) in modules.items()}
    sources = [pooling.put(tmp_path / "a", modules), pooling.put(tmp_path / "b", frozen)]
    report = pool(sources, tmp_path / "pool", 0.1)
    found = tried(report, "b as difference from a")
    assert found.taken and found.bytes < 0.6 * found.bytes_without
    assert report.relations[0].overlap_a > 0.999 and report.relations[0].overlap_b < 0.2


def test_many_adapters_in_one_small_space_share_a_basis(tmp_path):
    rng = np.random.default_rng(0)
    U, V = rng.standard_normal((2, 3, 6, 128))

    def one():
        return {
            f"layers.{i}.q": (
                (rng.standard_normal((4, 6)) @ V[i]).astype(np.float32),
                (U[i].T @ rng.standard_normal((6, 4))).astype(np.float32),
            )
            for i in range(2)
        }

    sources = [pooling.put(tmp_path / f"a{i}", one(), "F16" if i % 2 else "F32") for i in range(8)]
    report = pool(sources, tmp_path / "pool", 0.1)
    found = tried(report, "a basis in common for 8 adapters")
    assert found.taken and found.bytes < 0.6 * found.bytes_without
    assert len({name for name in open_source(report.output, whole=True).tensors if name[0] == "/"}) == 4
    unrelated = [pooling.put(tmp_path / f"b{i}", pooling.gaussian(i, 2)) for i in range(3)]
    report = pool(unrelated, tmp_path / "other", 0.1)
    assert not tried(report, "a basis in common").taken and report.answer == "no gain"


def test_a_mos_adapter_tuned_a_little_since_has_a_pool_of_alike_shards(tmp_path):
    modules, used = pooling.mos(Sizes(16, 4, 1, 4), 8, 128, 96)
    source = pooling.put(tmp_path / "a", pooling.same_run(modules, 0.02, 0.02))
    report = pool([source], tmp_path / "pool", 0.05)
    found = tried(report, "a pool of alike shards")
    assert found.taken and found.bytes < 0.5 * found.bytes_without
    assert f"{used} codewords" in found.why and "of 24, 32" in found.why
    assert report.sharing.public + report.sharing.private == used
    finer = pool([source], tmp_path / "finer", 0.01)  # below what was tuned: shards and what is left
    assert tried(finer, "a pool of alike shards").taken


def test_exact_pools_are_taken_where_they_are_smaller_than_any_loss(tmp_path):
    modules, _ = pooling.mos(Sizes(12, 2, 1, 4), 12, 128, 96)
    source = pooling.put(tmp_path / "a", modules, "F16")
    for error in (0.02, 0.001):  # the second is nearer than any coding with loss comes
        report = pool([source], tmp_path / f"pool{error}", error)
        found = tried(report, "a without loss")
        assert report.error == 0 and found.taken and found.bytes < found.bytes_without


def test_noise_and_real_adapters_trained_apart_are_no_gain(tmp_path):
    noise = [pooling.put(tmp_path / f"n{i}", pooling.gaussian(i)) for i in range(2)]
    some = [real(name, tmp_path)[1] for name in ("brown", "rotten", "reuters8")]
    for name, sources in (("noise", noise), ("real", some)):
        report = pool(sources, tmp_path / name, 0.2)
        assert report.answer == "no gain" and report.gain == 0
        assert not any(one.taken for one in report.candidates)
        pooled = tried(report, "a pool of alike shards")
        assert pooled.bytes >= pooled.bytes_without and "Gaussian shards: at least" in pooled.why
        assert {level.level for level in report.sharing.levels} == {"alone"}


def test_what_a_codebook_leaves_of_noise_is_what_theory_says():
    shards = np.random.default_rng(0).standard_normal((4096, 64))
    found = alike.quantise(shards)
    assert found.words == 256 and found.bound == pytest.approx(2 ** (-2 * 8 / 64)) == pytest.approx(
        0.84, abs=0.01
    )
    # 16 shards a codeword: a sixteenth is the codebook learnt by heart, which its own bytes pay for
    assert found.bound - 1 / 16 < found.left < 1
    assert found.alike == 0 and alike.neighbours(shards[:, :16]) < 0.02
    saved = 0.5 * np.log2(1 / found.left) * shards.size
    assert saved < found.bits_index + 16 * 256 * 64  # never pays


def test_alike_shards_are_found_whatever_their_sign_and_size():
    rng = np.random.default_rng(0)
    base = rng.standard_normal((20, 32))
    pick = rng.integers(0, 20, 200)
    factor = rng.choice([-2.0, -1.0, 0.5, 1.0, 4.0], 200)
    shards = base[pick] * factor[:, None]
    found = alike.cluster(shards)
    words, counted = found.means(shards, np.ones(200))
    assert len(found.words) == len(set(pick.tolist())) and counted.min() > 0
    move = np.ldexp(np.where(found.moves & 1, -1.0, 1.0), (found.moves >> 1).astype(int))
    np.testing.assert_allclose(words[found.index] * move[:, None], shards, rtol=1e-12)


def test_divisors():
    assert divisors(96, 16) == [96, 48, 32, 24, 16] and divisors(97, 16) == [97] and divisors(8, 16) == []
    assert shortest_of(96, 16) == [16, 24] and shortest_of(11008, 16) == [16, 43]


def test_adding_within_an_error(tmp_path):
    modules, first = real("rotten", tmp_path, 4)
    later = pooling.put(tmp_path / "later", pooling.same_run(modules))
    one = pool([first], tmp_path / "one", 0.1)
    grown = api.compress([one.output, later], tmp_path / "two", method="mos", device="cpu", error=0.1)
    assert tried(grown, "later as difference from rotten").taken
    before, after = (open_source(r.output, whole=True) for r in (one, grown))
    for old, new in zip(before.payloads, after.payloads, strict=False):
        assert bytes(before.payload(old)) == bytes(after.payload(new))
    assert [each["name"] for each in after.facts["adapters"]] == ["rotten", "later"]


def test_options_are_checked(tmp_path):
    source = pooling.put(tmp_path / "a", pooling.gaussian(0))
    for options, text in (({"shortest": 2}, "--shortest 2"), ({"overlap": 2.0}, "--overlap 2")):
        with pytest.raises(OptionError, match=text):
            api.compress([source], tmp_path / "x", method="mos", device="cpu", **options)
