"""``--tokenizer``: the vocabulary of a merge's result, and which row of each model is which token of it.

``base``, or the path of an input, gives the result that input's tokenizer and vocabulary. ``union`` gives it
all tokens: the donor's (the base's, or first model's) with their ids, then those of the others in their order
that are new (:func:`paring.merging.vocabularies.tokenizers.union`).

Tensors with a row for each token (embeddings, heads, their biases) are re-indexed by the tokens' strings. The
row of a token is the model's own if it has the token; else the base's, if that has it; else the mean of the
rows of those that do (:class:`~.reindexed.Elsewhere`). So a model that lacks a token has no delta for it, and
no say in a merge by deltas; adapters, which have the base's tokens, update no others. Rows that are no
token's (padding) go by their numbers, and new tokens take them up from the first one on.

Configuration comes from the donor, the number of tokens in it from the result, ids of special tokens from the
input whose tokenizer it is.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from paring.dtypes import FLOATS
from paring.errors import OptionError, UnsupportedError
from paring.merging import configs
from paring.merging.models import Target
from paring.merging.sources import Entry, Source
from paring.merging.vocabularies import tokenizers
from paring.merging.vocabularies.reindexed import I64, Elsewhere, Reindexed
from paring.merging.vocabularies.tokenizers import Tokenizer

if TYPE_CHECKING:
    from paring.merging.inputs import Model

#: names of tensors that have a row for each token
_NAMED = re.compile(
    r"(?:^|\.)(?:embed_tokens|embed_in|embed_out|word_embeddings?|tok_embeddings|wte|shared|lm_head"
    r"|lm_head\.decoder|predictions|predictions\.decoder)\.(?:weight|bias)$"
)
_GENERATION = "generation_config.json"
Tensors = Sequence[Mapping[str, Entry] | None]
#: a token, or the number of a row that is none's
Key = str | int


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The result's: ``rows`` of the tensors that have one for each token, and by input (0 is the base) the
    ``maps`` from these to its own, by tensor, with -1 for tokens that it lacks. No maps: nothing moves.

    ``tokenizer`` is new with ``added`` in it, or that of input number ``chosen``. ``config`` and
    ``generation`` are changes in the donor's files of that name.
    """

    chosen: Model
    tokenizer: Tokenizer
    added: Sequence[str]
    rows: int
    maps: Sequence[Mapping[str, I64]]
    adapters: frozenset[int]
    #: the first other input with a chat template, if the donor has none
    template: Model | None = None
    config: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def entries(self, tensors: Tensors) -> list[Mapping[str, Entry] | None]:
        """``tensors`` with the result's number of rows."""
        return [
            None if own is None else {
                name: replace(entry, shape=(self.rows, *entry.shape[1:])) if name in maps else entry
                for name, entry in own.items()
            }
            for own, maps in zip(tensors, self.maps, strict=True)
        ]  # fmt: skip

    def wrap(self, sources: Sequence[Source | None], targets: Sequence[Target]) -> list[Source | None]:
        """Sources that read rows in the result's order."""
        dtypes: dict[str, str] = {}
        weights = {target.name: target.weights for target in targets}
        whole = [{} if i in self.adapters else maps for i, maps in enumerate(self.maps)]
        for source, maps in zip(sources, whole, strict=True):
            for name in maps:
                assert source is not None
                dtype = source.tensors[name].dtype
                # different kinds of bits are read as one that holds them all; what is copied, as the first
                before = dtypes.setdefault(name, dtype)
                if before != dtype and name in weights:
                    dtypes[name] = "F64" if "F64" in (before, dtype) else "F32"
        elsewhere = Elsewhere(sources, whole, weights, dtypes)
        wrapped: list[Source | None] = []
        for i, (source, maps) in enumerate(zip(sources, self.maps, strict=True)):
            if source is None or not maps:
                wrapped.append(source)
            elif i in self.adapters:
                wrapped.append(Reindexed(source, maps, dict.fromkeys(maps, "F32")))
            else:
                wrapped.append(Reindexed(source, maps, dtypes, elsewhere))
        return wrapped

    def digest(self) -> str:
        """What tells this vocabulary from others."""
        state = hashlib.sha256(repr((self.rows, list(self.added), sorted(self.tokenizer.ids))).encode())
        for maps in self.maps:
            for name in sorted(maps):
                state.update(name.encode() + maps[name].tobytes())
        return state.hexdigest()


def choose(
    wanted: str, models: Sequence[Model | None], given: Sequence[str | None], tensors: Tensors
) -> Vocabulary:
    """The vocabulary that ``wanted`` names; ``given[i]`` is how the user named ``models[i]`` (0 the base).

    Raises OptionError when it names none, UnsupportedError or BadFileError for tokenizers that cannot be
    matched, with the file, and for tensors that do not fit them, with the tensor.
    """
    whole = [i for i, model in enumerate(models) if model is not None and not model.updates]
    number = _number(wanted, models, given)
    found = {i: tokenizers.read(_at(models, i).folder) for i in whole}
    for i in whole:
        tokenizers.refuse_other_alphabet(found[number], found[i])
    told = {i: _at(models, i).checkpoint.config("config.json") or {} for i in whole}
    sizes = {i: _size(told[i], tensors[i] or {}, _at(models, i)) for i in whole}
    own = {i: _keys(found[i], sizes[i]) for i in whole}
    warnings = [text for i in whole if (text := _beyond(found[i], sizes[i]))]
    tokenizer, added = found[number], list[str]()
    if wanted == "union":
        tokenizer, added = tokenizers.union(tokenizer, [(found[i], sizes[i]) for i in whole if i != number])
    rows = max(sizes[number], *(tokenizer.ids[token] + 1 for token in added)) if added else sizes[number]
    keys: list[Key] = list(range(rows))
    for token, at in tokenizer.ids.items():
        if at < rows:
            keys[at] = token
    moves = {i: np.array([own[i].get(key, -1) for key in keys], np.int64) for i in whole}
    moved = any(len(own[i]) != rows or (moves[i] != np.arange(rows)).any() for i in whole)
    names = _tensors(models, tensors, sizes, told) if moved else []
    maps: list[dict[str, I64]] = [{} for _ in models]
    for i, entries in enumerate(tensors):
        rowmap = moves[i if i in moves else whole[0]]  # an adapter's tokens are the base's
        maps[i] = {name: rowmap for name in names if entries is not None and name in entries}
    for name in names:
        _refuse_rowless(name, [maps[i][name] for i in whole if name in maps[i]], keys)
    donor = whole[0]
    template = None
    if not tokenizers.has_template(_at(models, number).folder):
        others = [_at(models, i) for i in whole]
        template = next((model for model in others if tokenizers.has_template(model.folder)), None)
    if template is not None and wanted != "union":
        warnings.append(
            f"{_at(models, number).path} has no chat template, and so the result has none, though "
            f"{template.path} has one; --tokenizer union would keep it"
        )
        template = None
    config = configs.resized(told[donor], sizes[donor], rows)
    generation: dict[str, Any] = {}
    if number != donor:
        theirs = [_at(models, i).checkpoint.config(_GENERATION) or {} for i in (donor, number)]
        ids, lost = configs.special(told[donor], told[number], found[donor].ids, tokenizer.ids)
        config = configs.joined(config, ids)
        rival = {key: value for key, value in told[number].items() if key in theirs[0]} | theirs[1]
        generation, more = configs.special(theirs[0], rival, found[donor].ids, tokenizer.ids)
        warnings += [f"{key}: no such token in {wanted}, set to null" for key in dict.fromkeys(lost + more)]
    adapters = frozenset(i for i, model in enumerate(models) if model is not None and i not in whole)
    return Vocabulary(
        _at(models, number), tokenizer, added, rows, maps, adapters, template, config, generation, warnings
    )


def _at(models: Sequence[Model | None], number: int) -> Model:
    model = models[number]
    assert model is not None
    return model


def _number(wanted: str, models: Sequence[Model | None], given: Sequence[str | None]) -> int:
    """Which input gives the tokenizer."""
    present = [i for i, model in enumerate(models) if model is not None]
    if wanted == "union":
        return next(i for i in present if not _at(models, i).updates)
    if wanted == "base" and models[0] is not None:
        return 0
    for i in present:
        model = _at(models, i)
        if wanted == given[i] or _real(wanted) == model.path.resolve():
            if model.updates:
                raise OptionError(f"--tokenizer {wanted}: this adapter has the base's, which base names")
            return i
    if wanted == "base":
        raise OptionError("--tokenizer base: there is no base; name one of the models, or union")
    listed = ", ".join(str(given[i]) for i in present)
    raise OptionError(f"--tokenizer {wanted}: expected base, union, or one of the inputs: {listed}")


def _real(path: str) -> Path | None:
    try:
        return Path(path).resolve()
    except (OSError, ValueError):
        return None


def _size(config: Mapping[str, Any], entries: Mapping[str, Entry], model: Model) -> int:
    """Rows of a model's embedding, as its configuration has them."""
    named = configs.sizes(config)
    if not named:
        raise UnsupportedError(f"config.json of {model.path} tells no vocab_size, which --tokenizer needs")
    for size in named:
        if any(_NAMED.search(name) and entry.shape[:1] == (size,) for name, entry in entries.items()):
            return size
    if not any(entry.shape[:1] == (named[0],) for entry in entries.values()):
        raise UnsupportedError(
            f"{model.path}: config.json tells vocab_size {named[0]}, but no tensor has as many rows: which "
            "tensors have one for each token is unclear"
        )
    return named[0]


def _keys(tokenizer: Tokenizer, size: int) -> dict[Key, int]:
    """What each row stands for."""
    keys: dict[Key, int] = {token: row for token, row in tokenizer.ids.items() if row < size}
    keys |= {row: row for row in set(range(size)) - set(tokenizer.ids.values())}
    return keys


def _beyond(tokenizer: Tokenizer, size: int) -> str | None:
    tokens = [token for token, row in tokenizer.ids.items() if row >= size]
    if not tokens:
        return None
    return (
        f"{tokenizer.path}: {len(tokens)} tokens such as {tokens[0]!r} have ids beyond the {size} rows of "
        "the embedding: they count as lacking"
    )


def _tensors(
    models: Sequence[Model | None],
    tensors: Tensors,
    sizes: Mapping[int, int],
    told: Mapping[int, Mapping[str, Any]],
) -> list[str]:
    """Names of the tensors that have a row for each token, in all models that have them."""
    clear = all(configs.distinct(told[i], size) for i, size in sizes.items())
    names = []
    for name in dict.fromkeys(name for i in sizes for name in tensors[i] or ()):
        held = {i: entries[name] for i in sizes if name in (entries := tensors[i] or {})}
        fits = {i: entry.shape[:1] == (sizes[i],) for i, entry in held.items()}
        named = bool(_NAMED.search(name))
        if not named and not (clear and all(fits.values())):
            across = [i for i, entry in held.items() if clear and sizes[i] in entry.shape]
            if across:
                i = across[0]
                raise UnsupportedError(
                    f"{name} is {held[i].shape} in {_at(models, i).path}, of vocab_size {sizes[i]}, but "
                    "not all models have rows for tokens there: --tokenizer cannot re-index it"
                )
            continue
        for i, entry in held.items():
            if not fits[i] or entry.dtype not in FLOATS:
                raise UnsupportedError(
                    f"{name} is {entry.dtype} {entry.shape} in {_at(models, i).path}, whose vocab_size is "
                    f"{sizes[i]}: --tokenizer re-indexes floats with a row for each token"
                )
        names.append(name)
    return names


def _refuse_rowless(name: str, maps: Sequence[I64], keys: Sequence[Key]) -> None:
    """Every row must be some model's."""
    lacking = np.flatnonzero(np.max(np.stack(maps), axis=0) < 0)
    if len(lacking):
        raise UnsupportedError(
            f"{name}: no model that has this tensor has a row in it for token {keys[lacking[0]]!r}"
            + (f" and {len(lacking) - 1} others" if len(lacking) > 1 else "")
        )
