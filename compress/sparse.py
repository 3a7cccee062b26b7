"""Sparse: a pruned checkpoint without its zeros, every bit of it kept.

Of each tensor the values that are not zero are stored with their places: a bit for each entry, or, where no
four consecutive entries have more than two values, which two of four they are (2:4); a tensor without
enough zeros is stored as its bytes. What is smallest is taken, by the entropy of the places. Values and
places then go through the entropy coding of byte planes that ``lossless`` has. At half zeros bf16 comes to
some .36 of its size, 2:4 to .35 (docs/sparse.md). -0.0 is a value, and comes back; so does every other bit.

Takes any checkpoint, one tensor at a time; configuration and tokenizer beside a model go along. That every
bit comes back is checked before the file takes its place. Cost: one pass. A budget is checked, not solved.
When not to use it: weights that are not sparse (``lossless`` is as small).
"""

from __future__ import annotations

from paring.codecs.sparse import FORMS, Sparse, coded_bytes, occupied
from paring.dtypes import Stored, itemsize
from paring.registry import method


@method(sees="tensors", reference="deflate: RFC 1951; places of two in four: six digits, three to a byte")
def sparse(tensor: Stored) -> Sparse | Stored:
    """Sparse: the values that are not zero and their places, bit for bit.

    Returns the tensor in the smallest of its forms, itself where none is smaller.
    """
    width, mask = itemsize(tensor.dtype), occupied(tensor)
    best, least = None, float(tensor.nbytes)
    for form in FORMS:
        found = coded_bytes(mask, tensor.numel, form)
        if found is not None and found[0] + width * found[1] < least:
            best, least = form, found[0] + width * found[1]
    return tensor if best is None else Sparse(tensor, best)
