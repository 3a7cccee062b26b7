"""A decoder of packed files written from ``docs/format.md`` alone, in plain Python: the page is enough.

It shares no code with paring and checks little; :func:`decode` gives name -> (dtype, shape, bytes).
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Sequence
from functools import cache

WIDTH = {
    "C64": 8,
    "I16": 2,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
}
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
        assert zlib.crc32(data) == crc
        places = range(first, first + count)
        specs = [facts["specs"][facts["tensors"][i]] for i in places]
        shapes = [tuple(spec[1]) for spec in specs]
        ones = [i in facts.get("ones", []) for i in places]
        kinds = [
            "F64" if one else spec[2] if len(spec) > 2 else spec[0]
            for one, spec in zip(ones, specs, strict=True)
        ]
        if (codec, version) in REFERRING:
            parts = REFERRING[codec, version](data, shapes, kinds, list(out.values()))
        else:
            parts = READERS[codec, version](data, shapes, kinds)
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


RATIOS = [0] + [round(2**24 * math.exp(-3 * 2 ** (-(j - 1) / 3))) for j in range(1, 49)]
H0 = {2: 2, 3: 5, 4: 9, 5: 18, 6: 33, 7: 78, 8: 166}
H1 = {2: 1, 3: 2, 4: 2, 5: 4, 6: 10, 7: 43, 8: 121}


def _trellis(data: bytes, shapes: list[tuple[int, ...]], kinds: list[str]) -> list[bytes]:
    size = int.from_bytes(data[:4], "little")
    side = zlib.decompress(data[4 : 4 + size], -15)
    b, layouts = side[0], side[1 : 1 + len(shapes)]
    segments = _segments(shapes, layouts)
    at = 1 + len(shapes)
    classes, planes = side[at : at + len(segments)], side[at + len(segments) :]
    coded = [i for i, j in enumerate(classes) if j]
    assert len(planes) == 4 * len(coded)
    scales = [0.0] * len(segments)
    for place, i in enumerate(coded):
        [scales[i]] = struct.unpack("<f", bytes(planes[place + p * len(coded)] for p in range(4)))
    blocks = -(-sum(segments[i][1] for i in coded) // 65536)
    at = 4 + size
    lengths = struct.unpack_from(f"<{blocks}I", data, at)
    states = data[at + 4 * blocks : at + 5 * blocks]
    at += 5 * blocks
    return _levelled(data, at, b, layouts, classes, scales, lengths, states, shapes, kinds)


def _segments(shapes: list[tuple[int, ...]], layouts: Sequence[int]) -> list[tuple[int, int]]:
    """The tensor of each segment, and its entries."""
    segments: list[tuple[int, int]] = []
    for i, (shape, layout) in enumerate(zip(shapes, layouts, strict=True)):
        if layout == 0:
            segments.append((i, math.prod(shape)))
        elif layout == 1:
            segments += [(i, math.prod(shape[1:]))] * shape[0]
        else:
            segments += [(i, shape[0])] * math.prod(shape[1:])
    return segments


def _levelled(
    data: bytes, at: int, b: int, layouts: Sequence[int], classes: Sequence[int], scales: list[float],
    lengths: Sequence[int], states: Sequence[int], shapes: list[tuple[int, ...]], kinds: list[str],
    least: int = 0,
) -> list[bytes]:  # fmt: skip
    """The tensors whose blocks are in ``data`` from ``at`` on."""
    segments = _segments(shapes, layouts)
    symbols = [(i, e) for i, j in enumerate(classes) if j for e in range(segments[i][1])]
    values = [[0.0] * n for _, n in segments]
    for number, length in enumerate(lengths):
        mine = symbols[number * 65536 : (number + 1) * 65536]
        found = _trellis_block(data[at : at + length], states[number], b, mine, classes)
        for (i, e), level in zip(mine, found, strict=True):
            values[i][e] = level * scales[i] if level else 0.0
        at += length
    assert len(data) == max(at, least, -(-sum(map(math.prod, shapes)) // 32768)) and not any(data[at:])
    tensors: list[list[float]] = [[] for _ in shapes]
    for (i, _), part in zip(segments, values, strict=True):
        tensors[i] += part
    for i, (shape, layout) in enumerate(zip(shapes, layouts, strict=True)):
        if layout == 2:
            rows, columns = shape[0], math.prod(shape[1:])
            tensors[i] = [tensors[i][c * rows + r] for r in range(rows) for c in range(columns)]
    return [_raw(part, kind) for part, kind in zip(tensors, kinds, strict=True)]


class _Slots:
    """The coder of a header of the trellis codec, version 2: the members that the page names."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.x = data, 4, int.from_bytes(data[:4], "little")
        self.counts: dict[tuple[object, ...], list[int]] = {}

    def take(self, n: int, a: int) -> None:
        self.x = n * (self.x // 4096) + self.x % 4096 - a
        if self.x < 65536:
            self.x = 65536 * self.x + int.from_bytes(self.data[self.at : self.at + 2], "little")
            self.at += 2

    def plain(self, w: int) -> int:
        out = 0
        while w > 0:
            c = min(w, 12)
            v = self.x % 4096 // 2 ** (12 - c)
            self.take(2 ** (12 - c), 2 ** (12 - c) * v)
            out, w = 2**c * out + v, w - c
        return out

    def bit(self, *model: object) -> int:
        c = self.counts.setdefault(model, [2, 2])
        p = 4096 * c[0] // (c[0] + c[1])
        found = int(self.x % 4096 >= p)
        if found:
            self.take(4096 - p, p)
        else:
            self.take(p, 0)
        c[found] += 5
        if c[0] + c[1] > 2048:
            c[:] = (c[0] + 1) // 2, (c[1] + 1) // 2
        return found

    def natural(self, *n: object) -> int:
        length = 0
        while length < 4 and self.bit(*n, "longer", length):
            length += 1
        if length == 4:
            t = 1
            for _ in range(5):
                t = 2 * t + self.bit(*n, "tree", t)
            length = 4 + t - 32
        if length == 0:
            return 0
        second = self.bit(*n, "second", length)
        return int(2**length + 2 ** (length - 1) * second + self.plain(length - 1) - 1)

    def number(self, *n: object) -> int:
        if self.bit(*n, "zero"):
            return 0
        negative = self.bit(*n, "negative")
        size = self.natural(*n) + 1
        return -size if negative else size


def _trellis2(data: bytes, shapes: list[tuple[int, ...]], kinds: list[str]) -> list[bytes]:
    slots = _Slots(data)
    b = slots.plain(3) + 2
    precision = [slots.plain(5) for _ in range(3)]
    layouts = []
    q = 0
    for _ in shapes:
        q = 1 + slots.bit("columns", q) if slots.bit("part", q) else 0
        layouts.append(q)
    segments = _segments(shapes, layouts)
    classes: list[int] = []
    words: list[int] = []
    by_class: dict[tuple[int, int], dict[int, int]] = {}
    before: list[int] = []
    entries_before, last = 0, 127 << 23
    for i, y in enumerate(layouts):
        entries = [n for tensor, n in segments if tensor == i]
        mine: list[int] = []
        for j, n in enumerate(entries):
            e = 0 if n < entries_before else 1 if n == entries_before else 2
            left = mine[j - 1] if j else 0
            up = before[j] if j < len(before) else 0
            corner = before[j - 1] if 0 < j <= len(before) else 0
            near = left or up or 10
            if slots.bit("none", y, (1 if left == 0 else 2) if j else 0, int(up == 0)):
                cls = 0
            elif j == 0:
                cls = near + slots.number("first", y, e)
            else:
                expected = left + up - corner if left and up and corner else up or near
                cls = expected if slots.bit("expected", y, e) else near + slots.number("class", y)
            alike = by_class.setdefault((y, n.bit_length()), {})
            if cls:
                if not any(mine) or not slots.bit("same", y):
                    d = 23 - precision[y]
                    guess = alike[min(alike, key=lambda c: (abs(c - cls), c))] if alike else last
                    size = 2**d * (guess % 2**31 // 2**d + slots.number("scale", y))
                    last = size + 2**31 * slots.bit("sign", y)
                alike[cls] = last
            mine.append(cls)
            words.append(last if cls else 0)
        classes += mine
        before = mine
        entries_before = (
            math.prod(shapes[i]) if y == 0 else math.prod(shapes[i][1:]) if y == 1 else shapes[i][0]
        )
    scales = [x for (x,) in struct.iter_unpack("<f", struct.pack(f"<{len(words)}I", *words))]
    blocks = -(-sum(n for j, (_, n) in zip(classes, segments, strict=True) if j) // 65536)
    lengths, states = [], []
    for block in range(blocks):
        lengths.append(2 * slots.natural("length"))
        states.append(slots.plain(b) if block else 0)
    assert slots.x == 65536
    least = -(-len(segments) // 64)
    return _levelled(data, slots.at, b, layouts, classes, scales, lengths, states, shapes, kinds, least)


def _trellis_block(
    data: bytes, state: int, b: int, symbols: list[tuple[int, int]], classes: Sequence[int]
) -> list[int]:
    x, *words = struct.unpack(f"<I{(len(data) - 4) // 2}H", data)
    words.reverse()
    out = []

    def take(n: int, a: int) -> None:
        nonlocal x
        x = n * (x // 4096) + x % 4096 - a
        if x < 65536:
            x = 65536 * x + words.pop()

    for segment, entry in symbols:
        if entry == 0:
            state = 0
        q, j = state % 2, classes[segment]
        f, start, slots = _levels(j)[q]
        m = slots[x % 4096]
        take(f[m], start[m])
        w = max(0, (j - 22) // 6)
        if m == 32:
            k = 0
            for _ in range(2):
                v = x % 4096 // 16
                take(16, 16 * v)
                k = 256 * k + v
            k -= 65536 * (k >= 32768)
        else:
            k = m - 16
            if w:
                v = x % 4096 // 2 ** (12 - w)
                take(2 ** (12 - w), 2 ** (12 - w) * v)
                k = 2**w * k + v
        out.append(2 * k - q * ((k > 0) - (k < 0)))
        state = state // 2 ^ q * H0[b] ^ k % 2 * H1[b]
    assert x == 65536 and not words
    return out


@cache
def _levels(j: int) -> list[tuple[list[int], list[int], list[int]]]:
    """For each quantiser: frequencies of 32 y and the escape, where each begins, the owner of each slot."""
    weights, g = [2**48], RATIOS[j] * 2**24
    h = g * g // 2**48
    while weights[-1] >= 256:
        weights.append(weights[-1] * g // 2**48)
        g = g * h // 2**48
    out = []
    for q in (0, 1):
        due = [0] * 33
        due[16] = 2 ** (45 if q else 48)
        for level in range(1, len(weights)):
            if level % 2 == q:
                k = (level + q) // 2
                for symbol in (k, -k):
                    y = symbol // 2 ** max(0, (j - 22) // 6)
                    due[y + 16 if -16 <= y <= 15 else 32] += weights[level]
        whole = sum(due)
        for m in range(32):
            if 8192 * due[m] < whole:
                due[32] += due[m]
                due[m] = 0
        f = [max(1, 4096 * d // whole) if d or m == 32 else 0 for m, d in enumerate(due)]
        f[f.index(max(f))] += 4096 - sum(f)
        out.append((f, [sum(f[:m]) for m in range(33)], [m for m in range(33) for _ in range(f[m])]))
    return out


def _bytes2(data: bytes, shapes: list[tuple[int, ...]], kinds: list[str]) -> list[bytes]:
    at = 4 + int.from_bytes(data[:4], "little")
    planes: list[bytes] = []
    words = iter(w for (w,) in struct.iter_unpack("<Q", zlib.decompress(data[4:at], -15)))
    out = []
    for shape, kind in zip(shapes, kinds, strict=True):
        own = []
        for _ in range(WIDTH[kind]):
            word = next(words)
            low = word & (1 << 62) - 1
            if word >> 62 & 1:
                plane = planes[low]
            else:
                part = data[at : at + low]
                at += low
                plane = zlib.decompress(part, -15) if word >> 63 else part
            assert len(plane) == math.prod(shape)
            planes.append(plane)
            own.append(plane)
        elements = [bytearray(element) for element in zip(*own, strict=True)]
        if kind in ("F64", "F32", "F16", "BF16"):
            for element in elements:
                half = int.from_bytes(element[-2:], "little")
                element[-2:] = (half >> 1 | (half & 1) << 15).to_bytes(2, "little")
        out.append(b"".join(map(bytes, elements)))
    return out


Known = list[tuple[str, tuple[int, ...], bytes]]


def _cut(raw: bytes, shape: tuple[int, ...], width: int, layout: int) -> list[bytes]:
    """A tensor's segments."""
    elements = [raw[i : i + width] for i in range(0, len(raw), width)]
    if layout == 0:
        return [raw]
    across = math.prod(shape[1:])
    if layout == 1:
        return [b"".join(elements[r * across : (r + 1) * across]) for r in range(shape[0])]
    return [b"".join(elements[c::across]) for c in range(across)]


def _joined(segments: list[bytes], width: int, layout: int) -> bytes:
    if layout < 2:
        return b"".join(segments)
    return b"".join(segment[i : i + width] for i in range(0, len(segments[0]), width) for segment in segments)


def _numbers(raw: bytes, count: int, code: str) -> tuple[int | float, ...]:
    """``count`` numbers that are stored lowest bytes first."""
    width = struct.calcsize(code)
    return struct.unpack(
        f"<{count}{code}", bytes(raw[p * count + i] for i in range(count) for p in range(width))
    )


def _stretched(data: bytes, shapes: list[tuple[int, ...]]) -> None:
    assert len(data) >= -(-sum(map(math.prod, shapes)) // 32768)


def _shards(data: bytes, shapes: list[tuple[int, ...]], kinds: list[str], known: Known) -> list[bytes]:
    _stretched(data, shapes)
    side = zlib.decompressobj(-15).decompress(data)
    at = 4
    pools = []
    for _ in range(int.from_bytes(side[:4], "little")):
        d, count = struct.unpack_from("<II", side, at)
        pools.append((d, [struct.unpack_from("<IB", side, at + 8 + 5 * i) for i in range(count)]))
        at += 8 + 5 * count
    heads = [struct.unpack_from("<IBB", side, at + 6 * i) for i in range(len(shapes))]
    at += 6 * len(shapes)
    out = []
    for shape, kind, (place, layout, flags) in zip(shapes, kinds, heads, strict=True):
        d, tensors = pools[place]
        size = d * WIDTH[kind]
        pool = []
        for number, cut in tensors:
            dtype, other, raw = known[number]
            assert dtype == kind
            for segment in _cut(raw, other, WIDTH[kind], cut):
                pool += [segment[i : i + size] for i in range(0, len(segment), size)]
        n, w = math.prod(shape) // d, 1 << (flags & 3)
        index = _numbers(side[at : at + w * n], n, "BHI"[flags & 3])
        at += w * n
        shards = [pool[int(i)] for i in index]
        if flags & 4:
            moves = _numbers(side[at : at + 2 * n], n, "h")
            at += 2 * n
            shards = [_moved(shard, kind, int(move)) for shard, move in zip(shards, moves, strict=True)]
        whole = b"".join(shards)
        step = len(_cut(bytes(math.prod(shape) * WIDTH[kind]), shape, WIDTH[kind], layout)[0])
        out.append(_joined([whole[i : i + step] for i in range(0, len(whole), step)], WIDTH[kind], layout))
    return out


def _moved(shard: bytes, kind: str, move: int) -> bytes:
    if move >> 1:
        shard = _raw([math.ldexp(x, move >> 1) for x in _floats(shard, kind)], kind)
    if move & 1:
        top = WIDTH[kind] - 1
        shard = bytes(b ^ (0x80 if i % WIDTH[kind] == top else 0) for i, b in enumerate(shard))
    return shard


def _residual(data: bytes, shapes: list[tuple[int, ...]], kinds: list[str], known: Known) -> list[bytes]:
    _stretched(data, shapes)
    h, e, levels_size, bytes_version, trellis_version = struct.unpack_from("<IIIBB", data)
    side = zlib.decompress(data[14 : 14 + h], -15)
    heads = [struct.unpack_from("<IBBB", side, 7 * i) for i in range(len(shapes))]
    at = 7 * len(shapes)
    exact_of = [i for i, head in enumerate(heads) if head[3] == 1]
    levels_of = [i for i, head in enumerate(heads) if head[3] == 2]
    left: dict[int, bytes] = {}
    if exact_of:
        z = [f"U{8 * WIDTH[kinds[i]]}" for i in exact_of]
        found = READERS["bytes", bytes_version](data[14 + h : 14 + h + e], [shapes[i] for i in exact_of], z)
        left |= dict(zip(exact_of, found, strict=True))
    if levels_of:
        part = data[14 + h + e : 14 + h + e + levels_size]
        found = READERS["trellis", trellis_version](
            part, [shapes[i] for i in levels_of], ["F64"] * len(levels_of)
        )
        left |= dict(zip(levels_of, found, strict=True))
    out = []
    for i, (shape, kind, (number, layout, mix, rest)) in enumerate(zip(shapes, kinds, heads, strict=True)):
        dtype, other, raw = known[number]
        rows = [_floats(segment, dtype) for segment in _cut(raw, other, WIDTH[dtype], layout)]
        if mix == 1:
            [by] = _numbers(side[at : at + 8], 1, "d")
            at += 8
            rows = [[x * by for x in row] for row in rows]
        elif mix == 2:
            across = int.from_bytes(side[at : at + 4], "little")
            assert across == len(rows)
            count = len(_cut(bytes(math.prod(shape)), shape, 1, layout))
            matrix = _numbers(side[at + 4 : at + 4 + 8 * count * across], count * across, "d")
            at += 4 + 8 * count * across
            mixed = []
            for r in range(count):
                row = [0.0] * len(rows[0])
                for k in range(across):
                    row = [x + matrix[r * across + k] * y for x, y in zip(row, rows[k], strict=True)]
                mixed.append(row)
            rows = mixed
        wide = _joined([struct.pack(f"<{len(row)}d", *row) for row in rows], 8, layout)
        values = list(struct.unpack(f"<{len(wide) // 8}d", wide))
        if rest == 2:
            values = [x + y for x, y in zip(values, _floats(left[i], "F64"), strict=True)]
        part = _raw(values, kind)
        if rest == 1:
            part = _stepped(part, left[i], WIDTH[kind])
        out.append(part)
    return out


def _stepped(near: bytes, steps: bytes, width: int) -> bytes:
    """Ordered integers, moved on."""
    top, mask = 1 << (8 * width - 1), (1 << 8 * width) - 1
    out = []
    for i in range(0, len(near), width):
        x, z = (int.from_bytes(raw[i : i + width], "little") for raw in (near, steps))
        ordered = ~x & mask if x & top else x | top
        ordered = (ordered + (z // 2 if z % 2 == 0 else -(z + 1) // 2)) & mask
        x = ordered ^ top if ordered & top else ~ordered & mask
        out.append(x.to_bytes(width, "little"))
    return b"".join(out)


def _sparse(data: bytes, shapes: list[tuple[int, ...]], kinds: list[str]) -> list[bytes]:
    h, e, version = struct.unpack("<IQB", data[:13])
    heads = list(struct.iter_unpack("<BQ", zlib.decompress(data[13 : 13 + h], -15)))
    assert len(data) == max(13 + h + e, -(-sum(map(math.prod, shapes)) // 32768))
    inner_shapes: list[tuple[int, ...]] = []
    inner_kinds: list[str] = []
    for (form, count), shape, kind in zip(heads, shapes, kinds, strict=True):
        inner_shapes += [(-(-math.prod(shape) // (12 if form else 8)),), (count,)]
        inner_kinds += ["U8", kind]
    parts = READERS["bytes", version](data[13 + h : 13 + h + e], inner_shapes, inner_kinds)
    pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    out = []
    for i, ((form, _), shape, kind) in enumerate(zip(heads, shapes, kinds, strict=True)):
        places, values, width, n = parts[2 * i], parts[2 * i + 1], WIDTH[kind], math.prod(shape)
        if form:
            digits = [d for byte in places for d in (byte % 6, byte // 6 % 6, byte // 36)]
            chosen = [j in pairs[d] for d in digits for j in range(4)][:n]
        else:
            chosen = [bool(byte >> j & 1) for byte in places for j in range(8)][:n]
        cut = iter([values[at : at + width] for at in range(0, len(values), width)])
        out.append(b"".join(next(cut) if there else bytes(width) for there in chosen))
    return out


REFERRING = {("shards", 1): _shards, ("residual", 1): _residual}
READERS = {("ternary", 1): _ternary, ("trellis", 1): _trellis, ("trellis", 2): _trellis2,
           ("bytes", 1): _bytes, ("bytes", 2): _bytes2, ("sparse", 1): _sparse}  # fmt: skip
