"""Weights of the models: one each, or by patterns of tensor names and gradients over layers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from paring.errors import OptionError

#: a weight: one number, or several that are spread over the layers, first to last
Weight = float | Sequence[float]

_LAYER = re.compile(r"(?:^|\.)(\d+)\.")


@dataclass(frozen=True, slots=True)
class Weighting:
    """``default (models,)``, and for tensors that match a pattern, weights of their own.

    ``patterns`` is a list of (pattern, model, weight): a glob over the tensor's name; the last match wins.
    ``layers`` is the number of layers that gradients are spread over.
    """

    default: tuple[Weight, ...]
    patterns: tuple[tuple[str, int, Weight], ...] = ()
    layers: int = 0

    def of(self, tensor: str) -> tuple[float, ...]:
        """The weights ``(models,)`` for one tensor."""
        chosen = list(self.default)
        for pattern, model, weight in self.patterns:
            if fnmatchcase(tensor, pattern) or fnmatchcase(tensor, f"*{pattern}*"):
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

    @property
    def plain(self) -> bool:
        """Whether every tensor has the same weights."""
        return not self.patterns and all(isinstance(weight, int | float) for weight in self.default)


def layer_of(tensor: str) -> int | None:
    """The number of the layer that a tensor belongs to: the first number in its name, None without one."""
    found = _LAYER.search(tensor)
    return int(found[1]) if found else None


def parse(text: str | Sequence[Weight] | None, count: int, default: float) -> tuple[Weight, ...]:
    """``"1,1,.5"`` or numbers, one for each of ``count`` models. Raises OptionError."""
    if text is None:
        return (default,) * count
    try:
        parts: Sequence[Weight] = [float(part) for part in text.split(",")] if isinstance(text, str) else text
    except ValueError:
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
