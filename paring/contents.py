"""What the manifest of a packed file says of its tensors and payloads, read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paring.checkpoint import Checkpoint, TensorInfo
from paring.dtypes import FLOATS, STORAGE, itemsize, numel
from paring.packing import MANIFEST, Spec, padded
from paring.safetensors_io import MAX_AXES

if TYPE_CHECKING:
    from paring.packed import Packed

_MOST_ELEMENTS = 1 << 60  # of a tensor, empty axes left out: sizes in bytes then fit 63 bits


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """One payload: its container entry, codec, checksum, bytes, and the tensors in it."""

    entry: str
    codec: str
    version: int
    crc: int
    nbytes: int
    specs: tuple[Spec, ...]
    first: int  #: the number in the file of the first tensor


def read_contents(
    container: Checkpoint, facts: Mapping[str, Any]
) -> tuple[dict[str, TensorInfo], tuple[Held, ...]]:
    """The tensors and payloads that a manifest names, checked against each other and the container.

    Raises KeyError, TypeError, ValueError, IndexError or AttributeError for a manifest that makes no sense.
    """
    ones = {_count(index) for index in facts.get("ones", ())}
    specs = [
        _spec(name, facts["specs"][_count(index)], i in ones)
        for i, (name, index) in enumerate(zip(facts["names"], facts["tensors"], strict=True))
    ]
    tensors = {
        spec.name: TensorInfo(
            spec.name, spec.dtype, spec.shape, container.files[0], 0, numel(spec.shape) * itemsize(spec.dtype)
        )
        for spec in specs
    }
    payloads: list[Held] = []
    first = 0
    for entry, codec, version, crc, nbytes, count in facts["payloads"]:
        info = container.tensors.get(entry)
        if info is None or entry == MANIFEST or not isinstance(codec, str):
            raise ValueError(f"payload {entry!r} is missing")
        if info.dtype != "U8" or info.nbytes != padded(_count(nbytes)):
            raise ValueError(f"payload {entry!r} has another size or dtype than its entry")
        held = tuple(specs[first : first + _count(count)])
        payloads.append(Held(entry, codec, _count(version), _count(crc), nbytes, held, first))
        first += count
    if first != len(specs) or len(tensors) != len(specs) or max(ones, default=-1) >= len(specs):
        raise ValueError("names, tensors and payloads do not agree")
    if len({held.entry for held in payloads}) < len(payloads):
        raise ValueError("two payloads share an entry")
    return tensors, tuple(payloads)


def told(opened: Packed, facts: Mapping[str, Any], source: int, elements: int) -> dict[str, Any]:
    """What an inspection tells of a packed file: ``facts`` as they are, its size against the ``source`` bytes
    and ``elements`` that it was made of, and its payloads.
    """
    return {
        "version": opened.container.metadata["version"],
        **facts,
        "ratio": source / opened.nbytes if source else None,
        "ratio_fp16": 2 * elements / opened.nbytes,
        "bits_per_param": 8 * opened.nbytes / elements if elements else None,
        "digest": opened.digest_recorded,
        "manifest_bytes": opened.container.tensors[MANIFEST].nbytes,
        "payloads": [
            {
                "entry": held.entry,
                "codec": f"{held.codec}/{held.version}",
                "bytes": held.nbytes,
                "tensors": len(held.specs),
            }
            for held in opened.payloads
        ],
    }


def _spec(name: object, spec: list[Any], ones: bool) -> Spec:
    dtype, shape, stored_as = spec[0], tuple(map(_count, spec[1])), spec[2] if len(spec) > 2 else None
    floats = dtype in FLOATS and stored_as in (None, *FLOATS)
    if not isinstance(name, str) or not (floats or (dtype in STORAGE and stored_as is None and not ones)):
        raise ValueError(f"tensor {name!r} has no sound dtype")
    if len(shape) > MAX_AXES or numel([axis for axis in shape if axis]) >= _MOST_ELEMENTS:
        raise ValueError(f"tensor {name!r} has no sound shape")
    name.encode()  # a lone surrogate, which no file can hold, is a ValueError
    return Spec(name, dtype, shape, stored_as, ones)


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a count")
    return value
