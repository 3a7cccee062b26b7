"""Pack a checkpoint by a method that sees one tensor at a time: read, coded, written, read again.

Little is held: the tensors that threads work on, and those of less than 64 KiB, which share payloads. Coded
tensors wait in a file without a name beside the output, since the manifest, which comes first, tells their
sizes. What lies beside a model (configuration, tokenizer) goes along.
"""

from __future__ import annotations

import logging
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from paring import atomic, codecs
from paring.budget import Trial, refuse
from paring.checkpoint import Checkpoint, digest_sorted, open_checkpoint
from paring.densifying import files_beside
from paring.dtypes import FLOATS, Stored, numel, refuse_nonfinite
from paring.errors import BadFileError
from paring.packed import open_packed
from paring.packing import MAX_BESIDE, OWN_PAYLOAD, Beside, Deferred, Image, Payload, Spec, payloads
from paring.plan import CompressPlan
from paring.report import CarriedReport, ModuleReport, Report, peak_rss_bytes
from paring.stream import in_order

_log = logging.getLogger("paring")


@dataclass(frozen=True, slots=True)
class _Coded:
    """One tensor after it was coded: how many of its entries are not +0, and how many are -0; its payload, if
    it has its own, or else what is to be coded with others.
    """

    spec: Spec
    nonzero: int
    minus: int
    codec: str
    part: Deferred | None = None
    item: Any = None


@dataclass(eq=False)
class _Spool:
    """Bytes put aside in a file, from several threads, and fetched again."""

    file: IO[bytes]
    end: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, data: bytes) -> int:
        """Where they are from now on."""
        with self.lock:
            at, self.end = self.end, self.end + len(data)
            self.file.seek(at)
            self.file.write(data)
        return at

    def get(self, at: int, size: int) -> bytes:
        with self.lock:
            self.file.seek(at)
            return self.file.read(size)


def run(plan: CompressPlan, *, dry_run: bool = False) -> Report:
    """Do what ``plan`` says, or with ``dry_run`` all of it but the writing.

    Raises BadValueError for NaN or infinity, BudgetError for a budget that is not met, OutputError.
    """
    started = time.perf_counter()
    _log.info("reading %s tensors", f"{len(plan.source.tensors):,}")
    with _spool(plan.output) as spool, _digesting(plan.source) as summed:
        names = sorted(plan.source.tensors)
        coded = list(in_order(lambda name: _code(plan, name, spool), names, plan.threads))
        digest = summed.result()
        image = _image(plan, coded, digest)
        _refuse_budget(plan, image)
        if not dry_run:
            image.write(plan.output, digest, lambda path: _recheck(path, digest), overwrite=plan.overwrite)
    shares = {payload.specs[0].name: payload.nbytes for payload in image.payloads if len(payload.specs) == 1}
    packed = [each for each in coded if each.codec == plan.method.name]
    return Report(
        command="compress",
        inputs=[str(plan.source.path)],
        output=str(plan.output),
        method=plan.method.name,
        recipe=plan.recipe,
        bytes_in=plan.source.nbytes,
        bytes_out=image.nbytes,
        ratio=plan.source.nbytes / image.nbytes,
        ratio_fp16=2 * plan.elements / image.nbytes,
        bits_per_param=8 * image.nbytes / max(1, plan.elements),
        error=0.0,
        modules=[_module(each, shares.get(each.spec.name)) for each in packed],
        carried=[_carried(plan, each) for each in coded if each.codec != plan.method.name],
        warnings=_warnings(coded),
        seconds=time.perf_counter() - started,
        peak_rss_bytes=peak_rss_bytes(),
        device="cpu",
        dry_run=dry_run or None,
    )


@contextmanager
def _digesting(source: Checkpoint) -> Iterator[Future[str]]:
    """The digest of the source, made on another thread meanwhile; given up when the work is."""
    ended = threading.Event()

    def visit() -> Iterator[tuple[str, Stored]]:
        for name in sorted(source.tensors):
            if ended.is_set():
                return
            yield name, source.read(name)

    with ThreadPoolExecutor(1) as apart:
        try:
            yield apart.submit(lambda: digest_sorted(visit()))
        finally:
            ended.set()


@contextmanager
def _spool(output: Path) -> Iterator[_Spool]:
    """A file that is gone when the run ends, however it ends; on the disk that the output will be on."""
    target = atomic.target_of(output)
    with atomic.reporting(target):
        home = next(folder for folder in target.parents if folder.exists())
        with tempfile.TemporaryFile(dir=home) as file:
            yield _Spool(file)


def _code(plan: CompressPlan, name: str, spool: _Spool) -> _Coded:
    stored = plan.source.read(name)
    refuse_nonfinite(stored, name, plan.source.path)
    spec = Spec(name, stored.dtype, stored.shape)
    item = plan.method.function(stored, **plan.options)
    codec = codecs.of(item)
    raw = np.ascontiguousarray(stored.data).reshape(-1)
    bits = raw.view(f"u{raw.itemsize}")
    nonzero = int(np.count_nonzero(bits))
    signed = stored.dtype in FLOATS or stored.dtype in ("F8_E4M3", "F8_E5M2")
    minus = int(np.count_nonzero(bits == 1 << 8 * raw.itemsize - 1)) if signed else 0
    if codec.most_bytes(item) < OWN_PAYLOAD:
        return _Coded(spec, nonzero, minus, codec.ID, item=item)
    data = codec.encode([item])
    at = spool.put(data)
    part = Deferred(
        name, codec.ID, codec.VERSION, len(data), zlib.crc32(data), (spec,), lambda: spool.get(at, len(data))
    )
    return _Coded(spec, nonzero, minus, codec.ID, part)


def _image(plan: CompressPlan, coded: list[_Coded], digest: str) -> Image:
    parts: list[Payload | Deferred] = list(payloads([(c.spec, c.item) for c in coded if c.part is None]))
    parts += [each.part for each in coded if each.part is not None]
    facts = {**plan.facts(digest), "error": 0.0}
    if plan.adapter.dialect != "none":
        return Image(parts, facts)
    facts["kind"] = "checkpoint"
    files = files_beside(plan.source).items()
    kept = [Beside.of(name, content) for name, content in files if len(content) <= MAX_BESIDE]
    return Image(parts, facts, kept)


def _refuse_budget(plan: CompressPlan, image: Image) -> None:
    most = plan.most_bytes
    if most is not None and image.nbytes > most:
        blocked = f": without loss this checkpoint takes {image.nbytes} bytes"
        trial = Trial(0, image.nbytes + 16, 0.0)
        raise refuse(plan.budget, trial, plan.source.nbytes, plan.elements, blocked)


def _recheck(path: Path, expected: str) -> None:
    """Read the complete file again: the very tensors of the source."""
    with open_checkpoint(path) as container:
        packed = open_packed(container)
        for _ in packed.beside():
            pass
        if packed.digest() != expected:
            raise BadFileError(f"{path}: what was written does not read back the same; is the disk sound?")


def _warnings(coded: list[_Coded]) -> list[str]:
    minus = sum(each.minus for each in coded)
    if not minus:
        return []
    return [
        f"{minus:,} entries are -0, as weights times a mask leave them; they are kept as values: "
        "the file would be smaller had the weights been set to 0"
    ]


def _module(coded: _Coded, nbytes: int | None) -> ModuleReport:
    shape = coded.spec.shape
    n = numel(shape)
    sides = (shape[0] if len(shape) > 1 else 1, numel(shape[1:]) if len(shape) > 1 else n)
    bits = None if nbytes is None else 8 * nbytes / n
    return ModuleReport(coded.spec.name, sides, density=coded.nonzero / n, bits=bits, error=0.0)


def _carried(plan: CompressPlan, coded: _Coded) -> CarriedReport:
    n = numel(coded.spec.shape)
    zeros = f"{1 - coded.nonzero / n:.1%} zeros" if n else "no entries"
    return CarriedReport(
        coded.spec.name, plan.source.tensors[coded.spec.name].nbytes, f"{zeros}: as its bytes"
    )
