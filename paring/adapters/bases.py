"""What a base model's own names and shapes tell of an adapter: from headers, no tensor is read."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from paring.adapters import naming

_WEIGHT = re.compile(r"\.(?:weight|in_proj_weight)$")
_WRAPPERS = re.compile(r"^(?:base_model\.model\.)?(?:(?:unet|text_encoder(?:_[23])?)\.)?|\.base_layer(?=\.)")


class Base:
    """Modules of base models by name: each of ``tensors`` maps names of weights to their shapes."""

    def __init__(self, tensors: Sequence[Mapping[str, tuple[int, ...]]] = ()) -> None:
        self._shapes: dict[str, set[tuple[int, ...]]] = defaultdict(set)
        self._whole: set[str] = set()
        self._dotted: dict[str, set[str]] = defaultdict(set)
        for names in tensors:
            for name, shape in names.items():
                if not _WEIGHT.search(name):
                    continue
                words = _WEIGHT.sub("", name).split(".")
                self._whole.add(".".join(words))
                for start in range(len(words)):  # an adapter may not count the names of wrappers
                    self._shapes[".".join(words[start:])].add(shape)
                    self._dotted["_".join(words[start:])].add(".".join(words[start:]))

    def shape(self, module: str) -> tuple[int, ...] | None:
        """The shape of a module's weight by its name in a view; None where the bases do not tell one."""
        own = _WRAPPERS.sub("", module)
        names = [own, self.dotted(own) or ""]
        words = own.split(".")
        names += [name for i in range(1, len(words)) if (name := ".".join(words[i:])) in self._whole]
        found = next((shapes for name in names if (shapes := self._shapes.get(name))), set())
        return next(iter(found)) if len(found) == 1 else None

    def dotted(self, underscored: str) -> str | None:
        """The dotted name of one whose dots became underscores: the bases', else by known segments."""
        found = self._dotted.get(underscored, set())
        return next(iter(found)) if len(found) == 1 else naming.dotted(underscored)
