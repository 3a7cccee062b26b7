"""Choices that recipes offer, apart from what carries them out: this imports no torch."""

from __future__ import annotations

from typing import Literal

#: how an update of a pruned matrix keeps its mask; :mod:`.adapters` has the formulas
Kind = Literal["masklora", "scalelora", "loraprune", "lora"]
Optimizer = Literal["adamw", "apollo", "apollo-mini"]
