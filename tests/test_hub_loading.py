"""What was pushed, loaded by the libraries it is for; and where the token goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from paring import api
from tests.hub_server import HubServer
from tests.hubbing import ADAPTERS, paring, put

pytestmark = [
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),  # the client's own, over LFS
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # of PEFT
]
QUICK = ("--method", "compeft", "--density", "0.1")


def test_the_token_goes_to_the_hub_only(hub: HubServer, transport: str, tmp_path: Path) -> None:
    put(hub, "lab/rotten", ADAPTERS / "rotten")
    home = tmp_path / "home"
    told = ""
    packed = tmp_path / "a.paring.safetensors"
    made = ("compress", "lab/rotten", *QUICK, "--push-to-hub", "me/a", "-o", packed)
    for command in (
        (*made, "-v"),
        (*made, "--overwrite", "--debug"),
        ("decompress", "me/a", "-o", tmp_path / "back", "-v", "--json"),
        ("inspect", "me/none", "-v", "--debug"),
    ):
        if "--debug" in command:
            hub.fail("POST", "/validate-yaml", 500)
        done = paring(*command, HF_HOME=str(home))
        told += done.stdout + done.stderr
    assert "hf_owner" not in told and "Traceback" in told
    to_storage = [r for r in hub.log if r.to_storage]
    assert to_storage and not any("Authorization" in r.headers for r in to_storage)
    assert not any("hf_owner" in str(r.headers) + r.path for r in to_storage)
    assert {r.token for r in hub.log if not r.to_storage} == {"hf_owner"}
    for folder in (tmp_path, hub.store.folder):
        for path in folder.rglob("*"):
            assert not path.is_file() or b"hf_owner" not in path.read_bytes(), path


def test_peft_and_transformers_load_what_was_pushed(hub: HubServer, transport: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    import torch

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    for name in ("base", "a", "b"):
        transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / name)
        put(hub, f"lab/{name}", tmp_path / name)
    api.merge(["lab/a", "lab/b"], tmp_path / "merged", method="ties", base="lab/base")
    api.push(tmp_path / "merged", "me/merged", private=True)
    model = transformers.AutoModelForCausalLM.from_pretrained("me/merged")
    expected = api.load(tmp_path / "merged")
    for name, value in model.state_dict().items():
        if name in expected:
            assert torch.equal(value, expected[name]), name
    api.extract("lab/a", tmp_path / "lora", base="lab/base", rank=2)
    api.push(tmp_path / "lora", "me/lora")
    base = transformers.AutoModelForCausalLM.from_pretrained("lab/base")
    tuned = peft.PeftModel.from_pretrained(base, "me/lora")
    assert tuned.peft_config["default"].base_model_name_or_path == "lab/base"
    found = peft.get_peft_model_state_dict(tuned, save_embedding_layers=False)
    there = api.load(tmp_path / "lora")
    assert found.keys() == there.keys() and all(torch.equal(found[name], there[name]) for name in there)


def test_a_model_from_the_hub_is_run(hub: HubServer, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from tests import running

    put(hub, "lab/llama", running.put(tmp_path / "llama"))
    text = tmp_path / "text.txt"
    text.write_text(running.TEXT)
    here = api.evaluate(tmp_path / "llama", text, window=16)
    there = api.evaluate("lab/llama", text, window=16)
    assert here.perplexity == there.perplexity
    api.calibrate("lab/llama", text, tmp_path / "stats.safetensors", window=16, samples=2)
    assert (tmp_path / "stats.safetensors").exists()
