"""A decoder of packed files written from ``docs/format.md`` alone, in plain Python: the page is enough.

It shares no code with paring and checks little; :func:`decode` gives name -> (dtype, shape, bytes).
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from functools import cache

WIDTH = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U16": 2, "U8": 1, "BOOL": 1}
DENSITIES = [0] + [round(65536 / (1 + math.exp(-(j - 32) / 4))) for j in range(1, 64)]


def decode(raw: bytes, dictionary: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    assert header.pop("__metadata__")["version"] == "1"
    entry = {
        k: raw[8 + size + v["data_offsets"][0] : 8 + size + v["data_offsets"][1]] for k, v in header.items()
    }
    packed = entry["manifest"]
    assert zlib.crc32(packed[4:]) == int.from_bytes(packed[:4], "little")
    facts = json.loads(zlib.decompressobj(-15, zdict=dictionary).decompress(packed[4:]))
    out = {}
    first = 0
    for name, codec, version, crc, nbytes, count in facts["payloads"]:
        data = entry[name][:nbytes]
        assert zlib.crc32(data) == crc and version == 1
        places = range(first, first + count)
        specs = [facts["specs"][facts["tensors"][i]] for i in places]
        shapes = [tuple(spec[1]) for spec in specs]
        ones = [i in facts.get("ones", []) for i in places]
        kinds = [
            "F64" if one else spec[2] if len(spec) > 2 else spec[0]
            for one, spec in zip(ones, specs, strict=True)
        ]
        parts = {"ternary": _ternary, "bytes": _bytes}[codec](data, shapes, kinds)
        for i, spec, kind, one, part in zip(places, specs, kinds, ones, parts, strict=True):
            values = None
            if one:
                values = [x + 1.0 for x in _floats(part, kind)]
            elif kind != spec[0]:
                values = _floats(part, kind)
            out[facts["names"][i]] = (
                spec[0],
                tuple(spec[1]),
                part if values is None else _raw(values, spec[0]),
            )
        first += count
    return out


def _floats(raw: bytes, dtype: str) -> list[float]:
    if dtype == "BF16":
        raw = b"".join(b"\0\0" + raw[i : i + 2] for i in range(0, len(raw), 2))
    letter = {"F64": "d", "F32": "f", "F16": "e", "BF16": "f"}[dtype]
    return [x for (x,) in struct.iter_unpack("<" + letter, raw)]


def _raw(values: list[float], dtype: str) -> bytes:
    if dtype != "BF16":
        return struct.pack(f"<{len(values)}{ {'F64': 'd', 'F32': 'f', 'F16': 'e'}[dtype] }", *values)
    return b"".join(struct.pack("<f", _bf16(x))[2:] for x in values)


def _bf16(x: float) -> float:
    """x rounded once, to the 8 significant bits of bf16 (fewer below 2^-126)."""
    if not math.isfinite(x):
        return x
    step = 2.0 ** max(math.frexp(x)[1] - 8, -133)
    return math.copysign(round(x / step) * step, x)  # round() takes ties to even


def _bytes(data: bytes, shapes: list[tuple[int, ...]], kinds: list[str]) -> list[bytes]:
    at = 4 + int.from_bytes(data[:4], "little")
    table = zlib.decompress(data[4:at], -15)
    words = [w for (w,) in struct.iter_unpack("<Q", table)]
    out = []
    for shape, kind in zip(shapes, kinds, strict=True):
        planes = []
        for _ in range(WIDTH[kind]):
            word = words.pop(0)
            part = data[at : at + (word & (1 << 63) - 1)]
            at += len(part)
            planes.append(zlib.decompress(part) if word >> 63 else part)
        assert all(len(plane) == math.prod(shape) for plane in planes)
        out.append(bytes(byte for element in zip(*planes, strict=True) for byte in element))
    return out


def _ternary(data: bytes, shapes: list[tuple[int, ...]], kinds: list[str]) -> list[bytes]:
    size = int.from_bytes(data[:4], "little")
    side = zlib.decompress(data[4 : 4 + size], -15)
    layouts = side[: len(shapes)]
    segments: list[tuple[int, int]] = []  # (tensor, entries)
    for i, (shape, layout) in enumerate(zip(shapes, layouts, strict=True)):
        n = math.prod(shape)
        count, entries = [
            (1, n),
            (shape and shape[0], math.prod(shape[1:])),
            (math.prod(shape[1:]), shape and shape[0]),
        ][layout]
        segments += [(i, entries)] * count
    planes = side[len(shapes) : len(shapes) + 4 * len(segments)]
    k = len(segments)
    scales = [struct.unpack("<f", bytes(planes[s + p * k] for p in range(4)))[0] for s in range(k)]
    classes = list(side[len(shapes) + 4 * k :])
    ends = []
    total = 0
    for _, n in segments:
        total += -(-n // 8)
        ends.append(total)
    cuts = sorted({e for e in ends if e} | set(range(8192, total, 8192)))
    blocks = -(-total // 8192)
    index = struct.unpack_from(f"<{blocks}H", data, 4 + size)
    at = 4 + size + 2 * blocks
    trits: list[int] = []
    for b, word in enumerate(index):
        coded = data[at : at + (word & 0x3FFF)]
        at += len(coded)
        mine = [c for c in cuts if b * 8192 < c <= (b + 1) * 8192]
        pieces = list(zip(mine, [classes.pop(0) for _ in mine], strict=True))
        trits += _block(coded, word >> 14, b * 8192, pieces)
    assert at == len(data) and not classes
    values: list[list[float]] = [[] for _ in shapes]
    first = 0
    for (tensor, n), scale in zip(segments, scales, strict=True):
        width = {"F32": "f", "F64": "d", "F16": "e"}.get(kinds[tensor])
        rounded = (
            _floats(_raw([scale], kinds[tensor]), kinds[tensor])[0]
            if width or kinds[tensor] == "BF16"
            else 0.0
        )
        values[tensor] += [t * rounded if t else 0.0 for t in trits[first : first + n]]
        first += -(-n // 8) * 8
    for i, (shape, layout) in enumerate(zip(shapes, layouts, strict=True)):
        if layout == 2:
            rows, columns = shape[0], math.prod(shape[1:])
            values[i] = [values[i][c * rows + r] for r in range(rows) for c in range(columns)]
    return [_raw(part, kind) for part, kind in zip(values, kinds, strict=True)]


def _block(data: bytes, mode: int, begin: int, pieces: list[tuple[int, int]]) -> list[int]:
    symbols = pieces[-1][0] - begin
    if not any(j for _, j in pieces):
        assert not data
        return [0] * (8 * symbols)
    lanes = (0, 1, 4, 8)[mode]
    masks: list[int] = []
    states: list[int] = []
    back = len(data)
    if mode == 0:
        masks, at = list(data[:symbols]), symbols
    else:
        states, at = list(struct.unpack_from(f"<{lanes}I", data)), 4 * lanes
        for end, j in pieces:
            for i in range(len(masks), end - begin):
                masks.append(0)
                if not j:
                    continue
                f, start = _table(DENSITIES[j])
                slot = states[i % lanes] & 4095
                symbol = max(m for m in range(257) if f[m] and start[m] <= slot)
                x = f[symbol] * (states[i % lanes] >> 12) + slot - start[symbol]
                if x < 1 << 16:
                    x = x << 16 | int.from_bytes(data[at : at + 2], "little")
                    at += 2
                states[i % lanes] = x
                if symbol == 256:
                    back -= 1
                    symbol = data[back]
                masks[i] = symbol
    bits = [x - 65536 >> i & 1 for x in states for i in range(16)]
    bits += [byte >> i & 1 for byte in data[at:back] for i in range(8)]
    sign = iter(bits)
    return [(-1 if next(sign) else 1) if mask >> i & 1 else 0 for mask in masks for i in range(8)]


@cache
def _table(density: int) -> tuple[list[int], list[int]]:
    """Frequencies of 256 masks and the escape, and where each begins."""
    due = [density**p * (65536 - density) ** (8 - p) * 4096 for p in range(9)]
    unit = 65536**8
    groups = [[m for m in range(256) if m.bit_count() == p] for p in range(9) if 4 * due[p] >= unit]
    dues = [due[p] for p in range(9) if 4 * due[p] >= unit]
    if len(dues) < 9:
        groups.append([256])
        dues.append(sum(math.comb(8, p) * due[p] for p in range(9) if 4 * due[p] < unit))
    f = [0] * 257
    for group, d in zip(groups, dues, strict=True):
        for m in group:
            f[m] = max(1, d // unit)

    def next_up(g: list[int]) -> int:
        return min(g, key=lambda m: (f[m], m))

    def next_down(g: list[int]) -> int:
        return max(g, key=lambda m: (f[m], m))

    while sum(f) < 4096:
        best = 0
        for i in range(1, len(groups)):
            if dues[i] * (2 * f[next_up(groups[best])] + 1) > dues[best] * (2 * f[next_up(groups[i])] + 1):
                best = i
        f[next_up(groups[best])] += 1
    while sum(f) > 4096:
        able = [i for i in range(len(groups)) if f[next_down(groups[i])] > 1]
        best = able[0]
        for i in able[1:]:
            if dues[i] * (2 * f[next_down(groups[best])] - 1) < dues[best] * (
                2 * f[next_down(groups[i])] - 1
            ):
                best = i
        f[next_down(groups[best])] -= 1
    return f, [sum(f[:m]) for m in range(257)]
