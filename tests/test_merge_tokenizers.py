"""``merge --tokenizer``: every token's row is its own, whatever ids the models gave it."""

import json
import shutil

import numpy as np
import pytest
import transformers
from click.testing import CliRunner

from paring.api import merge
from paring.checkpoint import open_checkpoint, write_safetensors
from paring.cli.merge import command
from paring.dtypes import from_f32
from paring.errors import BadFileError, OptionError, UnsupportedError
from tests.helpers import put_adapter
from tests.make_golden import LORA
from tests.test_merge_checkpoints import digest, refused, values
from tests.tokenizing import ADDED, EMBED, HEAD, KINDS, TEXTS, loaded, put, put_all, vocabulary


def reference(name, vocab, inputs, weights, base=None):
    """The plain rule, row by row: fp64 rows of the mean, or of base + sum of weighted deltas."""
    own = [(vocabulary(p), values(p)[name].astype(np.float64)) for p in inputs]
    kept = None if base is None else (vocabulary(base), values(base)[name].astype(np.float64))
    out = {}
    for token in vocab:
        has = [v[v_ids[token]] if token in v_ids else None for v_ids, v in own]
        mine = kept[1][kept[0][token]] if kept and token in kept[0] else None
        if mine is None:
            shares = [w if row is not None else 0 for w, row in zip(weights, has, strict=True)]
            parts = [w * row for w, row in zip(weights, has, strict=True) if row is not None]
            mine = sum(parts) / sum(shares) if parts else None
        rows = [mine if row is None else row for row in has]
        if base is None:
            out[token] = sum(w * row for w, row in zip(weights, rows, strict=True)) / sum(weights)
        else:
            out[token] = mine + sum(w * (row - mine) for w, row in zip(weights, rows, strict=True))
    return out


def agrees(out, inputs, weights, base=None, names=(EMBED,)):
    vocab = vocabulary(out)
    found = values(out)
    for name in names:
        for token, row in reference(name, vocab, inputs, weights, base).items():
            np.testing.assert_allclose(found[name][vocab[token]], row, rtol=1e-5, atol=1e-6, err_msg=token)
    return vocab


def loads(out, rows):
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert model.config.vocab_size == rows
    assert (model.get_input_embeddings().weight.detach().numpy() == values(out)[EMBED]).all()


# --- union


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_union_of_vocabularies(tmp_path, kind, tied):
    base, a, b = put_all(tmp_path, kind, tied=tied)
    out = tmp_path / "out"
    merge([a, b], out, base=base, method="task_arithmetic", weights=[0.7, 0.4], tokenizer="union")
    vocab = agrees(out, [a, b], [0.7, 0.4], base, (EMBED,) if tied else (EMBED, HEAD))
    theirs = [vocabulary(path) for path in (base, a, b)]
    assert set(vocab) == set().union(*theirs)
    # the base's ids, then what is new of a in its order, then of b
    expected = dict(theirs[0])
    for ids in theirs[1:]:
        for token in sorted(ids, key=ids.get):
            expected.setdefault(token, len(expected))
    assert vocab == expected
    loads(out, len(vocab))
    joined, own = loaded(out), [loaded(path) for path in (base, a, b)]
    for added in {token for tokens in ADDED.values() for token in tokens}:
        assert joined.convert_ids_to_tokens(joined(f"cat{added}")["input_ids"])[-1] == added
    for text in TEXTS["base"]:  # where no new token fits in
        ids = joined(text)["input_ids"]
        assert max(ids) >= len(theirs[0]) or ids == own[0](text)["input_ids"]
        assert joined.decode(ids) == own[0].decode(own[0](text)["input_ids"])
    for text in ("zebras run quickly", "quantum physics"):
        ids = joined(text)["input_ids"]
        assert max(ids) >= len(theirs[0]) and len(ids) < 0.8 * len(text)


def test_union_without_a_base_keeps_the_first_ids_and_weighs_alike(tmp_path):
    _, a, b = put_all(tmp_path)
    merge([b, a], tmp_path / "out", weights=[3, 1], tokenizer="union")
    vocab = agrees(tmp_path / "out", [b, a], [3, 1], names=(EMBED, HEAD))
    own = vocabulary(b)
    assert {token: vocab[token] for token in own} == own
    # a weight of zero gives no share of a row that others have, and all of one that none has
    merge([b, a], tmp_path / "zero", weights=[1, 0], tokenizer="union")
    only = next(token for token in vocabulary(a) if token not in own)
    assert (values(tmp_path / "zero")[EMBED][vocab[only]] == values(a)[EMBED][vocabulary(a)[only]]).all()


def test_new_merges_come_after_those_of_the_base_and_make_new_tokens(tmp_path):
    base, a, b = put_all(tmp_path)
    merge([base, a, b], tmp_path / "out", tokenizer="union")
    first, *others = (json.loads((p / "tokenizer.json").read_text())["model"] for p in (base, a, b))
    told = json.loads((tmp_path / "out" / "tokenizer.json").read_text())["model"]
    count = len(first["merges"])
    assert told["merges"][:count] == first["merges"]
    more = [tuple(pair) for pair in told["merges"][count:]]
    assert len(set(more)) == len(more) and all("".join(pair) not in first["vocab"] for pair in more)
    assert set(more) <= {tuple(pair) for other in others for pair in other["merges"]}
    assert not (tmp_path / "out" / "vocab.json").exists()


def test_padding_is_kept_and_taken_up(tmp_path):
    base, a = put(tmp_path / "base", "BPE", "base", 0, pad=20), put(tmp_path / "a", "BPE", "a", 1, pad=3)
    out = tmp_path / "out"
    merge([base, a], out, tokenizer="union")
    vocab = agrees(out, [base, a], [1, 1], names=(EMBED, HEAD))
    rows = values(base)[EMBED]
    assert len(rows) - 20 < len(vocab)
    size = max(len(rows), len(vocab))
    assert len(values(out)[EMBED]) == size
    loads(out, size)
    # to the same vocabulary, rows that are no token's go by their numbers
    merge([a, base], tmp_path / "to_base", tokenizer=str(base))
    found = values(tmp_path / "to_base")[EMBED]
    assert found.shape == rows.shape
    assert (found[-1] == rows[-1]).all()  # a has no such row


# --- one input's


@pytest.mark.parametrize("kind", KINDS)
def test_the_vocabulary_of_one_input(tmp_path, kind):
    base, a, b = put_all(tmp_path, kind)
    ids = vocabulary(base)
    only = next(ids[token] for token in ids if token not in vocabulary(a))
    change(base, lambda told: told.update(image_token_id=ids["<pad>"], sep_token_id=only), "config.json")
    merge([a, b], tmp_path / "x", base=base, method="task_arithmetic", tokenizer="base")
    assert agrees(tmp_path / "x", [a, b], [1, 1], base, (EMBED, HEAD)) == vocabulary(base)
    word = str(a / "../a")
    report = merge([a, b], tmp_path / "y", base=base, method="task_arithmetic", tokenizer=word)
    assert agrees(tmp_path / "y", [a, b], [1, 1], base, (EMBED, HEAD)) == vocabulary(a)
    assert (tmp_path / "y" / "tokenizer.json").read_bytes() == (a / "tokenizer.json").read_bytes()
    # special tokens are numbered as that vocabulary has them
    eos = vocabulary(a)["<eos>"]
    assert eos != vocabulary(base)["<eos>"]
    config = json.loads((tmp_path / "y" / "config.json").read_text())
    assert config["eos_token_id"] == eos and config["pad_token_id"] == vocabulary(a)["<pad>"]
    assert config["image_token_id"] == config["pad_token_id"] and config["sep_token_id"] is None
    assert "sep_token_id: no such token" in " ".join(report.warnings)
    assert json.loads((tmp_path / "y" / "generation_config.json").read_text()) == {"eos_token_id": [eos]}
    loads(tmp_path / "y", len(vocabulary(a)))


def test_chat_templates(tmp_path):
    base = put(tmp_path / "base", "BPE", "base", 0)
    a = put(tmp_path / "a", "BPE", "a", 1, template="A{{ messages }}")
    b = put(tmp_path / "b", "BPE", "b", 2, template="B{{ messages }}")
    merge([base, a, b], tmp_path / "u", tokenizer="union")
    assert loaded(tmp_path / "u").chat_template == "A{{ messages }}"
    merge([b, a], tmp_path / "v", tokenizer="union")
    assert loaded(tmp_path / "v").chat_template == "B{{ messages }}"
    report = merge([a, base], tmp_path / "w", tokenizer=str(base))
    assert loaded(tmp_path / "w").chat_template is None
    assert "has no chat template" in " ".join(report.warnings)
    # in tokenizer_config.json, as older files have it; those list added tokens there as well
    change(a, lambda told: told.update(chat_template="C"), "tokenizer_config.json")
    change(base, lambda told: told.update(added_tokens_decoder={}), "tokenizer_config.json")
    (a / "chat_template.jinja").unlink()
    merge([base, a], tmp_path / "x", tokenizer="union")
    assert loaded(tmp_path / "x").chat_template == "C"
    listed = json.loads((tmp_path / "x" / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    ids = vocabulary(tmp_path / "x")
    assert {number: entry["content"] for number, entry in listed.items()} == {
        str(ids["<|user|>"]): "<|user|>"
    }


# --- what stays as it is


def test_equal_vocabularies_give_the_same_bytes(tmp_path):
    a, b = (put(tmp_path / f"m{i}", "BPE", "a", i, pad=2) for i in range(2))
    merge([a, b], tmp_path / "plain")
    for number, word in enumerate(("union", str(b))):
        out = tmp_path / str(number)
        merge([a, b], out, tokenizer=word)
        assert digest(out) == digest(tmp_path / "plain")
        for name in ("tokenizer.json", "config.json", "tokenizer_config.json"):
            assert (out / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


def test_without_the_option_vocabularies_must_agree(tmp_path):
    _, a, b = put_all(tmp_path)
    refused(UnsupportedError, "vocabularies differ; add --tokenizer", tmp_path, [a, b], tmp_path / "out")


def test_bits_do_not_depend_on_threads_and_spans(tmp_path, monkeypatch):
    _, a, b = put_all(tmp_path)
    merge([a, b], tmp_path / "out", tokenizer="union")
    whole = digest(tmp_path / "out")
    from paring.merging import models as merging

    monkeypatch.setattr(merging, "SPAN", 21)  # no multiple of a row
    monkeypatch.setattr(merging, "CHUNK", 7)
    merge([a, b], tmp_path / "parts", tokenizer="union", threads=3)
    assert digest(tmp_path / "parts") == whole


def test_dtypes_mix_and_lacking_tokens_have_no_delta(tmp_path):
    base = put(tmp_path / "base", "BPE", "base", 0, dtype="BF16")
    a, b = put(tmp_path / "a", "BPE", "a", 1), put(tmp_path / "b", "BPE", "b", 2, dtype="F16")
    out = tmp_path / "out"
    merge([a, b], out, base=base, method="task_arithmetic", weights=[5, -9], tokenizer="union", dtype="fp32")
    vocab, ids = vocabulary(out), [vocabulary(path) for path in (base, a, b)]
    alone = [t for t in vocab if t not in ids[0] and t in ids[1] and t not in ids[2]]
    rows = [vocab[t] for t in alone]
    assert alone and (values(out)[EMBED][rows] == values(a)[EMBED][[ids[1][t] for t in alone]]).all()
    assert open_checkpoint(out).tensors[EMBED].dtype == "F32"


def test_adapters_update_the_tokens_of_their_base(tmp_path):
    base, a, _ = put_all(tmp_path)
    ids, rng = vocabulary(base), np.random.default_rng(7)
    left, right = rng.standard_normal((len(ids), 2)), rng.standard_normal((2, 8))
    prefix = "base_model.model.lm_head.lora_"
    factors = {f"{prefix}A.weight": right, f"{prefix}B.weight": left}
    config = LORA | {"r": 2, "lora_alpha": 2, "target_modules": ["lm_head"]}
    stored = {n: from_f32(x.astype(np.float32), "F32") for n, x in factors.items()}
    adapter = put_adapter(tmp_path / "lora", stored, config)
    out = tmp_path / "out"
    for models, more in ([a], 0 * left @ right), ([a, adapter], left @ right):
        merge(models, out, base=base, method="task_arithmetic", tokenizer="union", overwrite=True)
        vocab, found = vocabulary(out), values(out)[HEAD]
        expected = reference(HEAD, vocab, [a], [1], base)
        for token, row in expected.items():
            update = more[ids[token]] if token in ids else 0
            np.testing.assert_allclose(found[vocab[token]], row + update, rtol=1e-5, atol=1e-5)
    refused(OptionError, "is for checkpoints", tmp_path, [adapter], tmp_path / "x", tokenizer="union")
    refused(
        OptionError, "this adapter", tmp_path, [adapter], tmp_path / "x", into=base, tokenizer=str(adapter)
    )


def test_on_the_command_line(tmp_path):
    _, a, b = put_all(tmp_path)
    run = CliRunner().invoke(command, [str(a), str(b), "--tokenizer", "union", "-o", str(tmp_path / "out")])
    assert run.exit_code == 0, run.output
    merge([a, b], tmp_path / "same", tokenizer="union")
    assert digest(tmp_path / "out") == digest(tmp_path / "same")


# --- what is refused


def test_options_that_cannot_be_meant(tmp_path):
    base, a, b = put_all(tmp_path)
    out = tmp_path / "out"
    refused(OptionError, "there is no base", tmp_path, [a, b], out, tokenizer="base")
    refused(OptionError, "expected base, union, or one of", tmp_path, [a, b], out, tokenizer=str(base))
    refused(OptionError, "name a folder", tmp_path, [a, b], tmp_path / "o.safetensors", tokenizer="union")


def change(folder, edit, name="tokenizer.json"):
    told = json.loads((folder / name).read_text())
    edit(told)
    (folder / name).write_text(json.dumps(told))


def test_tokenizers_that_cannot_be_matched(tmp_path):
    base, a, _ = put_all(tmp_path)
    out = tmp_path / "out"
    words, pieces, plain = (put(tmp_path / k, k, n, 3) for k, n in zip(KINDS[1:], "aab", strict=True))
    refused(UnsupportedError, "equal strings are other tokens", tmp_path, [a, words], out, tokenizer="union")
    refused(UnsupportedError, "bytes, those of", tmp_path, [a, pieces], out, tokenizer=str(a))
    refused(UnsupportedError, "there is no union", tmp_path, [plain, pieces], out, tokenizer="union")
    merge([plain, pieces], out, tokenizer=str(plain))
    for edit, match in [
        (lambda t: t["model"]["vocab"].update(e=t["model"]["vocab"]["a"]), "have the same id"),
        (lambda t: t["added_tokens"][0].update(id=999), "will be loaded as"),
        (lambda t: t["added_tokens"].append(t["added_tokens"][0]), "given twice"),
        (lambda t: t.update(model=[]), "no model with a vocabulary"),
        (lambda t: t["model"]["vocab"].update(e="1"), "an id is not a number"),
        (lambda t: t["model"]["merges"].append(["zebra", "zz"]), None),  # makes no token: left alone
    ]:
        shutil.copytree(a, tmp_path / "odd")
        change(tmp_path / "odd", edit)
        if match:
            refused(BadFileError, match, tmp_path, [base, tmp_path / "odd"], out, tokenizer="union")
        else:
            merge([base, tmp_path / "odd"], out, tokenizer="union", overwrite=True)
        shutil.rmtree(tmp_path / "odd")
    (a / "tokenizer.json").rename(a / "tokenizer.model")
    refused(
        UnsupportedError, "no tokenizer.json, .*AutoTokenizer", tmp_path, [base, a], out, tokenizer="union"
    )
    (a / "tokenizer.model").unlink()
    refused(UnsupportedError, "holds no tokenizer.json", tmp_path, [base, a], out, tokenizer="union")


def test_checkpoints_that_do_not_fit_their_tokenizers(tmp_path):
    base, a, _ = put_all(tmp_path)
    out = tmp_path / "out"
    size = len(vocabulary(a))
    change(a, lambda told: told.update(vocab_size=size + 5), "config.json")
    refused(UnsupportedError, f"vocab_size {size + 5}, but no", tmp_path, [base, a], out, tokenizer="union")
    change(a, lambda told: told.pop("vocab_size"), "config.json")
    refused(UnsupportedError, "tells no vocab_size", tmp_path, [base, a], out, tokenizer="union")
    # an embedding without rows for the last tokens
    change(a, lambda told: told.update(vocab_size=size - 2), "config.json")
    cut = {n: x[: size - 2] if n in (EMBED, HEAD) else x for n, x in values(a).items()}
    tensors = {n: from_f32(x, "F32", n) for n, x in cut.items()}
    write_safetensors(a / "model.safetensors", tensors, {"format": "pt"}, overwrite=True)
    report = merge([base, a], out, tokenizer="union")
    assert "2 tokens such as '<|user|>' have ids beyond" in " ".join(report.warnings)
    assert "<|user|>" not in vocabulary(out)
    refused(
        UnsupportedError, "no model that has .* a row", tmp_path, [a, base], tmp_path / "x", tokenizer="union"
    )
