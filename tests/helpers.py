"""What several test files share."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from paring import registry
from paring.adapters.view import Adapter
from paring.atomic import atomic_file, atomic_folder
from paring.checkpoint import write_safetensors
from paring.dtypes import STORAGE, Stored, from_bytes, itemsize, numel
from paring.factors import factor_names
from paring.merging.models import Chunk, Models, Target
from paring.merging.sources import Entry
from tests.make_golden import LORA

#: name -> (dtype, shape), for files of a few small tensors
layouts = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(
        lambda name: name != "__metadata__"
    ),
    st.builds(
        lambda kind, shape: (kind, tuple(shape)),
        st.sampled_from(["F64", "F32", "F16", "I64", "I32", "I16", "I8", "U8", "U16", "U32", "U64", "BOOL"]),
        st.lists(st.integers(0, 3), max_size=3),
    ),
    min_size=1,
    max_size=5,
)

#: dtype, shape and content of tensors for :func:`tensor_of`
specs = st.tuples(
    st.sampled_from(sorted(STORAGE)),
    st.lists(st.integers(0, 9), max_size=3).map(tuple),
    st.sampled_from(["noise", "zeros", "ramp"]),
)


def tensor_of(spec: tuple[str, tuple[int, ...], str], seed: int) -> Stored:
    dtype, shape, kind = spec
    size = numel(shape) * itemsize(dtype)
    raw = {
        "noise": np.random.default_rng(seed).integers(0, 256, size, np.uint8),
        "zeros": np.zeros(size, np.uint8),
        "ramp": np.arange(size).astype(np.uint8),
    }[kind]
    return from_bytes(dtype, shape, raw & 1 if dtype == "BOOL" else raw)


def alike(a: Stored, b: Stored) -> bool:
    """Whether two tensors are the same, bit for bit."""
    return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def fill(specs: dict[str, tuple[str, tuple[int, ...]]]) -> dict[str, Stored]:
    rng = np.random.default_rng(0)
    return {
        name: Stored(kind, np.asarray(rng.integers(0, 2, shape)).astype(STORAGE[kind]))
        for name, (kind, shape) in specs.items()
    }


def put_adapter(folder: Path, tensors: Mapping[str, Stored], config: Any = LORA) -> Path:
    """An adapter in ``folder``, by default with a configuration; returns the folder."""
    folder.mkdir(exist_ok=True)
    write_safetensors(folder / "adapter_model.safetensors", tensors, {"format": "pt"})
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def covered(adapter: Adapter) -> Adapter:
    """Every tensor is exactly one of: factor, vector, carried with a reason."""
    carried = [tensor.name for tensor in adapter.carried]
    counts = Counter([*factor_names(adapter), *carried])
    assert counts == Counter(list(adapter.checkpoint))
    assert all(tensor.why for tensor in adapter.carried)
    assert all(t.nbytes == adapter.checkpoint.tensors[t.name].nbytes for t in adapter.carried)
    return adapter


def why(adapter: Adapter) -> dict[str, str]:
    return {tensor.name: tensor.why for tensor in adapter.carried}


class Memory:
    """A source for merging rules: fp32 arrays by name."""

    path = Path("memory")

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self._arrays = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
        self.tensors = {name: Entry(array.shape, "F32") for name, array in self._arrays.items()}

    def read(self, name: str, start: int, stop: int, buffer: Any) -> Any:
        return self._arrays[name].reshape(-1)[start:stop]

    def close(self) -> None:
        pass


def merged(
    rule: str,
    arrays: Sequence[Mapping[str, Any]],
    weights: Sequence[float] | None = None,
    /,
    *,
    threads: int = 1,
    seeds: Sequence[str] = (),
    **options: Any,
) -> dict[str, Any]:
    """What a merging rule makes of models, or of deltas, that are arrays in memory."""
    method = registry.load("merge", rule)
    sources = [Memory(model) for model in arrays]
    each = tuple(weights or [1.0] * len(sources))
    targets = [
        Target(name, entry.shape, "F32", (None, *[name] * len(sources)), each)
        for name, entry in sources[0].tensors.items()
    ]
    updates = frozenset(range(1, len(sources) + 1))
    models = Models(targets, [None, *sources], True, updates, method.unit, threads, seeds)
    result = method.function(models, **method.parse(options))

    def write(chunks: Iterator[Chunk]) -> list[tuple[str, Any]]:
        out = []
        for chunk in chunks:
            target = chunk.place.target
            found = result.chunk(chunk.vectors, chunk.place)
            out.append((target.name, found.copy()))
        return out

    parts: dict[str, list[Any]] = {target.name: [np.zeros(0, np.float32)] for target in targets}
    for name, found in (pair for span in models.visit(write, models.spans()) for pair in span):
        parts[name].append(found)
    return {target.name: np.concatenate(parts[target.name]).reshape(target.shape) for target in targets}


def names(folder: Path) -> list[str]:
    return sorted(found.name for found in folder.iterdir())


def put(path: Path, content: bytes, overwrite: bool = False) -> None:
    with atomic_file(path, overwrite) as file:
        file.write(content)


def put_folder(path: Path, content: str, overwrite: bool = False) -> None:
    with atomic_folder(path, overwrite) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "x").write_text(content)
