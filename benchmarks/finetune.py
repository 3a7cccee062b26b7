"""A real full fine-tune as what it adds to its base: ours against what is usually done, in bytes and error.

The fine-tune is ``sre-embedding-model``, of all-MiniLM-L6-v2: 22.7 million parameters, 101 of 103 tensors
changed. Errors are relative, of the deltas of all tensors; ratios are those of the checkpoint's bytes. The
others are charged for their numbers alone, no headers; ours for the whole file.

    python -m benchmarks.finetune [--ratios 8,16,32,64,128] [--json FILE]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.machine import describe, write
from benchmarks.real_data import MODEL, TUNED, fetch
from paring import lowrank
from paring.api import compress
from paring.checkpoint import open_checkpoint, write_safetensors
from paring.codecs import stored
from paring.dtypes import FLOATS, from_f32
from paring.finetuned.restoring import difference

F32 = npt.NDArray[np.float32]
Deltas = dict[str, F32]
_GROUP = 128


def deltas(tuned: Path, base: Path) -> Deltas:
    """``tuned - base`` of all tensors that hold numbers."""
    mine, below = open_checkpoint(tuned), open_checkpoint(base)
    names = [name for name in mine if mine.tensors[name].dtype in FLOATS]
    return {name: (mine.read(name).f64() - below.read(name).f64()).astype(np.float32) for name in names}


def error(found: Deltas, made: Deltas) -> float:
    """Relative, over all tensors; those that were not made are lost."""
    lost = sum(float(((d - made.get(name, 0)).astype(np.float64) ** 2).sum()) for name, d in found.items())
    return float((lost / sum(float((d.astype(np.float64) ** 2).sum()) for d in found.values())) ** 0.5)


def vectors(found: Deltas) -> tuple[int, Deltas]:
    """Norms and biases in fp16: bytes, and what they decode to."""
    some = {name: d.astype(np.float16).astype(np.float32) for name, d in found.items() if d.ndim < 2}
    return sum(2 * d.size for d in some.values()), some


def by_matrix(found: Deltas, code: Callable[[F32], tuple[float, F32]]) -> tuple[float, Deltas]:
    """Bytes and decoded deltas where every matrix is coded by itself."""
    nbytes, made = vectors(found)
    total = float(nbytes)
    for name, d in found.items():
        if d.ndim >= 2 and d.any():
            size, made[name] = code(d)
            total += size
    return total, made


def lora(found: Deltas, most: float) -> tuple[float, Deltas, int]:
    """Leading components in fp16, of one rank for all: the largest that fits ``most`` bytes."""
    shapes = [(d.shape[0], d.shape[1]) for d in found.values() if d.ndim == 2 and d.any()]

    def nbytes(rank: int) -> int:
        return int(vectors(found)[0] + sum(2 * min(rank, *shape) * sum(shape) for shape in shapes))

    rank = max((r for r in range(1, 385) if nbytes(r) <= most), default=0)
    if not rank:
        return nbytes(0), vectors(found)[1], 0

    def code(d: F32) -> tuple[float, F32]:
        U, s, V = lowrank.leading(d, rank=min(rank, *d.shape))
        root = np.sqrt(s)
        B, A = (x.astype(np.float16).astype(np.float32) for x in (U * root, root[:, None] * V))
        return 2 * (A.size + B.size), B @ A

    return *by_matrix(found, code), rank


def rounding(bits: int) -> Callable[[F32], tuple[float, F32]]:
    """``2^bits`` even levels, one fp16 scale for 128 entries: the best of 24 scales for each group."""

    def code(d: F32) -> tuple[float, F32]:
        groups = np.resize(d.reshape(-1), (-(-d.size // _GROUP), _GROUP))
        most = np.abs(groups).max(axis=1, keepdims=True)
        half = 2 ** (bits - 1)
        best, least = np.zeros_like(groups), np.full(len(groups), np.inf)
        for share in np.linspace(0.3, 1.0, 24):
            step = (most * share / (half - 0.5)).astype(np.float16).astype(np.float32)
            with np.errstate(divide="ignore", invalid="ignore"):
                level = np.clip(np.floor(np.nan_to_num(groups / step)), -half, half - 1) + 0.5
            lost = ((groups - level * step) ** 2).sum(axis=1)
            better = lost < least
            best[better], least[better] = (level * step)[better], lost[better]
        return d.size * bits / 8 + 2 * len(groups), best.reshape(-1)[: d.size].reshape(d.shape)

    return code


def bitdelta(d: F32) -> tuple[float, F32]:
    """Liu et al. 2024 (BitDelta), without its training of scales: the sign of every entry, a scale."""
    return d.size / 8 + 4, np.where(d > 0, 1, -1).astype(np.float32) * np.abs(d).mean()


def lossless(tuned: Path, base: Path) -> int:
    """Bytes of the differences of bits, by planes, deflated."""
    mine, below = open_checkpoint(tuned), open_checkpoint(base)
    changes = (difference(mine.read(name), below.read(name)) for name in mine)
    return sum(len(stored.encode([change])) for change in changes)


def halved(source: Path, target: Path) -> Path:
    """The checkpoint with its floating-point tensors in fp16."""
    opened = open_checkpoint(source)
    tensors = {
        name: from_f32(tensor.f64(), "F16", name) if tensor.dtype in FLOATS else tensor
        for name, tensor in ((name, opened.read(name)) for name in opened)
    }
    write_safetensors(target, tensors)
    return target


def measure(tuned: Path, base: Path, ratios: list[float], threads: int | None) -> list[dict[str, Any]]:
    """Rows of a table: what, ratio, error."""
    found, size = deltas(tuned, base), tuned.stat().st_size
    rows: list[dict[str, Any]] = []

    def add(what: str, nbytes: float, lost: float, **more: Any) -> None:
        rows.append({"what": what, "ratio": size / nbytes, "error": lost, **more})
        print(f"{what:28} {size / nbytes:8.2f} {lost:8.4f}", flush=True)

    for ratio in ratios:
        for carry in ("lossless", "priced"):
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder, "packed.paring.safetensors")
                made = compress(tuned, out, base=base, ratio=ratio, carry=carry, threads=threads)
            assert made.bytes_out and made.error is not None
            add(
                f"paring, vectors {carry}",
                made.bytes_out,
                made.error,
                seconds=made.seconds,
                peak=made.peak_rss_bytes,
            )
        nbytes, decoded, rank = lora(found, size / ratio)
        add(f"LoRA of rank {rank}, fp16", nbytes, error(found, decoded))
    for bits in (4, 2):
        nbytes, decoded = by_matrix(found, rounding(bits))
        add(f"int{bits}, groups of 128", nbytes, error(found, decoded))
    nbytes, decoded = by_matrix(found, bitdelta)
    add("BitDelta", nbytes, error(found, decoded))
    add("lossless, deflated", lossless(tuned, base), 0.0)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--ratios", default="8,16,32,64")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the tables to FILE as well")
    asked = parser.parse_args()
    machine = describe("numpy")
    ratios = [float(text) for text in asked.ratios.split(",")]
    root = fetch([TUNED]) and fetch()
    with tempfile.TemporaryDirectory() as folder:
        pairs = {}
        for home, name in ((MODEL, "base"), (TUNED.home, "tuned")):
            source, plain = root / home / "model.safetensors", Path(folder, name, "model.safetensors")
            plain.parent.mkdir()  # without tokenizers, which the others do not hold, either
            plain.symlink_to(source)
            half = Path(folder, f"{name}16", "model.safetensors")
            half.parent.mkdir()
            pairs[name] = (plain, halved(source, half))
        results = {}
        for number, dtype in enumerate(("fp32", "fp16")):
            print(f"\n{dtype} checkpoints\n{'':28} {'ratio':>8} {'error':>8}")
            results[dtype] = measure(pairs["tuned"][number], pairs["base"][number], ratios, asked.threads)
    write(asked.json, machine, **results)


if __name__ == "__main__":
    main()
