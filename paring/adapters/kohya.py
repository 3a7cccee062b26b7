"""kohya-ss: ``lora_unet_..., .lora_down.weight (r, in), .lora_up.weight (out, r), .alpha``.

Scale: ``alpha / r`` with the module's own ``.alpha`` tensor; a missing or zero alpha means ``alpha = r``. A
``.scalar`` that LyCORIS kept multiplies.
Module names have their dots replaced by underscores, which cannot be undone without the model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from paring.adapters import naming, products
from paring.adapters.derived import Group, Rule
from paring.adapters.view import Dialect, Dotted

_TUCKER = "LoCon with a Tucker core: not one matrix product"


def scale(
    module: str, rank: int, config: Mapping[str, Any] | None, scalar: Callable[[str], float | None]
) -> tuple[float, str]:
    """The scale of one module: ``alpha / rank``, or 1 without an alpha, times its ``.scalar`` if any."""
    alpha, factor = scalar(f"{module}.alpha"), scalar(f"{module}.scalar")
    found, source = (alpha / rank, "alpha tensor / r") if alpha else (1.0, "no alpha: alpha = r")
    return (found, source) if factor is None else (found * factor, f"{source}, times the scalar")


_PARTS = {"unet": "unet", "te": "text_encoder", "te1": "text_encoder", "te2": "text_encoder_2",
          "te3": "text_encoder_3"}  # fmt: skip


def canonical(module: str, dotted: Dotted) -> str | None:
    """The canonical name, where the base or the table of segments knows the name."""
    tail = re.sub("^(?:lora|lycoris)_", "", module)
    first, _, rest = tail.partition("_")
    if first not in _PARTS or not rest:
        return dotted(tail)
    found = dotted(rest.removeprefix("unet_"))  # twice in some files
    return None if found is None else f"{_PARTS[first]}.{found}"


def named(canonicals: Sequence[str]) -> list[str]:
    """Canonical names with underscores for dots; the first of several text encoders is ``te1``. Names of this
    dialect, which could not be made canonical, stay.
    """
    several = {"text_encoder_2", "text_encoder_3"} & set(naming.parts(canonicals))
    own = {"unet": "unet_", "text_encoder": "te1_" if several else "te_", "text_encoder_2": "te2_",
           "text_encoder_3": "te3_", "": ""}  # fmt: skip
    pairs = (naming.split(name) for name in canonicals)
    made = [f"lora_{own[part]}{rest.replace('.', '_')}" for part, rest in pairs]
    return [
        name if re.match(r"(?:lora|lycoris)_[^.]+$", name) else new
        for name, new in zip(canonicals, made, strict=True)
    ]


def tucker_rule(module: str) -> Rule:
    """LoCon with a Tucker core, of modules that the pattern ``module`` matches."""

    def own(group: Group, rank: int | None) -> tuple[float, str]:
        return scale(group.module, rank or 1, group.config, group.scalar)

    return Rule(
        "LoCon (Tucker)",
        re.compile(module + r"\.(?P<role>lora_up|lora_mid|lora_down)\.weight$"),
        lambda group: products.locon(group, own),
        when=lambda group: group.has("lora_mid"),
        lifts=_TUCKER,
    )


DIALECT = Dialect(
    name="kohya",
    # the second form is nonstandard, but there are such files in the wild
    factor=re.compile(r"^(?P<module>lora_.+?)(?:\.|_)(?P<role>lora_down|lora_up)\.weight$"),
    roles={"lora_down": "a", "lora_up": "b"},
    scale=scale,
    plain=("{module}.lora_down.weight", "{module}.lora_up.weight"),
    alpha="{module}.alpha",
    scale_in="alpha",
    canonical=canonical,
    named=named,
    rules=(tucker_rule(r"^(?P<module>lora_.+?)"),),
    others=(
        (re.compile(r"\.alpha$"), "alpha of a module"),
        (re.compile(r"\.scalar$"), "scalar of a module"),
        (re.compile(r"\.dora_scale$"), "DoRA magnitude"),
        (re.compile(r"\.lora_mid\.weight$"), "Tucker core of a LoCon convolution"),
        (
            re.compile(r"\.(hada|lokr|oft|w_norm|b_norm|diff)"),
            "LyCORIS tensor of a kind this version carries",
        ),
    ),
    nonlinear=(
        (re.compile(r"^(?P<module>.+)\.dora_scale$"), "DoRA: its update is not scale * B @ A"),
        (re.compile(r"^(?P<module>.+)\.lora_mid\.weight$"), _TUCKER),
    ),
)
