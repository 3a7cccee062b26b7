"""Headers of payloads: raw deflate streams, read no further than the container's shapes call for."""

from __future__ import annotations

import zlib
from collections.abc import Callable

from paring.errors import BadFileError

#: bytes that one byte of a deflate stream can stand for
MOST = 1032


def reader(deflated: bytes, what: str) -> Callable[[int], bytes]:
    """Exactly the next so many bytes of a raw deflate stream at each call. ``what`` names it in errors."""
    stream, rest = zlib.decompressobj(-15), deflated

    def take(size: int) -> bytes:
        nonlocal rest
        try:
            out = stream.decompress(rest, size) if size else b""
        except zlib.error as error:
            raise BadFileError(f"{what} has a damaged header") from error
        rest = stream.unconsumed_tail if size else rest
        if len(out) != size:
            raise BadFileError(f"{what} has too short a header")
        return out

    return take
