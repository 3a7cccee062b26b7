"""LyCORIS: kohya's names, and LoHa (``hada_*``) and LoKr (``lokr_*``) beside LoCon.

Scale: ``alpha / r`` with the module's ``.alpha``, of LoKr only where one of its two factors is decomposed
(both whole: 1); a missing or zero alpha means ``alpha = r``. A ``.scalar`` that was kept multiplies. Full
differences (``.diff``, ``.diff_b``) and rotations are carried.
"""

from __future__ import annotations

import re

from paring.adapters import kohya, products
from paring.adapters.derived import Group, Rule
from paring.adapters.view import Dialect

_MODULE = r"^(?P<module>(?:lora|lycoris)_.+?)"


def _scale(group: Group, rank: int | None) -> tuple[float, str]:
    scale, source = kohya.scale(group.module, rank or 1, group.config, group.scalar)
    if rank is not None:
        return scale, source
    return group.scalar(f"{group.module}.scalar") or 1.0, "both factors of LoKr are whole: 1"


DIALECT = Dialect(
    name="lycoris",
    factor=re.compile(_MODULE + r"(?:\.|_)(?P<role>lora_down|lora_up)\.weight$"),
    roles=kohya.DIALECT.roles,
    scale=kohya.scale,
    plain=kohya.DIALECT.plain,
    alpha=kohya.DIALECT.alpha,
    scale_in="alpha",
    holds=frozenset({"LoHa", "LoKr"}),
    canonical=kohya.canonical,
    named=kohya.named,
    rules=(
        Rule(
            "LoHa",
            re.compile(_MODULE + r"\.(?P<role>hada_w[12]_[ab]|hada_t[12])$"),
            lambda group: products.loha(group, _scale),
        ),
        Rule(
            "LoKr",
            re.compile(_MODULE + r"\.(?P<role>lokr_w[12]|lokr_w[12]_[ab]|lokr_t2)$"),
            lambda group: products.lokr(group, _scale, by_kernel=False),
        ),
        kohya.tucker_rule(_MODULE),
    ),
    others=kohya.DIALECT.others,
    nonlinear=kohya.DIALECT.nonlinear,
    kind=lambda config: "LyCORIS",
)
