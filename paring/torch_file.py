"""Checkpoints that ``torch.save`` wrote (.bin, .pt, .pth, .ckpt): opened with ``weights_only=True``, or
refused.

torch is imported here, when such a file is opened, and nowhere else in reading.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from paring.dtypes import STORAGE, Stored, itemsize
from paring.errors import BadFileError, ParingError, UnsupportedError
from paring.safetensors_io import TensorInfo, file_state
from paring.untrusted import disguise

if TYPE_CHECKING:
    import torch

SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
#: keys under which trainers nest the tensors one level down
_NESTS = ("state_dict", "model_state_dict", "model", "module", "params")
_CODES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8",
    "bool": "BOOL", "complex64": "C64",
}  # fmt: skip


def open_torch_file(
    path: Path,
) -> tuple[dict[str, TensorInfo], dict[str, torch.Tensor], tuple[str, ...], tuple[int, int]]:
    """Open ``path`` without running code from it.

    Returns each tensor's place, the tensors themselves (mapped, not read, where the file is of the zip
    kind), the names of what it holds beside tensors, and the file's state. Raises BadFileError, or
    UnsupportedError for tensors that are not plain.
    """
    try:
        with path.open("rb") as file:
            state, head = file_state(file.fileno()), file.read(64)
    except OSError as error:
        raise BadFileError(f"{path} cannot be read: {error.strerror}") from None
    if not head:
        raise BadFileError(f"{path} is empty: download or save it again")
    zipped = head.startswith(b"PK\x03\x04")
    if not zipped and not head.startswith(b"\x80"):
        raise BadFileError(f"{path} {disguise(head) or 'is not a file that torch.save wrote'}")
    if zipped:
        _check_zip(path, state[0])
    found, others = _unnest(path, _load(path, mmap=zipped))
    infos = {name: _describe(path, name, tensor) for name, tensor in found.items()}
    return infos, found, others, state


def read_torch_tensor(info: TensorInfo, tensor: torch.Tensor, state: tuple[int, int]) -> Stored:
    """Copy one tensor out of the file, its own bytes only; the array is read-only.

    Raises BadFileError when the file has changed since it was opened.
    """
    try:
        with info.file.open("rb") as file:
            changed = file_state(file.fileno()) != state
    except OSError as error:
        raise BadFileError(f"{info.file}: tensor {info.name!r} cannot be read: {error.strerror}") from None
    if changed:  # before its map is touched: pages beyond the end of a file that shrank kill the process
        raise BadFileError(f"{info.file} was changed after it was opened: run the command again")
    import torch

    plain = tensor.detach().resolve_conj().resolve_neg()
    if info.dtype == "BF16":
        plain = plain.view(torch.int16)
    elif info.dtype.startswith("F8"):
        plain = plain.view(torch.uint8)
    data = np.array(plain.numpy(), order="C", copy=True).view(STORAGE[info.dtype])
    data.flags.writeable = False
    return Stored(info.dtype, data)


def _check_zip(path: Path, size: int) -> None:
    """torch stores its entries as they are: compressed ones could swell without bound; refused."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise BadFileError(f"{path} is a damaged PyTorch file: {error}: download it again") from None
    stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
    if not stored or sum(entry.file_size for entry in entries) > size:
        raise BadFileError(f"{path}: its entries are compressed, or claim more bytes than the file has")
    if not any(entry.filename.endswith("data.pkl") for entry in entries):
        raise BadFileError(f"{path} is a zip archive, but not one that torch.save wrote")


def _load(path: Path, *, mmap: bool) -> Any:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on its own old formats
            return torch.load(str(path), map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        wants = [line for line in str(error).splitlines() if "Unsupported" in line or "GLOBAL" in line]
        why = (wants or ["a damaged or foreign pickle"])[0].strip()[:200]
        raise BadFileError(
            f"{path} holds more than tensors, and reading it could run code ({why}): use safetensors"
        ) from None
    except Exception as error:  # torch raises whatever its readers hit on damaged bytes
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise BadFileError(f"{path} is a damaged PyTorch file: {why}: download it again") from None


def _unnest(path: Path, loaded: Any) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """The tensors by name, from the file's dict or one dict inside it, and the names of everything else."""
    import torch

    if not isinstance(loaded, dict):
        raise UnsupportedError(f"{path} holds a {type(loaded).__name__}, not tensors by name")
    others = []
    if not any(isinstance(value, torch.Tensor) for value in loaded.values()):
        nest = next((key for key in _NESTS if isinstance(loaded.get(key), dict)), None)
        if nest is not None:
            others = [str(key) for key in loaded if key != nest]
            loaded = loaded[nest]
    found = {name: value for name, value in loaded.items() if isinstance(value, torch.Tensor)}
    others += [str(key) for key in loaded if key not in found]
    if not found:
        raise BadFileError(f"{path} holds no tensors (but {', '.join(others[:8]) or 'nothing'})")
    return found, tuple(others)


def _describe(path: Path, name: Any, tensor: torch.Tensor) -> TensorInfo:
    import torch

    where = f"{path}: tensor {name!r}"
    try:
        name.encode()
    except (AttributeError, UnicodeError):
        raise BadFileError(f"{where} has a name that is not valid text") from None
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise UnsupportedError(f"{where} is sparse, quantised or without data; only plain tensors are read")
    dtype = _CODES.get(str(tensor.dtype).removeprefix("torch."))
    if dtype is None:
        raise UnsupportedError(f"{where} has dtype {tensor.dtype}, which paring does not know")
    nbytes = tensor.numel() * itemsize(dtype)
    try:
        held = tensor.untyped_storage().nbytes()
    except (RuntimeError, NotImplementedError, ParingError):
        raise UnsupportedError(f"{where} is not a plain tensor") from None
    if nbytes > held:  # an expanded view: few bytes in the file, any number in memory
        raise UnsupportedError(f"{where} takes {nbytes} bytes, but the file holds {held}: save it contiguous")
    return TensorInfo(name, dtype, tuple(tensor.shape), path, 0, nbytes)
