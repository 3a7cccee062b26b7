"""Modules of several adapters side by side, and which weight of a base checkpoint each of them adapts."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from paring.adapters import naming
from paring.adapters.view import Adapter, LowRank, Vector
from paring.dtypes import numel
from paring.errors import OptionError, UnsupportedError
from paring.merging.sources import Entry

_PREFIXES = re.compile(
    r"^(base_model\.model\.)?(?:(?:lora|lycoris)_(?P<short>unet|te\d?)_(?:unet_)?"
    r"|(?P<long>unet|text_encoder(?:_\d)?)\.|transformer\.|diffusion_model\.)?"
)
_PARTS = {"te": "text_encoder", "te1": "text_encoder", "te2": "text_encoder_2", "te3": "text_encoder_3"}

#: Conv1D layers of GPT-2
_CONV1D = ("c_attn", "c_proj", "c_fc", "q_attn")


@dataclass(frozen=True, slots=True)
class Joint:
    """One module of the result: its name there, its factors' names, its shape, what each model has of it."""

    key: str
    name: str
    tensors: tuple[str, ...]
    shape: tuple[int, int]
    parts: tuple[LowRank | Vector | None, ...]

    @property
    def is_vector(self) -> bool:
        return len(self.tensors) == 1

    @property
    def rank(self) -> int:
        """The rank that suffices for a weighted sum."""
        total = sum(part.rank for part in self.parts if isinstance(part, LowRank))
        return max(1, min(total, *self.shape))


def workers(joints: Sequence[Joint], sums: bool, memory: int, threads: int) -> int:
    """How many of ``threads`` fit ``memory`` bytes, each at work on a module, beside the factors of all.

    A weighted sum (``sums``) works on factors, any other rule on the update (out, in); both take several
    times their size in fp64 for decompositions. Raises OptionError where one alone does not fit.
    """
    held = most = 0
    for joint in joints:
        ranks = sum(part.rank for part in joint.parts if isinstance(part, LowRank))
        factors = ranks * sum(joint.shape) if ranks else numel(joint.shape) * len(joint.parts)
        held += 4 * factors
        most = max(most, 32 * (factors if sums else numel(joint.shape)))
    if held + most > memory:
        raise OptionError(f"--memory {memory}: merging these adapters takes {held + most} bytes to work on")
    return min(threads, (memory - held) // max(1, most))


def key(module: str) -> str:
    """A module's name without what dialects differ in: prefixes, wrappers, and dots against underscores; with
    the part of a pipeline that it belongs to, since several have modules of the same names.
    """
    found = _PREFIXES.match(module)
    told = (found["short"] or found["long"] or "") if found else ""
    part = (
        _PARTS.get(told, told) or naming.split(naming.with_part(module.removeprefix("base_model.model.")))[0]
    )
    return f"{part}:{_bare(module)}" if part else _bare(module)


def _bare(module: str) -> str:
    """The same without the part: what a weight of the base is looked up by."""
    module = module.replace(".base_layer.", ".")
    return re.sub(r"[._]+", "_", _PREFIXES.sub("", module)).strip("_")


def weight_names(adapter: Adapter, base: Mapping[str, Entry]) -> dict[str, str]:
    """module -> the name of its weight in ``base``: ``MODULE.weight`` (of attention with one projection for
    all, ``MODULE.in_proj_weight``), or the only name that ends so.

    Raises UnsupportedError naming the module when there is none, several, or one of another shape.
    """
    by_key: dict[str, list[str]] = defaultdict(list)
    for name in base:
        if name.endswith((".weight", ".in_proj_weight")) or "." not in name:
            by_key[_bare(name.removesuffix(".weight").removesuffix(".in_proj_weight"))].append(name)
    path = adapter.checkpoint.path
    found = {}
    owners: dict[str, str] = {}
    for module in adapter.modules:
        plain, own = f"{module.name}.weight", _bare(module.name)
        # the adapter or the base may count a wrapper's name that the other does not have
        tries = (
            [plain] if plain in base else [],
            by_key[own],
            [name for other, names in by_key.items() if other.endswith("_" + own) for name in names],
            [name for other, names in by_key.items() if own.endswith("_" + other) for name in names],
        )
        candidates = next((names for names in tries if names), [])
        if len(candidates) != 1:
            some = f"{len(candidates)} weights ({', '.join(candidates[:3])})" if candidates else "no weight"
            raise UnsupportedError(f"{path}: module {module.name} fits {some} of the base: is it another's?")
        twin = owners.setdefault(candidates[0], module.name)
        if twin != module.name:
            raise UnsupportedError(f"{path}: modules {twin} and {module.name} both fit {candidates[0]}")
        _refuse_shape(adapter, module, candidates[0], base[candidates[0]])
        found[module.name] = candidates[0]
    return found


def turned(adapter: Adapter, names: Mapping[str, str], base: Mapping[str, Entry]) -> frozenset[str]:
    """The modules whose weight in ``base`` is stored as (in, out): embeddings, and Conv1D of GPT-2.

    Shapes tell; where a weight is square, its name does in a base that has Conv1D layers, else the adapter's
    ``fan_in_fan_out`` (which is one word for all of its modules).
    """
    conv1d = any(
        name.endswith("c_attn.weight") and len(entry.shape) == 2 and entry.shape[1] == 3 * entry.shape[0]
        for name, entry in base.items()
    )
    flag = bool((adapter.config or {}).get("fan_in_fan_out"))
    found = set()
    for module in adapter.modules:
        square = module.name.rpartition(".")[2] in _CONV1D if conv1d else flag
        by_shape = base[names[module.name]].shape[0] == module.n_in
        if module.embedding or (square if module.n_in == module.n_out else by_shape):
            found.add(module.name)
    return frozenset(found)


def _refuse_shape(adapter: Adapter, module: LowRank, name: str, entry: Entry) -> None:
    sides = (module.n_in, module.n_out)
    if numel(entry.shape) != module.n_in * module.n_out or not entry.shape or entry.shape[0] not in sides:
        raise UnsupportedError(
            f"{adapter.checkpoint.path}: module {module.name} is {module.n_out} x {module.n_in}, but {name} "
            f"is {list(entry.shape)}: another base's adapter?"
        )
