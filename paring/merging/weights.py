"""Weights of the models: one each, or by patterns of tensor names and gradients over layers."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from paring.errors import OptionError

#: a weight: one number, or several that are spread over the layers, first to last
Weight = float | Sequence[float]

_LAYER = re.compile(r"(?:^|\.)(\d+)\.")
_AFTER = re.compile(
    r"(?:^|[._])(?:norm|norm_f|ln_f|final_layer_?norm|lm_head|head|score|classifier|pooler|embed_out)(?:[._]|$)"
)


@dataclass(frozen=True, slots=True)
class Weighting:
    """``default (models,)``, and for tensors that match a pattern, weights of their own.

    ``patterns`` is a list of (pattern, model, weight): a glob over the tensor's name; the last match wins.
    ``layers`` is the number of layers that gradients are spread over; what is in no layer has the
    first number.
    """

    default: tuple[Weight, ...]
    patterns: tuple[tuple[str, int, Weight], ...] = ()
    layers: int = 0

    def of(self, tensor: str) -> tuple[float, ...]:
        """The weights ``(models,)`` for one tensor."""
        chosen = list(self.default)
        for pattern, model, weight in self.patterns:
            if _fits(tensor, pattern):
                chosen[model] = weight
        return tuple(self._at(weight, tensor) for weight in chosen)

    def _at(self, weight: Weight, tensor: str) -> float:
        if isinstance(weight, int | float):
            return float(weight)
        layer = layer_of(tensor)
        if len(weight) == 1 or layer is None or self.layers < 2:
            return float(weight[0])
        place = layer / (self.layers - 1) * (len(weight) - 1)
        low = min(int(place), len(weight) - 2)
        return float(weight[low] + (weight[low + 1] - weight[low]) * (place - low))

    def refuse_unused(self, tensors: Collection[str]) -> None:
        """Raise OptionError for a pattern that no tensor's name fits."""
        for pattern in dict.fromkeys(pattern for pattern, _, _ in self.patterns):
            if not any(_fits(tensor, pattern) for tensor in tensors):
                some = ", ".join(sorted(tensors)[:3])
                raise OptionError(f"a weight is for {pattern!r}, which fits no tensor; there are {some}, ...")

    @property
    def plain(self) -> bool:
        """Whether every tensor has the same weights."""
        return not self.patterns and all(isinstance(weight, int | float) for weight in self.default)


def _fits(tensor: str, pattern: str) -> bool:
    return fnmatchcase(tensor, pattern) or fnmatchcase(tensor, f"*{pattern}*")


def layer_of(tensor: str) -> int | None:
    """The number of the layer that a tensor belongs to: the first number in its name, None without one."""
    found = _LAYER.search(tensor)
    return int(found[1]) if found else None


def after_layers(tensor: str) -> bool:
    """Whether a tensor of no layer stands behind all of them: the last norm, the head."""
    return layer_of(tensor) is None and "embeddings" not in tensor and bool(_AFTER.search(tensor))


def _number(part: Any) -> Weight:
    """One weight as plain floats, whatever kind of number it was. Raises ValueError, TypeError."""
    if isinstance(part, str | int | float) or not hasattr(part, "__len__"):
        return float(part)
    if not len(part):
        raise ValueError("no anchors")
    return [float(x) for x in part]


def parse(text: str | Sequence[Weight] | None, count: int, default: float) -> tuple[Weight, ...]:
    """``"1,1,.5"`` or numbers, one for each of ``count`` models. Raises OptionError."""
    if text is None:
        return (default,) * count
    try:
        given = text.split(",") if isinstance(text, str) else text
        parts: Sequence[Weight] = [_number(part) for part in given]
    except (ValueError, TypeError, OverflowError):
        raise OptionError(f"--weights {text}: expected numbers with commas between") from None
    if len(parts) != count:
        raise OptionError(f"--weights gives {len(parts)} numbers for {count} models")
    flat = [x for part in parts for x in ([part] if isinstance(part, int | float) else part)]
    if not all(abs(float(x)) < float("inf") for x in flat):
        raise OptionError("--weights must be finite numbers")
    return tuple(parts)


def layers_in(names: Mapping[str, object]) -> int:
    """The number of layers that tensor names count."""
    return max((layer for name in names if (layer := layer_of(name)) is not None), default=-1) + 1
