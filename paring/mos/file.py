"""The compact file of a MoS adapter: pools, and a seed or indices. Read, it is an ordinary LoRA.

A standard ``.safetensors`` file. For each projection type ``T`` (L layers, l shards, e: see :mod:`.routing`)

    T.pool_A   (e L l, in / l)    shards of A, one a row; F64, F32, F16 or BF16
    T.pool_B   (e L l, out / l)   shards of B
    T.index_A  (L, r l)           U8, U16 or U32, the narrowest that fits; only in a file without seed
    T.index_B  (L, r l)

and metadata ``format`` "paring-mos", ``version`` "1", ``mos``, a JSON object of ``r``, ``e``, ``private``,
``shards``, ``alpha``, ``seed`` (or null), ``base`` (a name, or null), ``types``: a list of ``name``, ``out``,
``in``, ``modules`` (names, layer by layer), and ``crc``: the CRC-32 of each tensor's bytes by name; and
``crc``, that of the text ``mos`` in UTF-8, for a seed with one wrong digit expands to nonsense.

:class:`MosFile` shows the factors that this stands for under PEFT's names, and a configuration as PEFT's, so
whatever reads adapters reads MoS. A seed's indices are computed for one module at a time, when it is read.
"""

from __future__ import annotations

import json
import threading
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from paring.checkpoint import Checkpoint, TensorInfo, write_checked
from paring.dtypes import FLOATS, STORAGE, Array, Stored, first_nonfinite, itemsize
from paring.errors import BadFileError, BadValueError, OptionError, UnsupportedError
from paring.folders import CONFIG
from paring.mos import FORMAT
from paring.mos.pools import Layout, Projection, expand
from paring.mos.routing import FACTORS, Factor, Sizes, index_dtype
from paring.safetensors_io import raw_bytes
from paring.untrusted import parse_json

VERSION = "1"
_KEPT = 14  # pools: two of each of the seven types of a LLaMA, which are all of them

#: (projection type, factor) -> its pool, (shards, width)
Pools = Mapping[tuple[str, Factor], Stored]


@dataclass(eq=False)
class MosFile(Checkpoint):
    """An open compact file. ``tensors`` are the factors of every module under PEFT's names, A ``(r, in)`` and
    B ``(out, r)``, in their pool's dtype; ``nbytes`` is the file's own size.
    """

    container: Checkpoint = field(kw_only=True)
    layout: Layout = field(kw_only=True)
    base: str | None = field(kw_only=True)
    crcs: Mapping[str, int] = field(kw_only=True)

    def __post_init__(self) -> None:
        self._places = _places(self.layout)
        self._lock = threading.Lock()
        self._pool_kept = lru_cache(maxsize=_KEPT)(self.pool)

    def pool(self, projection: str, factor: Factor) -> Stored:
        """A pool as stored, ``(shards, width)``. Raises BadFileError when its checksum differs."""
        return _read_checked(self.container, f"{projection}.pool_{factor}", self.crcs)

    def read(self, name: str) -> Stored:
        """The factor ``name``, made of its shards; read-only. Raises KeyError, or BadFileError for damage.

        The last pools are kept: a module's factors are put together without reading anything again.
        """
        projection, layer, factor = self._places[name]
        with self._lock:  # so that threads wait for one reading rather than hold several
            pool = self._pool_kept(projection.name, factor)
        index = self.layout.route(projection, layer, factor)
        data = expand(pool.data, index, self.layout.sizes.shards)
        if factor == "B":
            data = np.ascontiguousarray(data.T)
        data.flags.writeable = False
        return Stored(pool.dtype, data)

    def config(self, filename: str) -> dict[str, Any] | None:
        """PEFT's configuration of the same adapter; None for any other file."""
        return peft_config(self.layout, self.base) if filename == CONFIG else None

    @property
    def inputs(self) -> tuple[Path, ...]:
        """The compact file itself; a configuration that lies beside it is not its own."""
        return self.files

    def close(self) -> None:
        """Let go of the pools that were kept for the next read."""
        super().close()
        self._pool_kept.cache_clear()


def write_mos(
    path: str | Path, layout: Layout, pools: Pools, *, base: str | None = None, overwrite: bool = False
) -> None:
    """Write the compact file ``path``, whole or not at all, and read it again.

    Raises BadValueError for pools of another shape or dtype than ``layout`` needs, or that hold NaN or
    infinities; OutputError.
    """
    tensors: dict[str, Stored] = {}
    for projection in layout.projections:
        for factor in FACTORS:
            name, pool = f"{projection.name}.pool_{factor}", pools[projection.name, factor]
            if pool.shape != layout.shape(projection, factor) or pool.dtype not in FLOATS:
                raise BadValueError(
                    f"{name} is {pool.dtype} {list(pool.shape)}, but must be floating point, "
                    f"{list(layout.shape(projection, factor))}"
                )
            if (bad := first_nonfinite(pool)) is not None:
                raise BadValueError(f"{name} holds NaN or infinity (element {bad})")
            tensors[name] = pool
            if layout.indices is not None:
                kind = index_dtype(pool.shape[0])
                given = layout.indices[projection.name, factor]
                tensors[f"{projection.name}.index_{factor}"] = Stored(
                    kind, np.ascontiguousarray(given, STORAGE[kind])
                )
    facts = {
        "r": layout.sizes.r, "e": layout.sizes.e, "private": layout.sizes.private,
        "shards": layout.sizes.shards, "alpha": layout.alpha, "seed": layout.seed, "base": base,
        "types": [
            {"name": each.name, "out": each.n_out, "in": each.n_in, "modules": list(each.modules)}
            for each in layout.projections
        ],
        "crc": {name: zlib.crc32(raw_bytes(tensor)) for name, tensor in sorted(tensors.items())},
    }  # fmt: skip
    told = json.dumps(facts, ensure_ascii=False, separators=(",", ":"))
    write_checked(
        path, tensors,
        {"format": FORMAT, "version": VERSION, "mos": told, "crc": str(zlib.crc32(told.encode()))},
        overwrite=overwrite,
    )  # fmt: skip


def is_mos(checkpoint: Checkpoint) -> bool:
    """Whether this is the container of a compact MoS file."""
    return checkpoint.metadata.get("format") == FORMAT


def open_mos(container: Checkpoint) -> MosFile:
    """The adapter in ``container``: metadata, sizes and indices are checked, no pool is read.

    Raises BadFileError for what is missing or contradicts itself, UnsupportedError for a newer version.
    """
    where = str(container.path)
    if not is_mos(container):
        raise BadFileError(f"{where} is not a compact MoS file: its metadata has no format {FORMAT!r}")
    version = container.metadata.get("version")
    if version != VERSION:
        raise UnsupportedError(
            f"{where} is a MoS file of format version {version}; this paring reads {VERSION}: upgrade it"
        )
    told = container.metadata.get("mos", "").encode()
    if container.metadata.get("crc") != str(zlib.crc32(told)):
        raise BadFileError(f"{where}: the metadata is damaged (its checksum differs): get the file again")
    facts = parse_json(told, f"{where}: the metadata 'mos'")
    try:
        sizes = Sizes(facts["r"], facts["e"], facts["private"], facts["shards"])
        types = tuple(_projection(each) for each in facts["types"])
        crcs, base, alpha, seed = facts["crc"], facts["base"], facts["alpha"], facts["seed"]
        if not isinstance(base, str | None) or not isinstance(crcs, dict):
            raise TypeError("base must be text or null, crc an object")
        # shapes first: they bound every size above by that of the file, so nothing larger is ever made
        _check_tensors(container, sizes, types, indexed=seed is None)
        indices = _read_indices(container, types, crcs) if seed is None else None
        layout = Layout(sizes, alpha, types, seed, indices)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, BadFileError):
            raise
        what = str(error) if isinstance(error, OptionError) else f"{type(error).__name__}: {error}"
        raise BadFileError(f"{where}: the metadata makes no sense ({what})") from None
    tensors = {name: _virtual(container, layout, name, *place) for name, place in _places(layout).items()}
    return MosFile(
        container.path, container.files, tensors, {"format": "pt"}, container.nbytes, index=container.index,
        container=container, layout=layout, base=base, crcs=crcs,
    )  # fmt: skip


def peft_config(layout: Layout, base: str | None) -> dict[str, Any]:
    """``adapter_config.json`` of the LoRA that a layout expands to: rank r, the same alpha."""
    return {
        "peft_type": "LORA", "base_model_name_or_path": base, "task_type": None, "inference_mode": True,
        "r": layout.sizes.r, "lora_alpha": layout.alpha, "lora_dropout": 0.0, "bias": "none",
        "fan_in_fan_out": False, "init_lora_weights": True, "use_rslora": False, "use_dora": False,
        "target_modules": sorted(module for each in layout.projections for module in each.modules),
    }  # fmt: skip


def _places(layout: Layout) -> dict[str, tuple[Projection, int, Factor]]:
    """PEFT's name of a factor -> whose it is."""
    return {
        f"base_model.model.{module}.lora_{factor}.weight": (projection, layer, factor)
        for projection in layout.projections
        for layer, module in enumerate(projection.modules)
        for factor in FACTORS
    }


def _virtual(
    container: Checkpoint, layout: Layout, name: str, projection: Projection, layer: int, factor: Factor
) -> TensorInfo:
    """What :meth:`MosFile.read` makes; it lies nowhere, so its offsets only tell its size."""
    dtype = container.tensors[f"{projection.name}.pool_{factor}"].dtype
    r, width = layout.sizes.r, projection.width(factor)
    shape = (r, width) if factor == "A" else (width, r)
    return TensorInfo(name, dtype, shape, container.files[0], 0, r * width * itemsize(dtype))


def _projection(facts: Any) -> Projection:
    name, modules, n_out, n_in = facts["name"], facts["modules"], facts["out"], facts["in"]
    texts = [name, *modules] if isinstance(modules, list) and modules else [None]
    if not all(isinstance(text, str) and text for text in texts):
        raise TypeError("a type and its modules need names")
    if not all(type(axis) is int and axis > 0 for axis in (n_out, n_in)):
        raise TypeError(f"{name}: out and in must be whole numbers, 1 or more")
    return Projection(name, tuple(modules), n_out, n_in)


def _check_tensors(
    container: Checkpoint, sizes: Sizes, types: tuple[Projection, ...], *, indexed: bool
) -> None:
    """The container holds the tensors that the metadata asks for, in the right shapes, and no others."""
    expected = dict(_expected(sizes, types, indexed))
    if extra := sorted(container.tensors.keys() - expected.keys()):
        raise ValueError(f"tensor {extra[0]!r} belongs to none of its types")
    for name, (shape, dtypes) in expected.items():
        info = container.tensors.get(name)
        if info is None:
            raise ValueError(f"tensor {name!r} is missing")
        if info.shape != shape or info.dtype not in dtypes:
            wanted = f"{'/'.join(dtypes)} {list(shape)}"
            raise ValueError(f"tensor {name!r} is {info.dtype} {list(info.shape)}, expected {wanted}")


def _expected(
    sizes: Sizes, types: tuple[Projection, ...], indexed: bool
) -> Iterator[tuple[str, tuple[tuple[int, int], tuple[str, ...]]]]:
    for each in types:
        pool = sizes.pool(each.layers)
        for factor in FACTORS:
            yield f"{each.name}.pool_{factor}", ((pool, each.width(factor) // sizes.shards), FLOATS)
            if indexed:
                yield f"{each.name}.index_{factor}", ((each.layers, sizes.length), (index_dtype(pool),))


def _read_indices(
    container: Checkpoint, types: tuple[Projection, ...], crcs: Mapping[str, int]
) -> dict[tuple[str, Factor], Array]:
    return {
        (each.name, factor): _read_checked(container, f"{each.name}.index_{factor}", crcs).data
        for each in types
        for factor in FACTORS
    }


def _read_checked(container: Checkpoint, name: str, crcs: Mapping[str, int]) -> Stored:
    tensor = container.read(name)
    if zlib.crc32(raw_bytes(tensor)) != crcs.get(name):
        raise BadFileError(
            f"{container.path}: tensor {name!r} is damaged (its checksum differs): get the file again"
        )
    return tensor
