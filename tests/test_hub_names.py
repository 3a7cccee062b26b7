"""What is a name on the Hub, and what only a path."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paring.errors import OptionError
from paring.hub.names import Ref, is_repository, parse, ref_of, title, told

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("name", "ref"),
    [
        ("org/name", Ref("org/name")),
        ("org/name@main", Ref("org/name", "main")),
        ("org/name@refs/pr/1", Ref("org/name", "refs/pr/1")),
        ("org/name:sub/folder/", Ref("org/name", None, "sub/folder")),
        ("org/name@v1.0:a/b.safetensors", Ref("org/name", "v1.0", "a/b.safetensors")),
        ("org/pool#second", Ref("org/pool", None, "", "second")),
        ("org/name@v1:pool.safetensors#2", Ref("org/name", "v1", "pool.safetensors", "2")),
        ("meta-llama/Llama-3.2-1B", Ref("meta-llama/Llama-3.2-1B")),
        ("hf://org/name", Ref("org/name")),
        ("hf:/org/name", Ref("org/name")),  # what pathlib makes of it
        ("hf://models/org/name", Ref("org/name")),
        ("hf://gpt2", Ref("gpt2")),
        ("hf://org/name/sub/folder", Ref("org/name", None, "sub/folder")),
        ("hf://org/name@v1/sub", Ref("org/name", "v1", "sub")),
        ("hf://org/name@refs/pr/1/sub", Ref("org/name", "refs/pr/1", "sub")),
        ("hf://org/name@a/long/branch:sub", Ref("org/name", "a/long/branch", "sub")),
        ("hf://org/x.safetensors", Ref("org/x.safetensors")),
    ],
)
def test_names(name: str, ref: Ref) -> None:
    assert parse(name) == ref


@pytest.mark.parametrize(
    "path",
    [
        "model.safetensors", "/org/name", "./org/name", "../org/name", "~/org", "a/b/c", "org/name/", "name",
        "org/model.safetensors", "org/pytorch_model.bin", "org/recipe.yaml", "org/a--b", "org/.name", "",
        "org/name.", "-o/x", "C:/models", "org/na me", "org//name", "org/" + "n" * 96,
    ],
)  # fmt: skip
def test_paths(path: str) -> None:
    assert parse(path) is None


@pytest.mark.parametrize(
    "name", ["hf://", "hf://a b", "hf://org/a--b", "hf://spaces/org/name", "hf://org/x/../y"]
)
def test_what_insists_on_the_hub_must_be_a_model_there(name: str) -> None:
    with pytest.raises(OptionError):
        parse(name)


words = st.from_regex(r"[A-Za-z0-9_]{1,12}", fullmatch=True)


@settings(max_examples=40, deadline=None)
@given(words, words, st.none() | words, st.lists(words, max_size=3), st.just("") | words)
def test_what_is_written_is_read_back(
    org: str, name: str, revision: str | None, inside: list[str], member: str
) -> None:
    ref = Ref(f"{org}/{name}", revision, "/".join(inside), member)
    assert parse(str(ref)) == ref == parse(f"hf://{ref}")


@given(st.text(max_size=40))
def test_any_text_is_a_name_a_path_or_refused(text: str) -> None:
    try:
        ref = parse(text)
    except OptionError:
        assert text.startswith("hf:/") or ".." in text or "\0" in text
    else:
        assert ref is None or is_repository(ref.repo)


def test_paths_in_the_cache_are_told_by_commit() -> None:
    home = Path("/home/u/my cache/hub/models--org--na-me_x/snapshots") / COMMIT
    assert told(home) == f"org/na-me_x@{COMMIT}" and title(home) == "na-me_x"
    assert told(home / "a" / "b.safetensors") == f"org/na-me_x@{COMMIT}:a/b.safetensors"
    assert title(home / "a" / "b.safetensors") == "b"
    assert told(f"{home}/pool.safetensors#x") == f"org/na-me_x@{COMMIT}:pool.safetensors#x"
    assert ref_of(home.parent / "main") is None and told("a/b") == "a/b" and title("a/b") is None
