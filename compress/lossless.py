"""Lossless: every tensor kept bit for bit, for archives.

The bytes of numbers are much alike by place: each tensor's byte planes are entropy-coded apart, by
deflate's Huffman codes (``paring/codecs/planes.py``), the sign moved out of the exponent's way. What is in
the file twice, tensors or planes of them, is stored once. The mantissa of trained weights is noise, so
there is not much to be had: about .83 of fp32, .84 of fp16, .66 of bf16. That every bit comes back is
checked before the file takes its place.

Takes any checkpoint, not adapters only. Cost: one pass; the packed file is held in memory until it is
written. A budget is checked, not solved. When not to use it: several adapters of one run belong in a pool.
"""

from __future__ import annotations

from collections.abc import Mapping

from paring.coding import Family
from paring.dtypes import Stored
from paring.registry import method


@method(sees="weights", reference="deflate: RFC 1951; byte planes: the shuffle of HDF5 and Blosc")
def lossless(tensors: Mapping[str, Stored], threads: int = 1, device: str = "cpu") -> Family:
    """Lossless: all tensors bit for bit, entropy-coded by byte planes.

    Returns the one coding there is.
    """
    from paring.compress import _ranks

    return _ranks.Fixed(dict(tensors))
