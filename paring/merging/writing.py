"""From what models hold to the bytes of a merge, in place, span by span."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from paring.dtypes import STORAGE, itemsize
from paring.errors import BadValueError
from paring.kernels import elementwise, merging
from paring.merging.chunks import Chunk, Desk, Span, Target
from paring.merging.keeping import Tally, applied
from paring.merging.models import Mix, Models, Result
from paring.merging.plan import MergePlan
from paring.resumable import Staging


class Writer:
    """From chunks to bytes in place; one for all threads."""

    def __init__(self, plan: MergePlan, rule: Result, staging: Staging) -> None:
        self._plan, self._rule, self._staging = plan, rule, staging
        self._local = threading.local()

    def span(self, chunks: Iterator[Chunk]) -> tuple[int, Tally]:
        """Merge and write one span; its checksum, and what was lost."""
        start, end, lost = None, 0, Tally()
        target: Target | None = None
        out: npt.NDArray[Any] = np.empty(0)
        for chunk in chunks:
            if start is None:
                target, start = chunk.place.target, chunk.place.start
                out = self._buffer(target)
            assert target is not None
            k = chunk.vectors.shape[1]
            if len(out) < end + k:
                grown = np.empty(max(end + k, 2 * len(out)), out.dtype)
                grown[:end] = out[:end]
                out = grown
            lost += self._chunk(chunk, target, out[end : end + k])
            end += k
        assert target is not None and start is not None, "a span has chunks"
        self._local.out = out.view(np.uint8)
        return self._write(target, start, out[:end]), lost

    def whole(self, models: Models) -> Callable[[Desk, Span], tuple[int, Tally] | None] | None:
        """As :meth:`span`, from bits to bits, without chunks of fp32; only for sums of bf16 on the CPU."""
        rule, deltas, scale = self._rule, self._plan.deltas, self._plan.scale
        based = models.sources[0] is not None
        if not isinstance(rule, Mix) or models.device != "cpu" or models.updates or based != deltas:
            return None
        if self._plan.keep_mask is not None:
            return None

        def mix(desk: Desk, span: Span) -> tuple[int, Tally] | None:
            target, n = self._plan.targets[span.index], span.stop - span.start
            rows = desk.rows(target, span) if target.dtype == "BF16" else None
            if rows is None:
                return None
            out = self._buffer(target)
            if len(out) < n:
                out = np.empty(n, np.uint16)
                self._local.out = out.view(np.uint8)
            weights = rule.coefficients(target)
            lost = merging.mix(rows, n, deltas, weights, scale if deltas else 1.0, out[:n])
            if lost < 0:
                return None  # chunks tell what is wrong, and where
            return self._write(target, span.start, out[:n]), Tally(lost)

        return mix

    def _write(self, target: Target, start: int, out: npt.NDArray[Any]) -> int:
        if self._plan.mask is not None:
            self._plan.mask.apply(target.name, start, out)
        return self._staging.write(target.name, start, out)

    def _buffer(self, target: Target) -> npt.NDArray[Any]:
        held: npt.NDArray[np.uint8] = getattr(self._local, "out", np.empty(0, np.uint8))
        size = itemsize(target.dtype)
        return held[: len(held) // size * size].view(STORAGE[target.dtype])

    def _chunk(self, chunk: Chunk, target: Target, out: npt.NDArray[Any]) -> Tally:
        merged = self._rule.chunk(chunk.vectors, chunk.place)
        if not self._plan.deltas:
            self._narrow(merged, target, out)
            return Tally()
        if self._plan.scale != 1:
            merged = merged * self._plan.scale
        assert chunk.base is not None and chunk.base_bits is not None
        tally, keep = Tally(), self._plan.keep_mask
        if keep is None:
            values = merged + chunk.base
        else:
            values, merged, tally = applied(keep, merged, chunk.base, self._stays(target, chunk))
        self._narrow(values, target, out)
        if out.dtype != chunk.base_bits.dtype or (keep is None and itemsize(target.dtype) > 2):
            return tally
        return tally + Tally(elementwise.unmoved(merged, chunk.base_bits, out))

    def _stays(self, target: Target, chunk: Chunk) -> npt.NDArray[np.bool_] | None:
        """What ``--mask`` keeps of a chunk; None where it says nothing of the tensor."""
        mask, start = self._plan.mask, chunk.place.start
        if mask is None or target.name not in mask.shapes:
            return None
        return mask.read(target.name, start, start + chunk.vectors.shape[1])

    def _narrow(self, values: merging.F32, target: Target, out: npt.NDArray[Any]) -> None:
        if not elementwise.narrow(values, target.dtype, out):
            raise BadValueError(f"{target.name}: a merged value is too large for {target.dtype}; see --dtype")
