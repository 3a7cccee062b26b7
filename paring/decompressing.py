"""Packed file in, ordinary adapter or checkpoint out; decoded and written tensor by tensor."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

from paring import atomic
from paring.dtypes import FLOATS, Stored, from_f32, itemsize, numel
from paring.errors import OptionError, UnsupportedError
from paring.packed import Packed, open_source
from paring.report import Report, peak_rss_bytes
from paring.safetensors_io import write_safetensors

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def run(
    source: str | Path, output: str | Path, *, dtype: str | None, overwrite: bool, threads: int
) -> Report:
    """Decode ``source`` to ``output``: a file when that ends in .safetensors, else a folder with its
    configuration.

    ``dtype`` (fp64, fp32, fp16, bf16) is for the floating-point tensors; None keeps each one's own. Raises
    OptionError, UnsupportedError for a file that is not packed, BadFileError, OutputError.
    """
    started = time.perf_counter()
    wanted = parse_dtype(dtype)
    opened = open_source(source, threads)
    if not isinstance(opened, Packed):
        raise UnsupportedError(f"{source} is not a packed file: there is nothing to decompress")
    target = Path(output)
    atomic.refuse_same_file(target, [source, *opened.files])

    def of(own: str) -> str:
        return wanted if wanted and own in FLOATS else own

    layout = [(info.name, of(info.dtype), info.shape) for info in opened.tensors.values()]
    stream = (_cast(name, tensor, of(tensor.dtype)) for name, tensor in opened.read_all())
    nbytes = sum(numel(shape) * itemsize(kind) for _, kind, shape in layout)
    if target.suffix == ".safetensors":
        write_safetensors(target, stream, opened.metadata, layout=layout, overwrite=overwrite)
        written = target.stat().st_size
    else:
        written = _write_folder(opened, target, stream, layout, nbytes, overwrite)
    return Report(
        command="decompress",
        inputs=[str(source)],
        output=str(output),
        method=opened.facts.get("method"),
        bytes_in=opened.nbytes,
        bytes_out=written,
        error=opened.facts.get("error"),
        seconds=time.perf_counter() - started,
        peak_rss_bytes=peak_rss_bytes(),
        device="cpu",
    )


def _write_folder(
    opened: Packed,
    target: Path,
    stream: Iterator[tuple[str, Stored]],
    layout: list[tuple[str, str, tuple[int, ...]]],
    nbytes: int,
    overwrite: bool,
) -> int:
    config = opened.config(CONFIG)
    name = (
        WEIGHTS if config else Path(opened.facts.get("source", {}).get("name", WEIGHTS)).stem + ".safetensors"
    )
    atomic.check_room(target, nbytes)
    with atomic.atomic_folder(target, overwrite) as folder:
        write_safetensors(folder / name, stream, opened.metadata, layout=layout)
        if config:
            (folder / CONFIG).write_text(
                json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8"
            )
        return (folder / name).stat().st_size


def _cast(name: str, tensor: Stored, dtype: str) -> tuple[str, Stored]:
    if tensor.dtype == dtype:
        return name, tensor
    return name, from_f32(tensor.data if tensor.dtype == "F64" else tensor.f32(), dtype, name)


_DTYPES = {"fp64": "F64", "fp32": "F32", "fp16": "F16", "bf16": "BF16"}


def parse_dtype(text: str | None) -> str | None:
    """The safetensors code for fp64, fp32, fp16 or bf16. Raises OptionError for another word."""
    if text is None:
        return None
    if text not in _DTYPES:
        raise OptionError(f"--dtype {text}: expected {', '.join(_DTYPES)}")
    return _DTYPES[text]
