"""MoS: the draw of shards is fixed for ever, expansion is the published formula, folding undoes it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paring.errors import BadValueError, OptionError
from paring.kernels import random
from paring.mos.pools import Layout, Projection, expand, fold, projections
from paring.mos.routing import FACTORS, Sizes, check_indices, draw, index_dtype, permutation


def plain_philox(counter: int, key: int) -> list[int]:
    """Philox 4x32-10 in whole numbers."""
    mask = 0xFFFFFFFF
    x = [counter & mask, counter >> 32, 0, 0]
    k = [key & mask, key >> 32]
    for _ in range(10):
        a, b = x[0] * 0xD2511F53, x[2] * 0xCD9E8D57
        x = [(b >> 32) ^ x[1] ^ k[0], b & mask, (a >> 32) ^ x[3] ^ k[1], a & mask]
        k = [(k[0] + 0x9E3779B9) & mask, (k[1] + 0xBB67AE85) & mask]
    return x


def plain_permutation(key: int, count: int) -> list[int]:
    words = [word for block in range(count // 2 + 1) for word in plain_philox(block, key)]
    return sorted(range(count), key=lambda i: (words[2 * i] + (words[2 * i + 1] << 32), i))


def plain_vectors(pool: list[Any], index: list[int], shards: int) -> list[list[Any]]:
    """``M = pool[idx]; cat([M[i::l] for i in range(l)], dim=1)``, with lists."""
    M = [pool[i] for i in index]
    parts = [M[i::shards] for i in range(shards)]
    return [[value for part in parts for value in part[row]] for row in range(len(parts[0]))]


@st.composite
def layouts(make: st.DrawFn, largest: int = 6) -> tuple[Sizes, int]:
    """Sizes and a number of layers that fit each other."""
    layers, shards = make(st.integers(1, largest)), make(st.integers(1, 4))
    e = make(st.integers(1, 5))
    private = make(st.integers(0, e))
    most = private + (e - private) * layers
    r = e if private == e else make(st.integers(max(1, private), most))
    return Sizes(r, e, private, shards), layers


def test_golden() -> None:
    """Seeds stand for indices in files: these must never change."""
    assert permutation(0, 8).tolist() == [3, 5, 4, 2, 6, 7, 1, 0]
    assert permutation(2**64 - 1, 7).tolist() == [0, 1, 2, 4, 5, 3, 6]
    sizes = Sizes(r=4, e=2, private=1, shards=2)
    name = "model.layers.*.self_attn.q_proj"
    assert draw(sizes, 4, 1, 0, name, "A").tolist() == [5, 3, 6, 7, 2, 1, 10, 11]
    assert draw(sizes, 4, 1, 0, name, "B").tolist() == [1, 2, 5, 0, 4, 6, 10, 11]
    assert draw(sizes, 4, 3, 7, name, "A").tolist() == [5, 2, 1, 0, 3, 7, 14, 15]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 100, 257])
@pytest.mark.parametrize("key", [0, 1, 2**64 - 1, random.key(3, "x")])
def test_permutation_is_as_defined(key: int, count: int) -> None:
    found = permutation(key, count)
    assert found.dtype == np.int64
    assert found.tolist() == plain_permutation(key, count)
    assert sorted(found) == list(range(count))


def test_permutations_are_uniform() -> None:
    """Each value is as often at each place."""
    n, runs = 8, 4000
    counts = np.zeros((n, n))
    for key in range(runs):
        counts[np.arange(n), permutation(key, n)] += 1
    assert (np.abs(counts - runs / n) < 6 * np.sqrt(runs / n)).all()


@given(layouts(), st.integers(0, 2**70), st.sampled_from(["q_proj", "mlp.*.up"]))
def test_a_draw_is_public_shards_without_repeats_then_its_own(
    sized: tuple[Sizes, int], seed: int, name: str
) -> None:
    sizes, layers = sized
    drawn = {
        factor: [draw(sizes, layers, k, seed, name, factor) for k in range(layers)] for factor in FACTORS
    }
    first_private = (sizes.e - sizes.private) * layers * sizes.shards
    own = sizes.private * sizes.shards
    for indices in drawn.values():
        check_indices(sizes, np.stack(indices), "x")
        for k, index in enumerate(indices):
            assert len(index) == sizes.r * sizes.shards == len(set(index.tolist()))
            public, private = index[: len(index) - own], index[len(index) - own :]
            assert (public < first_private).all()
            assert private.tolist() == list(range(first_private + k * own, first_private + (k + 1) * own))


def test_factors_layers_types_and_seeds_draw_independently() -> None:
    sizes = Sizes(8, 4, 1, 4)
    draws = [
        tuple(draw(sizes, 16, layer, seed, name, factor))
        for layer in (0, 1)
        for seed in (0, 1)
        for name in ("q", "k")
        for factor in FACTORS
    ]
    assert len(set(draws)) == 16


@pytest.mark.parametrize(
    ("sizes", "pool", "taken", "unique"),
    # of 896 public shards, 32 layers draw 60 each: 896 (1 - 60 / 896)^32 = 97.5 are never drawn
    [(Sizes(16, 8, 1, 4), 1024, 2048, (900, 950)), (Sizes(8, 2, 1, 4), 256, 1024, (255, 256)),
     (Sizes(32, 8, 3, 2), 512, 2048, (505, 512))],
)  # fmt: skip
def test_shares_of_shards_are_those_of_the_published_draw(
    sizes: Sizes, pool: int, taken: int, unique: tuple[int, int]
) -> None:
    assert sizes.pool(32) == pool
    for factor in FACTORS:
        indices = np.stack([draw(sizes, 32, k, 0, "q_proj", factor) for k in range(32)])
        assert indices.size == taken
        assert unique[0] <= len(np.unique(indices)) <= unique[1]


def llama(layers: int, hidden: int, inner: int) -> list[tuple[str, tuple[int, int]]]:
    """The linear layers of a LLaMA without grouped queries."""
    attention = [(f"self_attn.{name}_proj", (hidden, hidden)) for name in "qkvo"]
    mlp = [
        ("mlp.gate_proj", (inner, hidden)),
        ("mlp.up_proj", (inner, hidden)),
        ("mlp.down_proj", (hidden, inner)),
    ]
    return [(f"model.layers.{k}.{name}", shape) for k in range(layers) for name, shape in attention + mlp]


@pytest.mark.parametrize("e", [1, 2, 8, 64])
@pytest.mark.parametrize(("private", "shards", "r"), [(0, 1, 32), (1, 4, 32), (1, 2, 16)])
def test_parameters_are_those_of_the_paper(e: int, private: int, shards: int, r: int) -> None:
    """LLaMA2-7B: 2,498,560 per rank, whatever r, p and l are."""
    sizes = Sizes(1 if e == private else r, e, private, shards)
    layout = Layout(sizes, 16, projections(llama(32, 4096, 11008)), 0)
    assert layout.parameters == 2_498_560 * e
    assert layout.parameters == sum(
        rows * width
        for each in layout.projections
        for rows, width in (layout.shape(each, f) for f in FACTORS)
    )


def test_parameters_of_13b() -> None:
    assert Layout(Sizes(8, 2, 1, 4), 16, projections(llama(40, 5120, 13824)), 0).parameters == 7_823_360


def test_types_are_names_but_for_their_numbers() -> None:
    found = projections(llama(3, 8, 16))
    assert len(found) == 7
    assert found[0] == Projection(
        "model.layers.*.self_attn.q_proj", tuple(f"model.layers.{k}.self_attn.q_proj" for k in range(3)), 8, 8
    )
    several = projections(
        [("down.0.to_q", (8, 8)), ("down.1.to_q", (4, 4)), ("down.2.to_q", (8, 8)), ("0", (2, 2))]
    )
    assert [(each.name, each.modules) for each in several] == [
        ("down.*.to_q[8,8]", ("down.0.to_q", "down.2.to_q")),
        ("down.*.to_q[4,4]", ("down.1.to_q",)),
        ("*", ("0",)),
    ]
    (kept,) = projections([("w1.2x.q3", (2, 2))])
    assert kept.name == "w1.2x.q3"


@given(layouts(), st.integers(1, 3), st.integers(0, 100))
@settings(deadline=None)
def test_expansion_is_the_published_formula_and_folds_back(
    sized: tuple[Sizes, int], width: int, seed: int
) -> None:
    sizes, layers = sized
    rng = np.random.default_rng(seed)
    for dtype in (np.float32, np.uint16):  # uint16 holds bf16
        pool = rng.integers(0, 1 << 16, (sizes.pool(layers), width)).astype(dtype)
        routes = [draw(sizes, layers, k, seed, "q", "A") for k in range(layers)]
        vectors = [expand(pool, index, sizes.shards) for index in routes]
        for each, index in zip(vectors, routes, strict=True):
            assert each.shape == (sizes.r, sizes.shards * width)
            assert each.tolist() == plain_vectors(pool.tolist(), index.tolist(), sizes.shards)
        folded, used = fold(vectors, routes, sizes.shards, len(pool))
        assert folded.dtype == dtype
        assert set(np.flatnonzero(used)) == set(np.concatenate(routes))
        assert folded[used].tobytes() == pool[used].tobytes()
        assert not folded[~used].any()


def test_folding_keeps_bits() -> None:
    sizes, odd = Sizes(2, 2, 0, 2), np.array([np.nan, -0.0, 0.0, 1e-45], np.float32)
    pool = np.resize(odd, (8, 4))
    routes = [draw(sizes, 2, k, 0, "q", "A") for k in range(2)]
    folded, used = fold([expand(pool, index, 2) for index in routes], routes, 2, 8)
    assert folded[used].tobytes() == pool[used].tobytes()


def test_plain_lora_is_the_degenerate_case() -> None:
    """r = e = p: every layer has its own vectors, in order, whatever the seed."""
    sizes = Sizes(3, 3, 3, 2)
    pool = np.arange(4 * 6 * 5).reshape(24, 5)
    for layer in range(4):
        index = draw(sizes, 4, layer, 9, "q", "B")
        np.testing.assert_array_equal(expand(pool, index, 2), pool.reshape(4, 3, 10)[layer])


def test_what_was_trained_after_expansion_does_not_fold() -> None:
    sizes = Sizes(4, 2, 1, 2)
    routes = [draw(sizes, 4, k, 0, "q", "A") for k in range(4)]
    pool = np.random.default_rng(0).normal(size=(16, 3))
    vectors = [expand(pool, index, 2) for index in routes]
    fold(vectors, routes, 2, 16)
    vectors[2][0, 0] += 1e-9
    with pytest.raises(BadValueError, match="does not fold: its shards differ"):
        fold(vectors, routes, 2, 16)


@pytest.mark.parametrize(
    ("sizes", "why"),
    [
        ((0, 1, 0, 1), "r must be a whole number, 1 or more, not 0"),
        ((1, True, 0, 1), "e must be a whole number"),
        ((2, 2, -1, 1), "private must be a whole number, 0 or more"),
        ((2, 2, 0, 0.5), "shards must be a whole number"),
        ((2, 4, 3, 1), "private = 3 of r = 2 and e = 4"),
        ((4, 2, 3, 1), "private = 3 of r = 4 and e = 2"),
        ((4, 2, 2, 1), "private = e = 2 leaves no public shards for r = 4"),
    ],
)
def test_sizes_that_cannot_be_meant(sizes: tuple[Any, ...], why: str) -> None:
    with pytest.raises(OptionError, match=why):
        Sizes(*sizes)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            {"projections": (Projection("q", ("0", "1"), 8, 6),)},
            "MoS of q: in = 6 cannot be cut into 4 equal",
        ),
        (
            {"projections": (Projection("q", ("0", "1"), 6, 8),)},
            "MoS of q: out = 6 cannot be cut into 4 equal",
        ),
        ({"projections": (Projection("q", ("0",), 8, 8),)}, "1 layer.s. have 4 public .* draws 8: lower r"),
        ({"projections": ()}, "at least one module"),
        ({"projections": (Projection("q", ("0", "0"), 8, 8),)}, "no module or projection type twice"),
        ({"alpha": float("nan")}, "alpha must be a number below"),
        ({"alpha": "16"}, "alpha must be a number below"),
        ({"seed": None}, "a seed or the indices themselves"),
        ({"seed": 0.5}, "seed must be a whole number"),
        ({"seed": None, "indices": {}}, "A needs indices of 2 layer"),
    ],
)
def test_layouts_that_cannot_be_meant(change: dict[str, Any], why: str) -> None:
    whole = {"sizes": Sizes(3, 2, 1, 4), "alpha": 16, "seed": 0}
    whole["projections"] = (Projection("q", ("0", "1"), 8, 8),)
    Layout(**whole)
    with pytest.raises(OptionError, match=why):
        Layout(**whole | change)


@pytest.mark.parametrize(
    ("place", "value", "why"),
    [
        ((0, 0), 8, "outside the 8 public shards"),
        ((1, 1), -1, "outside the 8 public shards"),
        ((0, 0), None, "draws one shard twice"),
        ((0, -1), 14, "must be the private shards of its layer"),
    ],
)
def test_indices_that_are_no_draw(place: tuple[int, int], value: int | None, why: str) -> None:
    sizes = Sizes(2, 2, 1, 4)
    indices = np.stack([draw(sizes, 2, k, 0, "q", "A") for k in range(2)])
    check_indices(sizes, indices, "x")
    indices[place] = indices[0, 1] if value is None else value
    with pytest.raises(OptionError, match=why):
        check_indices(sizes, indices, "x")
    with pytest.raises(OptionError, match=r"must be \[layers, 8\]"):
        check_indices(sizes, indices[:, 1:], "x")


def test_indices_take_the_narrowest_dtype() -> None:
    assert [index_dtype(n) for n in (1, 256, 257, 65536, 65537)] == ["U8", "U8", "U16", "U16", "U32"]
