"""Cards: what their header says, which the Hub goes by, and what they tell people."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from paring import api, card, describing
from paring.card import Card, Evaluation
from paring.errors import BadFileError, OptionError
from paring.retyping import command_of
from tests.hub_server import HubServer
from tests.hubbing import ADAPTERS, held, paring, put
from tests.merging import arrays, put_model

BASE = arrays(0)


def pushed(hub: HubServer, repo: str) -> ModelCard:
    """The card of a repository, as the client reads it; the Hub's own check has passed it."""
    return ModelCard(held(hub, repo)["README.md"].decode())


@pytest.fixture
def models(hub: HubServer, tmp_path: Path) -> None:
    for i, name in enumerate(("base", "a", "b")):
        folder = put_model(tmp_path / name, arrays(i, BASE) if i else BASE)
        licence = "apache-2.0" if i < 2 else "mit"
        (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\nA model.\n")
        put(hub, f"lab/{name}", folder)
        shutil.rmtree(folder)


def test_a_merged_model(hub: HubServer, models: None, tmp_path: Path) -> None:
    api.merge(["lab/a", "lab/base"], tmp_path / "one", method="linear", weights=[0.25, 1])
    api.push(tmp_path / "one", "me/one")
    found = pushed(hub, "me/one")
    assert found.data.base_model == ["lab/a", "lab/base"] and found.data.base_model_relation == "merge"
    assert found.data.license == "apache-2.0"  # of both
    assert found.data.library_name == "transformers" and {"merge", "paring"} <= set(found.data.tags or ())
    commit = hub.store.repos["lab/a"].branches["main"]
    for text in (
        f"merge lab/a@{commit} lab/base@", "--weights 0.25,1.0 ", "arXiv:2203.05482", "tensors merged",
        'AutoModelForCausalLM.from_pretrained("me/one")', '"method": "linear"',
    ):  # fmt: skip
        assert text in found.text, text
    api.merge(["lab/a", "lab/b"], tmp_path / "two", base="lab/base", method="ties")
    api.push(tmp_path / "two", "me/two")
    assert pushed(hub, "me/two").data.license is None  # they differ
    assert pushed(hub, "me/two").data.base_model == ["lab/base", "lab/a", "lab/b"]


def test_the_command_on_a_card_makes_the_same_file(hub: HubServer, models: None, tmp_path: Path) -> None:
    api.merge(["lab/a", "lab/b"], tmp_path / "out", base="lab/base", method="ties", density=0.3, scale=0.5)
    text = (tmp_path / "out" / "README.md").read_text()
    line = text.partition("```bash\n")[2].partition("\n```")[0]
    words = [word if word != "OUT" else str(tmp_path / "again") for word in shlex.split(line)]
    assert paring(*words).returncode == 0
    weights = "model.safetensors"
    assert (tmp_path / "again" / weights).read_bytes() == (tmp_path / "out" / weights).read_bytes()


def test_packed_files(hub: HubServer, tmp_path: Path) -> None:
    folder = tmp_path / "rotten"
    shutil.copytree(ADAPTERS / "rotten", folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    put(hub, "lab/rotten", folder)
    api.compress("lab/rotten", tmp_path / "x.paring.safetensors", method="compeft", ratio=20)
    api.push(tmp_path / "x.paring.safetensors", "me/x")
    found = pushed(hub, "me/x")
    assert (found.data.base_model, found.data.base_model_relation) == (["lab/rotten"], "quantized")
    assert (found.data.license, found.data.library_name) == ("mit", "paring")  # the Hub knows the licence
    for text in ("--ratio 20", "--method compeft", "arXiv:2311.13171", "1,038,496 bytes", "relative error"):
        assert text in found.text, text
    assert 'load_into(peft_model, "me/x"' in found.text and "paring decompress me/x -o x/" in found.text
    # of an adapter that is here, all that is known is what it is for
    api.compress(folder, tmp_path / "y.paring.safetensors", method="compeft", density=0.1)
    api.push(tmp_path / "y.paring.safetensors", "me/y")
    told = pushed(hub, "me/y").data
    assert told.base_model == ["sentence-transformers/all-MiniLM-L6-v2"]
    assert told.base_model_relation == "adapter" and str(folder) not in pushed(hub, "me/y").text


def test_merged_adapters_and_extracted_ones(hub: HubServer, models: None, tmp_path: Path) -> None:
    api.merge([ADAPTERS / "rotten", ADAPTERS / "brown"], tmp_path / "out")
    api.push(tmp_path / "out", "me/out")
    told = pushed(hub, "me/out")
    assert told.data.base_model == ["sentence-transformers/all-MiniLM-L6-v2"]
    assert (told.data.base_model_relation, told.data.library_name) == ("adapter", "peft")
    assert "relative error against the exact merge" in told.text
    assert 'PeftModel.from_pretrained(base, "me/out")' in told.text
    api.extract("lab/a", tmp_path / "lora", base="lab/base", rank=2)
    api.push(tmp_path / "lora", "me/lora")
    assert pushed(hub, "me/lora").data.base_model == ["lab/base"]
    assert pushed(hub, "me/lora").data.base_model_relation == "adapter"


def test_evaluations_become_a_model_index(hub: HubServer, tmp_path: Path) -> None:
    file = tmp_path / "evaluations.json"
    rows = [
        {"task": "text-classification", "dataset": "rotten_tomatoes", "metric": "accuracy", "value": 0.84},
        {
            "task": "text-classification", "dataset": "glue", "config": "sst2", "split": "test",
            "metric": "f1", "value": 1,
        },
    ]  # fmt: skip
    file.write_text(json.dumps(rows))
    done = paring("push", ADAPTERS / "rotten", "me/x", "--evaluations", file)
    assert done.returncode == 0, done.stderr
    found = pushed(hub, "me/x")
    assert [r.metric_value for r in found.data.eval_results or ()] == [0.84, 1]
    index = card.index("x", [Evaluation(**row) for row in rows])
    _, results = model_index_to_eval_results(index)
    assert (results[1].dataset_config, results[1].dataset_split, results[1].task_type) == (
        "sst2", "test", "text-classification",
    )  # fmt: skip
    assert "| rotten_tomatoes | accuracy | 0.84 |" in found.text


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[1]", '[{"task": "a"}]', '[{"task": "a", "dataset": "b", "metric": "c", "value": "d"}]'],
)  # fmt: skip
def test_evaluations_that_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "e.json").write_text(text)
    with pytest.raises(OptionError, match="--evaluations"):
        card.evaluations(tmp_path / "e.json")
    with pytest.raises(OptionError, match="not found"):
        card.evaluations(tmp_path / "none.json")


def test_a_card_of_ones_own_stays(hub: HubServer, tmp_path: Path) -> None:
    folder = put_model(tmp_path / "model", arrays(1))
    text = "---\r\nlicense: mit\r\ncustom: [1, ü]\r\n---\r\n# Mine\r\n\r\nBy hand.\r\n"
    (folder / "README.md").write_bytes(text.encode())
    api.push(folder, "me/x")
    assert held(hub, "me/x")["README.md"] == text.encode()
    api.push(folder, "me/x", evaluations=[Evaluation("t", "d", "m", 0.5)])
    header, body = card.split(held(hub, "me/x")["README.md"].decode())
    assert header["custom"] == [1, "ü"] and header["license"] == "mit" and "By hand." in body
    assert (folder / "README.md").read_bytes() == text.encode()


def test_headers() -> None:
    text = card.render(Card("t", "i", base=["a/b", "a/b", "c/d"], relation="merge", tags=["x", "x"]))
    assert card.split(text)[0] == {
        "base_model": ["a/b", "c/d"], "base_model_relation": "merge", "tags": ["x", "paring"],
    }  # fmt: skip
    assert card.split("no header") == ({}, "no header")
    assert card.split("---\na: 1\n---")[0] == {"a": 1}
    for bad in ("---\n- 1\n---\n", "---\na: [\n---\n", "---\n!!python/object:os.system {}\n---\n"):
        with pytest.raises(BadFileError, match=r"README\.md"):
            card.split(bad)
    assert card.repositories(["a/b@main", "a/b", "./x", None, 3, "c/d:sub"]) == ["a/b", "c/d"]


def test_a_model_pruned_to_one_file(tmp_path: Path) -> None:
    model = put_model(tmp_path / "model", arrays(0), "BF16")
    api.prune(model, tmp_path / "x.safetensors", sparsity=".5", include=("*",))
    text = describing.of_file(tmp_path / "x.safetensors", "me/x")
    assert "Pruned by paring" in text and "--sparsity 0.5" in text and "Method `magnitude`" in text
    assert card.split(text)[0]["tags"] == ["prune", "paring"]


def test_what_no_command_line_can_say() -> None:
    told = {"command": "merge", "models": ["a b", "c"], "method": "linear", "options": {"normalise": False}}
    assert command_of(told, "OUT") == "merge 'a b' c --method linear --no-normalise -o OUT"
    for more in (
        {"stages": {"x": {}}},
        {"patterns": [["a", 0, 1]]},
        {"weights": [[0, 1], 1]},
        {"layers": [[0, 1]]},
    ):
        assert command_of({**told, **more}, "OUT") is None


def test_commands_of_other_kinds() -> None:
    told = {"command": "prune", "model": "a/b", "sparsity": "0.5", "tail": "error", "budgets": {"x*": "0.1"}}
    more = {"method": "magnitude", "include": ["p*", "q*"], "refit": True}
    assert command_of({**told, **more}, "OUT") == (
        "prune a/b --method magnitude --sparsity 0.5 --budget 'x*=0.1' --include 'p*' --include 'q*' --refit "
        "-o OUT"
    )
    told = {"command": "prune", "model": "m", "mask": "k", "method": "magnitude", "shard_size": 9}
    assert command_of(told, "OUT") == "paring mask apply k m --shard-size 9 -o OUT"
    told = {"command": "shrink", "model": "m", "layers": 2, "drop_layers": [0, 3], "layers_by": "even"}
    assert command_of(told, "OUT") == "paring shrink m --layers 2 --drop-layers 0,3 -o OUT"
    told = {
        "command": "extract",
        "tuned": "t",
        "base": "b",
        "energy": 0.9,
        "modules": ["*q", "*k"],
        "others": "carry",
    }
    assert command_of(told, "OUT") == (
        "paring extract t --base b --energy 0.9 --modules '*q' --modules '*k' --others carry -o OUT"
    )
