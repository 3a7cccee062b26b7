"""kohya-ss: ``lora_unet_..., .lora_down.weight (r, in), .lora_up.weight (out, r), .alpha``.

Scale: ``alpha / r`` with the module's own ``.alpha`` tensor; a missing or zero alpha means ``alpha = r``.
Module names have their dots replaced by underscores, which cannot be undone without the model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from paring.adapters.view import Dialect


def _scale(
    module: str, rank: int, config: Mapping[str, Any] | None, scalar: Callable[[str], float | None]
) -> tuple[float, str]:
    alpha = scalar(f"{module}.alpha")
    if not alpha:
        return 1.0, "no alpha: alpha = r"
    return alpha / rank, "alpha tensor / r"


DIALECT = Dialect(
    name="kohya",
    # the second form is nonstandard, but there are such files in the wild
    factor=re.compile(r"^(?P<module>lora_.+?)(?:\.|_)(?P<role>lora_down|lora_up)\.weight$"),
    roles={"lora_down": "a", "lora_up": "b"},
    scale=_scale,
    others=(
        (re.compile(r"\.alpha$"), "alpha of a module"),
        (re.compile(r"\.dora_scale$"), "DoRA magnitude"),
        (re.compile(r"\.lora_mid\.weight$"), "Tucker core of a LoCon convolution"),
        (
            re.compile(r"\.(hada|lokr|oft|w_norm|b_norm|diff)"),
            "LyCORIS tensor of a kind this version carries",
        ),
    ),
    nonlinear=(
        (re.compile(r"^(?P<module>.+)\.dora_scale$"), "DoRA: its update is not scale * B @ A"),
        (
            re.compile(r"^(?P<module>.+)\.lora_mid\.weight$"),
            "LoCon with a Tucker core: not one matrix product",
        ),
    ),
)
