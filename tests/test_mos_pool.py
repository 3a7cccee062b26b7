"""MoS shard deduplication without loss: what is planted is found, every adapter comes back bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from paring import api
from paring.dtypes import from_f32
from paring.errors import OptionError, OutputError, UnsupportedError
from paring.mos.routing import Sizes
from paring.packed import open_source
from tests import pooling
from tests.helpers import put_adapter

REAL = Path(__file__).parents[1] / "fixtures" / "adapters"


def pool(sources, target, **options):
    return api.compress(sources, target, method="mos", device="cpu", **options)


def bits(path):
    with open_source(path) as opened:
        return {name: (t.dtype, t.shape, t.tobytes()) for name in opened for t in [opened.read(name)]}


def packed(report):
    return Path(report.output)


def alone(sources, tmp_path):
    """Bytes of the same adapters, one file each."""
    return sum(pool([s], tmp_path / f"alone{i}").bytes_out for i, s in enumerate(sources))


def check(report, sources):
    """Each adapter decodes alone, bit for bit, by name and by number."""
    opened = open_source(report.output, whole=True)
    names = [each["name"] for each in opened.facts["adapters"]]
    for i, (name, source) in enumerate(zip(names, sources, strict=True), 1):
        assert bits(f"{report.output}#{name}") == bits(f"{report.output}#{i}") == bits(source)
    assert report.error == 0
    assert report.bytes_out == packed(report).stat().st_size


def test_a_renamed_copy_takes_no_more_than_its_names(tmp_path):
    modules = pooling.gaussian(0)
    a, b = pooling.put(tmp_path / "a", modules), pooling.put(tmp_path / "b", modules, form="kohya")
    report = pool([a, b], tmp_path / "pool")
    check(report, [a, b])
    one = pool([a], tmp_path / "one").bytes_out
    assert report.bytes_out < one + 700  # names, configuration, alphas
    assert [level.level for level in report.sharing.levels] == ["alone", "tensor"]
    by = {member.name: member for member in report.sharing.adapters}
    factors = sum(A.nbytes + B.nbytes for A, B in modules.values())
    assert by["a"].shared_with == {"b": factors} and by["b"].bytes_own < 700
    assert report.sharing.repeated_across == factors and report.sharing.repeated_within == 0
    assert report.answer == ""


def test_permuted_ranks_are_rank_vectors_in_common(tmp_path):
    modules = pooling.gaussian(0)
    order = [2, 0, 3, 1]
    turned = {name: (A[order], B[:, order]) for name, (A, B) in modules.items()}
    sources = [pooling.put(tmp_path / "a", modules), pooling.put(tmp_path / "b", turned)]
    report = pool(sources, tmp_path / "pool")
    check(report, sources)
    assert {level.level for level in report.sharing.levels} == {"vector", "pool"}
    assert report.bytes_out < 0.6 * alone(sources, tmp_path)


@pytest.mark.parametrize("factors", [(-1.0, 1.0), (4.0, -0.125), (-0.5, -2.0)])
def test_flipped_signs_and_powers_of_two_lose_nothing(tmp_path, factors):
    modules = pooling.gaussian(0)
    moved = {
        name: (A * np.float32(factors[0]), B * np.float32(factors[1])) for name, (A, B) in modules.items()
    }
    sources = [pooling.put(tmp_path / name, m, "F16") for name, m in (("a", modules), ("b", moved))]
    report = pool(sources, tmp_path / "pool")
    check(report, sources)
    assert report.bytes_out < 0.64 * alone(sources, tmp_path)
    levels = {level.level for level in report.sharing.levels}
    assert levels & {"vector", "shard"} and "related" not in levels  # moved, not as a difference


def test_any_other_scale_is_a_difference_of_nothing(tmp_path):
    modules = pooling.gaussian(0, n_in=384, n_out=256)
    scaled = {name: (A * np.float32(0.7), B * np.float32(1.3)) for name, (A, B) in modules.items()}
    sources = [pooling.put(tmp_path / "a", modules), pooling.put(tmp_path / "b", scaled)]
    report = pool(sources, tmp_path / "pool")
    check(report, sources)
    assert {level.level for level in report.sharing.levels} == {"alone", "related"}
    assert report.bytes_out < 0.53 * alone(sources, tmp_path)


def test_another_gauge_is_a_mix_and_last_bits(tmp_path):
    modules = pooling.gaussian(0, n_in=768, n_out=768)
    rng = np.random.default_rng(1)
    turned = {}
    for name, (A, B) in modules.items():
        G = np.linalg.qr(rng.standard_normal((4, 4)))[0] @ np.diag([0.6, 1.4, 0.9, 1.1])
        turned[name] = ((np.linalg.inv(G) @ A).astype(np.float32), (B @ G).astype(np.float32))
    sources = [pooling.put(tmp_path / "a", modules), pooling.put(tmp_path / "b", turned)]
    report = pool(sources, tmp_path / "pool")
    check(report, sources)
    (relation,) = report.relations
    assert relation.overlap_a > 0.9999 and relation.overlap_b > 0.9999
    _, b = (member.bytes_own for member in report.sharing.adapters)
    assert b < 0.25 * alone(sources[1:], tmp_path)


def test_checkpoints_of_one_run_are_differences(tmp_path):
    modules = pooling.gaussian(0, n_in=768, n_out=768)
    sources = [pooling.put(tmp_path / "a", modules), pooling.put(tmp_path / "b", pooling.same_run(modules))]
    report = pool(sources, tmp_path / "pool")
    check(report, sources)
    assert report.relations[0].overlap_a > 0.99
    (tried,) = report.candidates  # .89 is what byte planes can make of it: .763 against .856 on a real pair
    assert tried.taken and tried.bytes < 0.9 * tried.bytes_without


@pytest.mark.parametrize(
    "sizes", [Sizes(16, 8, 1, 4), Sizes(8, 2, 1, 4), Sizes(12, 4, 2, 2), Sizes(6, 2, 1, 3)]
)
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_a_mos_adapter_expanded_is_its_pool_again(tmp_path, sizes, dtype):
    modules, used = pooling.mos(sizes, 8, 192, 96)
    source = pooling.put(tmp_path / "a", modules, dtype)
    report = pool([source], tmp_path / "pool")
    check(report, [source])
    opened = open_source(report.output, whole=True)
    pools = [info.shape for name, info in opened.tensors.items() if name.startswith("/")]
    # every shard that any layer draws, once: no more, no less, and of the true length
    assert sum(shape[0] for shape in pools) == used == report.sharing.public + report.sharing.private
    assert sorted(shape[1] for shape in pools) == sorted([192 // sizes.shards, 96 // sizes.shards])
    plain = sum(A.size + B.size for A, B in modules.values())
    assert sum(a * b for a, b in pools) / plain <= sizes.e / sizes.r
    assert {level.level for level in report.sharing.levels} == {"shard", "pool"}


def test_shared_bases_are_stored_once_within_one_adapter(tmp_path):
    modules = pooling.gaussian(0)
    base = next(iter(modules.values()))[0]
    frozen = {name: (base, B) for name, (_, B) in modules.items()}
    source = pooling.put(tmp_path / "a", frozen)
    report = pool([source], tmp_path / "pool")
    check(report, [source])
    assert report.sharing.repeated_within == 2 * base.nbytes


def test_gaussian_noise_is_no_gain(tmp_path):
    sources = [pooling.put(tmp_path / str(i), pooling.gaussian(i)) for i in range(3)]
    report = pool(sources, tmp_path / "pool")
    check(report, sources)
    assert report.answer == "no gain" and report.gain == 0 and not report.candidates
    assert report.sharing.repeated_across == report.sharing.repeated_within == 0
    assert all(r.overlap_a < 0.15 and r.overlap_b < 0.2 for r in report.relations)
    assert [member.name for member in report.sharing.adapters] == ["adapter-0", "adapter-1", "adapter-2"]


def test_real_adapters_trained_apart_are_no_gain(tmp_path):
    sources = [REAL / name for name in ("brown", "rotten", "reuters8")]
    report = pool(sources, tmp_path / "pool")
    check(report, sources)
    assert report.answer == "no gain"
    assert all(r.overlap_a < 0.03 and r.overlap_b < 0.07 for r in report.relations)


def test_zeros_and_odd_sizes(tmp_path):
    rng = np.random.default_rng(0)
    modules = {
        "layers.0.q": (rng.standard_normal((3, 97)).astype(np.float32), np.zeros((61, 3), np.float32)),
        "layers.1.q": (np.zeros((3, 97), np.float32), -np.zeros((61, 3), np.float32)),
    }
    sources = [pooling.put(tmp_path / name, modules, "F16") for name in "ab"]
    check(pool(sources, tmp_path / "pool"), sources)


def test_adding_to_a_pool_leaves_the_others_bytes(tmp_path):
    modules, _ = pooling.mos(Sizes(8, 4, 1, 4), 4, 192, 96)
    half = {n: m for n, m in modules.items() if n < "layers.2"}
    rest = {n: m for n, m in modules.items() if n >= "layers.2"}
    sources = [pooling.put(tmp_path / "a", half), pooling.put(tmp_path / "b", rest)]
    sources.append(pooling.put(tmp_path / "c", half, form="kohya"))
    first = pool(sources[:1], tmp_path / "one")
    grown = pool([first.output, *sources[1:]], tmp_path / "two")
    check(grown, sources)
    before, after = (open_source(r.output, whole=True) for r in (first, grown))
    for old, new in zip(before.payloads, after.payloads, strict=False):
        assert bytes(before.payload(old)) == bytes(after.payload(new)) and old.codec == new.codec
    both = pool(sources, tmp_path / "both")
    check(both, sources)
    assert grown.bytes_out < 1.1 * both.bytes_out and 0.8 * both.gain < grown.gain < both.gain
    by = {member.name: member for member in grown.sharing.adapters}
    assert by["b"].shared_with["a"] and by["c"].shared_with["a"]


def test_growing_again_and_again(tmp_path):
    modules = pooling.gaussian(0, n_in=384, n_out=256)
    sources, target = [], None
    for i in range(6):
        sources.append(pooling.put(tmp_path / f"step{i}", modules))
        report = pool([*([target] if target else []), sources[-1]], tmp_path / f"pool{i}")
        target = report.output
        modules = pooling.same_run(modules, 0.001, 0.01, seed=i)
    check(report, sources)


def test_what_is_refused(tmp_path):
    a, b = (pooling.put(tmp_path / name, pooling.gaussian(i)) for i, name in enumerate("ab"))
    made = pool([a, b], tmp_path / "pool").output
    with pytest.raises(UnsupportedError, match=r"name one, as in .*#a; there are 1 a, 2 b"):
        open_source(made)
    with pytest.raises(UnsupportedError, match="there is no adapter 'z'; there are 1 a, 2 b"):
        open_source(f"{made}#z")
    with pytest.raises(UnsupportedError, match="no pool of adapters"):
        open_source(f"{a}#a")
    with pytest.raises(OptionError, match="--ratio: method mos loses nothing"):
        pool([a, b], tmp_path / "x", ratio=20)
    with pytest.raises(OptionError, match="-o"):
        pool([a, b], None)
    with pytest.raises(OptionError, match="all together"):
        api.compress([a, b], tmp_path / "x", method="compeft")
    with pytest.raises(OutputError, match="exists"):
        pool([a, b], made)
    with pytest.raises(UnsupportedError, match="in a pool already"):
        pool([f"{made}#a", b], tmp_path / "x")


def test_what_holds_no_plain_factors_is_pooled_exactly(tmp_path):
    """RandLoRA keeps its shared bases once for every layer, under as many names."""
    rng = np.random.default_rng(0)
    bases = [from_f32(rng.standard_normal((4, 1, 48)).astype(np.float32), "F32") for _ in range(2)]
    tensors = {}
    for layer in range(5):
        stem = f"base_model.model.layers.{layer}.q"
        tensors |= {f"{stem}.randlora_A": bases[0], f"{stem}.randlora_B": bases[1]}
        small = from_f32(rng.standard_normal((4, 2)).astype(np.float32), "F32")
        tensors[f"{stem}.randlora_lambda"] = small
    source = put_adapter(tmp_path / "a", tensors, {"peft_type": "RANDLORA"})
    for error in (None, 0.1):
        report = pool([source], tmp_path / f"pool{error}", error=error)
        check(report, [source])
        assert report.sharing.repeated_within == 4 * 2 * bases[0].nbytes
    with pytest.raises(UnsupportedError, match="no adapter"):
        pool([put_adapter(tmp_path / "b", tensors, None)], tmp_path / "no")


def test_ia3_is_pooled_too(tmp_path):
    rng = np.random.default_rng(0)
    vectors = {
        f"base_model.model.layers.{i}.k.ia3_l": from_f32(1 + rng.standard_normal((64, 1)) / 9, "F32")
        for i in range(4)
    }
    sources = [put_adapter(tmp_path / name, vectors, {"peft_type": "IA3"}) for name in "ab"]
    for error in (None, 0.1):
        report = pool(sources, tmp_path / f"pool{error}", error=error)
        check(report, sources)
        assert report.sharing.adapters[0].shared_with == {"b": 4 * 64 * 4}
