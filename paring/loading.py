"""From files to tensors in memory: lazily by name, or straight into a PEFT model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from paring.checkpoint import Checkpoint
from paring.dtypes import Stored
from paring.errors import BadFileError, UnsupportedError
from paring.folders import CONFIG
from paring.hub.names import PathLike
from paring.hub.reading import located
from paring.packed import Packed, open_source
from paring.plan import thread_count

if TYPE_CHECKING:
    import torch


class _Tensors(Mapping[str, "torch.Tensor"]):
    """Lazy tensors of a checkpoint or packed file."""

    def __init__(self, path: PathLike, threads: int | None, adapter: str | None) -> None:
        self._source = open_source(located(chosen(path, adapter)), thread_count(threads))

    def __getitem__(self, name: str) -> torch.Tensor:
        return to_torch(self._source.read(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._source.tensors)

    def __len__(self) -> int:
        return len(self._source.tensors)


def load(
    path: PathLike, *, adapter: str | None = None, threads: int | None = None
) -> Mapping[str, torch.Tensor]:
    """The tensors of any checkpoint or packed file, by name; each is read or decoded when it is asked for.

    Of a pool those of one ``adapter``, as in ``POOL#NAME``. Every access gives a new CPU tensor in the
    dtype of the source. Raises BadFileError, UnsupportedError.
    """
    return _Tensors(path, threads, adapter)


def chosen(path: PathLike, adapter: str | None) -> str:
    """A path with the adapter of a pool that is meant."""
    return os.fspath(path) if adapter is None else f"{os.fspath(path)}#{adapter}"


def to_torch(stored: Stored) -> torch.Tensor:
    """A torch tensor of the same dtype, shape and bits, in memory of its own."""
    import torch

    kinds = {
        "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
        "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
        "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
        "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
        "BOOL": torch.bool, "C64": torch.complex64,
    }  # fmt: skip
    if not stored.numel:
        return torch.empty(stored.shape, dtype=kinds[stored.dtype])
    return torch.frombuffer(bytearray(stored.tobytes()), dtype=kinds[stored.dtype]).reshape(stored.shape)


def load_into(
    model: Any, packed: PathLike, adapter_name: str = "default", *, threads: int | None = None
) -> None:
    """Add the adapter in a packed file (or adapter folder) to ``model``, a ``peft.PeftModel``, under a name.

    The adapter is created from the configuration in the file and filled without writing anything to disk;
    it is not made the active one. Raises UnsupportedError when the file has no PEFT configuration or the
    model has an adapter of that name, and BadFileError when file and model do not fit; the model is then as
    it was. Needs ``peft``.
    """
    import peft

    source = open_source(located(packed), thread_count(threads))
    config = source.config(CONFIG)
    if config is None:
        raise UnsupportedError(f"{packed} holds no {CONFIG}: PEFT cannot tell what to build")
    if adapter_name in model.peft_config:
        raise UnsupportedError(
            f"the model has an adapter named {adapter_name!r} already: choose another name"
        )
    tensors = {name: to_torch(stored) for name, stored in _read_all(source)}
    kind: Any = peft.PeftConfig
    try:
        model.add_adapter(adapter_name, kind.from_peft_type(**config))
        result: Any = peft.set_peft_model_state_dict(model, tensors, adapter_name=adapter_name)
        if result.unexpected_keys:
            raise BadFileError(f"{packed}: this model has no place for {result.unexpected_keys[0]}")
        made = peft.get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
        if unfilled := sorted(made.keys() - tensors.keys()):
            raise BadFileError(f"{packed} does not hold {unfilled[0]}, which its configuration asks for")
        for name, module in model.named_modules():
            if name.endswith(f".{adapter_name}"):  # new modules train, whatever the model does
                module.train(model.training)
    except (ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        if adapter_name in model.peft_config:
            model.delete_adapter(adapter_name)
        if isinstance(error, BadFileError):
            raise
        raise BadFileError(
            f"{packed} does not fit this model: {str(error).strip().splitlines()[-1].strip()}"
        ) from error


def _read_all(source: Checkpoint) -> Iterable[tuple[str, Stored]]:
    """All tensors; those of a packed file payload by payload."""
    return source.read_all() if isinstance(source, Packed) else ((name, source.read(name)) for name in source)
