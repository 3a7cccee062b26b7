"""How the golden packed files in ``fixtures/packed`` were made: ``python tests/make_golden.py NEW_FOLDER``.

They are never made again in place: a reader of format version 1 must decode them bit for bit for ever,
whatever a later encoder writes. A new case gets a new file; this script refuses to touch one that exists.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from paring.api import compress
from paring.checkpoint import digest, write_safetensors
from paring.codecs import deflated_levels, stored, ternary, trellis
from paring.codecs.residual import Difference, apart
from paring.codecs.shards import Gather, Pool, cut, moved
from paring.codecs.sparse import Sparse
from paring.codecs.ternary import from_trits
from paring.codecs.trellis import Levels
from paring.dtypes import STORAGE, Stored, from_bytes, from_f32, itemsize, numel
from paring.kernels.trellis.tensor import quantise
from paring.packed import open_source
from paring.packing import Beside, Image, Payload, Spec, payloads

PREFIX = "base_model.model.layers"
LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
#: the published rule, in the words of the method
PAPER = {"basis": "trained", "scope": "global", "alpha": 1.0}

Tensors = dict[str, Stored]


def values(shape: tuple[int, ...], dtype: str = "F32", seed: int = 0, around: float = 0.0) -> Stored:
    """Normal values of deviation .05."""
    x = np.random.default_rng(seed).normal(around, 0.05, shape).astype(np.float32)
    return from_f32(x.astype(np.float64) if dtype == "F64" else x, dtype)


def lora(dtype: str = "F32", rank: int = 4, modules: tuple[str, ...] = ("q_proj", "v_proj")) -> Tensors:
    """Two layers of ``modules``, A (r, 40), B (56, r)."""
    out: Tensors = {}
    for layer in range(2):
        for i, module in enumerate(modules):
            name, seed = f"{PREFIX}.{layer}.self_attn.{module}", 10 * layer + 2 * i
            out[f"{name}.lora_A.weight"] = values((rank, 40), dtype, seed)
            out[f"{name}.lora_B.weight"] = values((56, rank), dtype, seed + 1)
    return out


def carried() -> Tensors:
    """Tensors of many dtypes that are not factors."""
    flags = np.array([True, False, True])
    return {
        "base_model.model.score.weight": values((3, 40), "F32", 100),
        "base_model.model.score.bias": values((3,), "F64", 101),
        "base_model.model.norm.weight": values((40,), "BF16", 102, 1.0),
        "base_model.model.ids": Stored("I64", np.arange(-4, 20, dtype=np.int64).reshape(2, 12)),
        "base_model.model.flags": Stored("BOOL", flags),
        "base_model.model.empty": Stored("F16", np.zeros((0, 7), np.float16)),
        "base_model.model.größe": Stored("F32", np.array(2.5, np.float32)),
    }


def twice() -> Tensors:
    """Factors in bf16, one of them under a second name, beside other tensors."""
    factors = lora("BF16")
    return factors | carried() | {"base_model.model.copy": next(iter(factors.values()))}


def ia3(dtype: str) -> Tensors:
    """(IA)^3 vectors around one."""
    shapes = {"k_proj": (40, 1), "v_proj": (40, 1), "down_proj": (1, 90)}
    return {
        f"{PREFIX}.{layer}.{module}.ia3_l": values(shape, dtype, 10 * layer + i, 1.0)
        for layer in range(2)
        for i, (module, shape) in enumerate(shapes.items())
    }


def kohya() -> Tensors:
    """Two kohya modules with alphas, and a bias to be dropped."""
    out: Tensors = {"lora_te_extra.diff_b": values((9,), "F16", 9)}
    for i, module in enumerate(("lora_unet_a", "lora_te_b")):
        out[f"{module}.lora_down.weight"] = values((4, 40), "F16", 2 * i)
        out[f"{module}.lora_up.weight"] = values((56, 4), "F16", 2 * i + 1)
        out[f"{module}.alpha"] = Stored("F16", np.array(2 + i, np.float16))
    return out


def compressed(
    tensors: Tensors, config: Mapping[str, Any] | None = LORA, **options: Any
) -> Callable[[Path], None]:
    """What ``paring.api.compress`` makes of an adapter."""

    def make(path: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "adapter_model.safetensors"
            write_safetensors(source, tensors, {"format": "pt"})
            if config:
                (Path(folder) / "adapter_config.json").write_text(json.dumps(config))
            compress(source, path, threads=1, **{"method": "compeft", **options})

    return make


def blocks(path: Path) -> None:
    """A tensor of five blocks in a payload of its own: modes 3, none, 2, 1 and 0; rows, columns, escapes."""
    rng = np.random.default_rng(5)
    trits = np.zeros(4 * 65_536 + 40, np.int8)
    for begin, count in ((0, 1500), (2 * 65_536, 200), (3 * 65_536, 20)):
        where = begin + rng.choice(65_536, count, replace=False)
        trits[where] = rng.choice(np.array([-1, 1], np.int8), count)
    trits[-40:] = np.array([1, -1] * 20, np.int8) * (rng.random(40) < 0.5)
    big = from_trits(trits, np.float32(0.0371))
    dense = from_trits(
        (np.arange(3000).reshape(30, 100) % 97 != 0).astype(np.int8), np.float32(-1.5), "whole"
    )
    rows = from_trits(rng.integers(-1, 2, (5, 13), np.int8), rng.normal(size=5).astype(np.float32), "rows")
    columns = from_trits(
        rng.integers(-1, 2, (5, 2, 7), np.int8), rng.normal(size=14).astype(np.float32), "columns"
    )
    none = from_trits(np.zeros((0, 3), np.int8), 0.0)
    specs = [Spec("dense", "F16", dense.shape), Spec("manifest", "F64", rows.shape), Spec("ternary", "BF16",
    columns.shape),
             Spec("none", "F32", none.shape)]  # fmt: skip
    pack = ternary.encode([dense, rows, columns, none])
    wide = Stored("U16", np.arange(600, dtype=np.uint16).reshape(20, 30))
    image = Image(
        [
            Payload("ternary", ternary.ID, 1, pack, tuple(specs)),
            Payload("big", ternary.ID, 1, ternary.encode([big]), (Spec("big", "F32", big.shape),)),
            Payload("manifest", stored.ID, 1, stored.encode([wide]), (Spec("wide", "U16", wide.shape),)),
        ],
        {"tool": "paring", "metadata": {"format": "pt", "naïve": ""}},
    )
    image.write(path, digest(image.decoded()), lambda _: None)


def trellis_blocks(codec: ModuleType) -> Callable[[Path], None]:
    """Two blocks and all layouts of trellis data: many classes and states, escapes, zeros, and a payload that
    ends in zeros.
    """
    return lambda path: _trellis_blocks(codec, path)


def _trellis_blocks(codec: ModuleType, path: Path) -> None:
    rng = np.random.default_rng(6)

    def item(shape: tuple[int, ...], layout: Any, classes: list[int], bits: int = 5) -> Levels:
        count, n = ternary.segments(shape, layout)
        each = np.resize(np.array(classes, np.uint8), count)
        k = np.rint(rng.standard_normal((count, n)) * 0.2 * 2.0 ** (each[:, None] / 7.0)).astype(np.int16)
        scale = rng.normal(0, 0.01, count).astype(np.float32)
        return Levels(shape, layout, bits, each, scale, k)

    long = item((66_000,), "whole", [1])
    long.k[:] = rng.random(66_000) < 0.001
    long.k[0, 65_530:65_540] = [3, -1, 2, -32_768, 32_767, 1, -2, 700, 0, -1]
    shared = {
        "long": ("F16", long),
        "rows": ("F64", item((48, 5), "rows", list(range(1, 49)))),
        "columns": ("BF16", item((7, 2, 9), "columns", [9, 0, 30])),
        "none": ("F32", item((0, 3), "rows", [9])),
        "scalar": ("F32", item((), "whole", [12])),
    }
    specs = tuple(Spec(name, dtype, it.shape) for name, (dtype, it) in shared.items())
    odd = [item((3, 11), "rows", [20, 8, 28], 8), item((11,), "whole", [7], 8)]
    more = (Spec("trellis", "F32", (3, 11), stored_as="F16"), Spec("ia3_l", "BF16", (11,), ones=True))
    sparse = item((600, 1000), "columns", [0], 2)
    image = Image(
        [
            Payload(
                "trellis", trellis.ID, codec.VERSION, codec.encode([it for _, it in shared.values()]), specs
            ),
            Payload("trellis", trellis.ID, codec.VERSION, codec.encode(odd), more),
            Payload(
                "sparse",
                trellis.ID,
                codec.VERSION,
                codec.encode([sparse]),
                (Spec("sparse", "F16", (600, 1000)),),
            ),
        ],
        {"tool": "paring"},
    )
    image.write(path, digest(image.decoded()), lambda _: None)


def sparse_forms(path: Path) -> None:
    """Both forms of sparse tensors in many dtypes: -0, NaN, no values, all values; a file beside them."""
    rng = np.random.default_rng(7)

    def bits(dtype: str, shape: tuple[int, ...], density: float) -> Stored:
        width = itemsize(dtype)
        raw = rng.integers(0, 256, (numel(shape), width), np.uint8)
        raw[rng.random(len(raw)) >= density] = 0
        return from_bytes(dtype, shape, (raw & 1 if dtype == "BOOL" else raw).reshape(-1))

    def two_of_four(dtype: str, shape: tuple[int, ...]) -> Stored:
        wide = values(shape, "F32", 8).data.reshape(-1, 4).copy()
        wide[np.arange(len(wide))[:, None], np.argsort(rng.random(wide.shape))[:, 2:]] = 0
        wide[::5] = 0
        wide[1::5, 0] = 0
        return from_f32(wide.reshape(shape), dtype)

    odd = np.array([0.0, -0.0, np.nan, -np.nan, np.inf, 1e-45, 0.0, -1.0, 0.0], np.float32)
    odd.view("<u4")[2] = 0x7F80_0001
    masks = {
        **{dtype: bits(dtype, (5, 9), 0.4) for dtype in STORAGE if dtype not in ("U32", "U64")},
        "odd": Stored("F32", odd.reshape(3, 3)),
        "zeros": Stored("BF16", np.zeros((40, 30), np.uint16)),
        "none": Stored("F16", np.zeros((0, 4), np.float16)),
        "scalar": Stored("F32", np.array(-0.0, np.float32)),
        "full": Stored("U8", np.full((3, 4, 5), 7, np.uint8)),
    }
    pairs = {
        "pairs": two_of_four("BF16", (16, 20)),
        "pairs.f64": two_of_four("F64", (4, 2, 8)),
        "pairs.i8": Stored("I8", np.tile(np.array([0, -3, 0, 5], np.int8), (3, 2))),
        "pairs.none": Stored("F32", np.zeros((0,), np.float32)),
    }
    items = [(name, Sparse(tensor)) for name, tensor in masks.items()]
    items += [(name, Sparse(tensor, "2:4")) for name, tensor in pairs.items()]
    parts = payloads([(Spec(name, it.tensor.dtype, it.shape), it) for name, it in items])
    files = [Beside.of("config.json", b"{}\n"), Beside.of("1_Pooling/config.json", b"")]
    image = Image(parts, {"tool": "paring"}, files)
    image.write(path, digest(image.decoded()), lambda _: None)


def rounded_once(path: Path) -> None:
    """A bf16 (IA)^3 vector of 1 plus or minus 2^-8 + 2^-30: by way of fp32 all of it would round to 1."""
    trits = np.array([1, 0, -1, 1, 1, 0, 0, -1, 0, 1], np.int8)
    payload = ternary.encode([from_trits(trits, np.float32(2**-8 + 2**-30))])
    spec = Spec("ia3_l", "BF16", trits.shape, ones=True)
    image = Image([Payload("ternary", ternary.ID, 1, payload, (spec,))], {"tool": "paring"})
    image.write(path, digest(image.decoded()), lambda _: None)


def references(path: Path) -> None:
    """Tensors told by others in every way: gathered and moved, mixed and exact, mixed with levels."""
    facts: dict[str, Any] = {"tool": "paring"}
    parts, known = [], []

    def put(name: str, dtype: str, item: Any) -> None:
        parts.extend(payloads([(Spec(name, dtype, item.shape), item)]))
        known.append(Image(parts, facts).decoded()[-1][1])

    for dtype in ("F32", "F16", "BF16", "F64"):
        first = len(known)
        put(f"{dtype}.root", dtype, values((6, 24), dtype, 1))
        put(f"{dtype}.more", dtype, values((8, 10), dtype, 2))
        pool = Pool(4, ((first, "rows"), (first + 1, "columns")))
        shards_ = np.concatenate(
            [cut(known[first].data, "rows", 4), cut(known[first + 1].data, "columns", 4)]
        )
        index, moves = np.array([55, 3, 3, 40, 0, 12]), np.array([0, 1, -2, 5, 0, -7], np.int16)
        rows = moved(Stored(dtype, shards_[index]), moves).data.reshape(3, 8)
        whole = Stored(dtype, np.ascontiguousarray(rows.T))
        put(f"{dtype}.gathered", dtype, Gather(whole, "columns", pool, index, moves))
        base, tensor = known[first], values((6, 24), dtype, 3)
        mix = np.linspace(-1, 1, 24).reshape(4, 6)
        few = values((4, 24), dtype, 4)
        k, levels, cls = quantise(np.linspace(-3, 3, 24) ** 3, 0.05, 14, 4)
        assert levels.any()
        left = Levels(
            (4, 24),
            "rows",
            4,
            np.array([cls, 0, cls, 0], np.uint8),
            np.full(4, 0.125, np.float32),
            np.stack([k] * 4),
        )
        for i, (target, by, rest) in enumerate(
            [
                (tensor, None, apart(tensor, base, "rows", None)),
                (tensor, np.array(0.3), apart(tensor, base, "rows", np.array(0.3))),
                (few, mix, apart(few, base, "rows", mix)),
                (few, mix, left),
                (tensor, np.array(-2.0), None),
            ]
        ):
            item = Difference(target.shape, dtype, "rows", first, base, by, rest)
            put(f"{dtype}.differs.{i}", dtype, item)
    image = Image(parts, facts)
    image.write(path, digest(image.decoded()), lambda _: None)


def pooled(dtypes: tuple[str, ...], error: float | None = None) -> Callable[[Path], None]:
    """A pool: an adapter, a permuted and partly flipped and scaled one, a later checkpoint, a turned one."""

    def make(path: Path) -> None:
        first = {name: tensor.f32() for name, tensor in lora(modules=("q_proj", "v_proj", "k_proj")).items()}
        rng = np.random.default_rng(5)
        turn = np.array([[0.5, 0.25, 0, 0], [0, 2, 0, 0], [0, 0, 1, 0.125], [0, 0, 0, 1.5]])
        others: list[dict[str, Any]] = [first, {}, {}, {}]
        for name, values in first.items():
            of_a = "lora_A" in name
            others[1][name] = values[::-1] * np.float32(-0.5) if of_a else values[:, ::-1]
            others[2][name] = values + np.float32(0.01) * rng.standard_normal(values.shape).astype(np.float32)
            others[3][name] = np.linalg.inv(turn) @ values if of_a else values @ turn
        with tempfile.TemporaryDirectory() as folder:
            sources = []
            for i, (tensors, dtype) in enumerate(zip(others, dtypes, strict=True)):
                source = Path(folder) / f"step-{i}.safetensors"
                stored_ = {n: from_f32(np.ascontiguousarray(v), dtype, n) for n, v in tensors.items()}
                write_safetensors(source, stored_, {"format": "pt"})
                sources.append(source)
            compress(sources, path, method="mos", threads=1, error=error)

    return make


BIG_ENOUGH = {"bits_per_param": 24.0}  # these files are small: their names weigh more than their weights
CASES: dict[str, Callable[[Path], None]] = {
    "lora_f32_semidiscrete": compressed(lora(), **BIG_ENOUGH),
    "lora_f16_published": compressed(lora("F16"), density=0.3, **PAPER),
    "lora_bf16_carried": compressed(lora("BF16") | carried(), **BIG_ENOUGH),
    "lora_bf16_carried_fp16": compressed(lora("BF16") | carried(), carry="fp16", **BIG_ENOUGH),
    "lora_f64_tensor_scope": compressed(lora("F64"), basis="svd", scope="tensor", density=0.2),
    "lora_rank_1": compressed(lora(rank=1), LORA | {"r": 1}, density=0.5),
    "ia3_f32": compressed(ia3("F32"), {"peft_type": "IA3", "target_modules": ["k_proj"]}, density=0.5),
    "ia3_f16": compressed(ia3("F16"), {"peft_type": "IA3", "target_modules": ["k_proj"]}, density=0.5),
    "kohya_f16_dropped": compressed(kohya(), None, carry="drop", density=0.4),
    "blocks": blocks,
    "ia3_bf16_rounded_once": rounded_once,
    "spectral_f32": compressed(lora(), method="spectral", **BIG_ENOUGH),
    "spectral_f16": compressed(lora("F16"), method="spectral", **BIG_ENOUGH),
    "spectral_bf16": compressed(lora("BF16"), method="spectral", **BIG_ENOUGH),
    "trellis_blocks": trellis_blocks(deflated_levels),
    "trellis2_blocks": trellis_blocks(trellis),
    "spectral2_f32": compressed(lora(), method="spectral", **BIG_ENOUGH),
    "lossless_twice": compressed(twice(), method="lossless"),
    "references": references,
    "references_trellis2": references,
    "pool_exact": pooled(("F32", "F32", "F32", "F32")),
    "pool_lossy": pooled(("F32", "F16", "F32", "BF16"), 0.05),
    "sparse_forms": sparse_forms,
    "truncated_kohya": compressed(kohya(), None, method="truncate", rank=2),
}


def main(folder: Path) -> None:
    """Make every case that is not in ``folder`` yet."""
    folder.mkdir(parents=True, exist_ok=True)
    listing = folder / "golden.json"
    golden = json.loads(listing.read_text()) if listing.exists() else {}
    for name, make in CASES.items():
        path = folder / f"{name}.paring.safetensors"
        if path.exists():
            print(f"{path} exists: left alone")
            continue
        make(path)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        golden[name] = {"sha256": sha256, "digest": open_source(path, whole=True).digest()}
        listing.write_text(json.dumps(golden, indent=2, sort_keys=True) + "\n")
        print(path, path.stat().st_size)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
