"""Tokenizers of the models, as ``tokenizer.json`` tells them: which token has which id, and their union.

Tokens are the same when their strings are, which holds only within one alphabet: tokenizers on bytes and on
text, or with other marks for spaces and parts of words, are not compared but refused.

The union keeps all of the first tokenizer: its ids, normaliser, splitting and special tokens. New tokens get
the ids that follow, and go into the model's own vocabulary:

- BPE: with the merges of their model that make a new token, after all merges that were there, so that text is
  encoded as before until a new token can be made of it. A token that no merge leads to is never encoded, but
  has its id and is decoded.
- Unigram: as pieces with their own scores. WordPiece, WordLevel: as entries.
- Added tokens (special or not) stay added tokens, with their flags.

Ordinary tokens of another kind of model (BPE into Unigram) are refused: as added tokens they would be cut out
of the middle of words, and change how all text is encoded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from paring.checkpoint import MAX_CONFIG
from paring.errors import BadFileError, UnsupportedError
from paring.untrusted import read_json

FILE = "tokenizer.json"
CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template"
#: where chat templates are kept beside the configuration
TEMPLATES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")
MAX_BYTES = 200_000_000
#: what other tokenizers are kept in
_OTHER = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt",
          "tekken.json", "tiktoken.model", "qwen.tiktoken")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """One ``tokenizer.json``: ``ids`` of all tokens, ``own`` those of the model without ``added`` ones.

    ``alphabet`` is what a token's string is made of, and its marks for parts of words.
    """

    path: Path
    told: Mapping[str, Any]
    kind: str
    alphabet: tuple[str, str, str]
    own: Mapping[str, int]
    added: Mapping[str, Mapping[str, Any]]
    ids: Mapping[str, int]

    @property
    def model(self) -> Mapping[str, Any]:
        """Its section of that name."""
        found: Mapping[str, Any] = self.told["model"]
        return found


def read(folder: Path) -> Tokenizer:
    """The tokenizer in a checkpoint's folder. Raises UnsupportedError when that holds no ``tokenizer.json``,
    BadFileError for a damaged one, and for ids that are double or not those that it would be loaded with.
    """
    path = folder / FILE
    if not path.exists():
        other = next((name for name in _OTHER if (folder / name).exists()), None)
        if other:
            raise UnsupportedError(
                f"{folder} holds {other} but no {FILE}, which --tokenizer needs: load it with AutoTokenizer "
                "of transformers and save_pretrained writes one"
            )
        raise UnsupportedError(
            f"{folder} holds no {FILE}, which --tokenizer needs: copy that of the model it was tuned from"
        )
    return parse(path, read_json(path, MAX_BYTES))


def parse(path: Path, told: Mapping[str, Any]) -> Tokenizer:
    """What ``told``, the contents of ``path``, says. Raises BadFileError, UnsupportedError for a kind that is
    unknown.
    """

    def bad(what: str) -> NoReturn:
        raise BadFileError(f"{path}: {what}: get the file again")

    model = told.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict | list):
        bad("no model with a vocabulary")
    vocab = model["vocab"]
    kind = model.get("type") or _kind(model)
    if (kind == "Unigram") != isinstance(vocab, list) or kind not in _KINDS:
        raise UnsupportedError(f"{path}: a tokenizer of type {kind!r}, of which paring knows nothing")
    if isinstance(vocab, list):
        if not all(isinstance(p, list) and len(p) == 2 and isinstance(p[0], str) for p in vocab):
            bad("a piece of the vocabulary is not a string with its score")
        own = {piece: number for number, (piece, _) in enumerate(vocab)}
        if len(own) < len(vocab):
            bad(f"the token {next(p for i, (p, _) in enumerate(vocab) if own[p] != i)!r} is given twice")
    else:
        own = vocab
        if not all(type(number) is int and number >= 0 for number in own.values()):
            bad("an id is not a number")
        _refuse_double(own, path)
    listed = told.get("added_tokens") or []
    if not isinstance(listed, list) or not all(
        isinstance(t, dict) and isinstance(t.get("content"), str) and type(t.get("id")) is int for t in listed
    ):
        bad("added_tokens must have a content and an id each")
    added = {token["content"]: token for token in listed}
    if len(added) < len(listed):
        bad("an added token is given twice")
    ids = dict(own)
    last = -1
    for token, entry in added.items():
        # what is not in the model's vocabulary is numbered when it is loaded, whatever the file says
        number = own.get(token, max(last + 1, len(own)))
        last = max(last, number)
        if entry["id"] != number:
            raise BadFileError(
                f"{path}: added token {token!r} has id {entry['id']}, but will be loaded as {number}: "
                "which row it means is unclear; save the tokenizer again as it should be"
            )
        ids[token] = number
    _refuse_double(ids, path)
    return Tokenizer(path, told, kind, _alphabet(told), own, added, ids)


_KINDS = ("BPE", "Unigram", "WordPiece", "WordLevel")


def _kind(model: Mapping[str, Any]) -> str:
    if isinstance(model["vocab"], list):
        return "Unigram"
    if "merges" in model:
        return "BPE"
    return "WordPiece" if "continuing_subword_prefix" in model else "WordLevel"


def _refuse_double(ids: Mapping[str, int], path: Path) -> None:
    if len(set(ids.values())) == len(ids):
        return
    seen: dict[int, str] = {}
    for token, number in ids.items():
        if number in seen:
            raise BadFileError(f"{path}: {seen[number]!r} and {token!r} have the same id, {number}")
        seen[number] = token


def _alphabet(told: Mapping[str, Any]) -> tuple[str, str, str]:
    parts = [part for key in ("normalizer", "pre_tokenizer", "decoder") for part in _parts(told.get(key))]
    kinds = {part.get("type") for part in parts}
    letters = "text"
    if "ByteLevel" in kinds:
        letters = "bytes"
    elif "Metaspace" in kinds or any("▁" in (p.get("content"), p.get("pattern")) for p in parts):
        letters = "text with ▁ for spaces"
    model = told["model"]
    prefix = "##" if model.get("type") == "WordPiece" else ""
    prefix = model.get("continuing_subword_prefix", prefix) or ""
    return letters, prefix, model.get("end_of_word_suffix") or ""


def _parts(part: Any) -> Iterator[Mapping[str, Any]]:
    """A normaliser, pre-tokenizer or decoder, and all inside it."""
    todo = [part]
    while todo:
        part = todo.pop()
        if isinstance(part, dict):
            yield part
            todo += part.values()
        elif isinstance(part, list):
            todo += part


def refuse_other_alphabet(first: Tokenizer, other: Tokenizer) -> None:
    """Raise UnsupportedError when equal strings are not equal tokens."""
    if first.alphabet == other.alphabet:
        return
    marks = [
        f"{t.alphabet[0]}" + "".join(f", {mark!r} in parts of words" for mark in t.alphabet[1:] if mark)
        for t in (first, other)
    ]
    raise UnsupportedError(
        f"tokens of {first.path} are {marks[0]}, those of {other.path} {marks[1]}: equal strings are other "
        "tokens there, so these vocabularies cannot be matched"
    )


def union(first: Tokenizer, others: Sequence[tuple[Tokenizer, int]]) -> tuple[Tokenizer, list[str]]:
    """``first`` with the tokens of others that it lacks, in their order, of ids below the number beside each
    tokenizer; and these tokens. ``first`` itself when there are none.

    Raises UnsupportedError when kinds of models do not go together, BadFileError for merges of parts that are
    no tokens.
    """
    following = max(first.ids.values(), default=-1) + 1
    new: dict[str, int] = {}
    givers: dict[str, Tokenizer] = {}
    for other, rows in others:
        for token in sorted(other.ids, key=other.ids.__getitem__):
            if token in first.ids or token in new or other.ids[token] >= rows:
                continue
            if token not in other.added and other.kind != first.kind:
                raise UnsupportedError(
                    f"{other.path} is {other.kind} and has tokens such as {token!r} that {first.path}, "
                    f"{first.kind}, lacks: there is no union; use --tokenizer base or one model's"
                )
            new[token], givers[token] = following + len(new), other
    if not new:
        return first, []
    model = dict(first.model)
    whole = {**first.ids, **new}
    if isinstance(model["vocab"], list):
        scores = dict.fromkeys(whole, 0.0)  # as added tokens have in such vocabularies
        scores |= dict(model["vocab"])
        for token, giver in givers.items():
            if token in giver.own and giver.kind == "Unigram":
                scores[token] = giver.model["vocab"][giver.own[token]][1]
        # the pieces' places are their ids: added tokens, which follow the pieces, become pieces
        model["vocab"] = [[token, scores[token]] for token in sorted(whole, key=whole.__getitem__)]
    else:
        model["vocab"] = whole
    if first.kind == "BPE":
        model["merges"] = _merges(first, givers, whole)
    added = [dict(entry) for entry in first.added.values()]
    added += [
        {**giver.added[token], "id": new[token]} for token, giver in givers.items() if token in giver.added
    ]
    told = {**first.told, "model": model, "added_tokens": sorted(added, key=lambda entry: int(entry["id"]))}
    joined = parse(first.path, told)
    assert joined.ids == whole, "the union's ids are as they were given"
    return joined, list(new)


def _merges(
    first: Tokenizer, givers: Mapping[str, Tokenizer], whole: Mapping[str, int]
) -> list[list[str]] | list[str]:
    """The first one's merges, then those of others that make a new ordinary token."""
    pairs = _pairs(first)
    known = set(pairs)
    for other in {id(giver): giver for giver in givers.values() if giver.kind == "BPE"}.values():
        for left, right in _pairs(other):
            made = left + right[len(other.alphabet[1]) :]
            if givers.get(made) is not other or made in other.added or (left, right) in known:
                continue
            if left not in whole or right not in whole:
                raise BadFileError(f"{other.path}: merges {left!r} and {right!r}, which are not both tokens")
            known.add((left, right))
            pairs.append((left, right))
    plain = all(isinstance(pair, str) for pair in first.model.get("merges", ()))
    if plain and not any(re.search(r"\s", left + right) for left, right in pairs):
        return [f"{left} {right}" for left, right in pairs]
    return [[left, right] for left, right in pairs]


def _pairs(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    pairs = []
    for pair in tokenizer.model.get("merges") or ():
        parts = pair.split(" ") if isinstance(pair, str) else pair
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(p, str) for p in parts):
            raise BadFileError(f"{tokenizer.path}: {pair!r} is no merge of two tokens: get the file again")
        pairs.append((parts[0], parts[1]))
    return pairs


def has_template(folder: Path) -> bool:
    """Whether a model's folder has a chat template."""
    return any((folder / name).exists() for name in TEMPLATES) or TEMPLATE in config(folder)


def config(folder: Path) -> dict[str, Any]:
    """``tokenizer_config.json`` of a model's folder; empty where there is none."""
    path = folder / CONFIG
    return read_json(path, MAX_CONFIG) if path.exists() else {}
