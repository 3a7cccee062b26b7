"""``extract``: what PEFT makes of the result is the fine-tune."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from paring.api import extract, load
from paring.errors import UnsupportedError
from tests.tuned import moved, put

IDS = torch.arange(12).reshape(2, 6)


def llama(folder: Path, *, tied: bool) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=tied, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    return model


def gpt2(folder: Path, *, tied: bool) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=16, tie_word_embeddings=tied,
            bos_token_id=None, eos_token_id=None,
        )
    ).eval()  # fmt: skip
    model.save_pretrained(folder)
    return model


def classifier(folder: Path, *, tied: bool) -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16,
    )  # fmt: skip
    model = BertForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks
@pytest.mark.filterwarnings("ignore:Found missing adapter keys.*lm_head:UserWarning")  # which PEFT ties
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to True but.*Linear:UserWarning")  # GPT-2's head
@pytest.mark.parametrize(("make", "tied"), [(llama, False), (llama, True), (gpt2, True), (classifier, True)])
def test_peft_makes_the_fine_tune_of_it(tmp_path: Path, make: Any, tied: bool) -> None:
    from peft import PeftModel

    base = make(tmp_path / "base", tied=tied)
    tuned = make(tmp_path / "tuned", tied=tied)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    tuned.save_pretrained(tmp_path / "tuned")
    before, expected = base(IDS).logits, tuned(IDS).logits
    report = extract(
        tmp_path / "tuned",
        tmp_path / "lora",
        base=tmp_path / "base",
        energy=1,
        embeddings=True,
        others="carry",
    )
    assert report.error is not None and report.error < 1e-6
    assert not report.left_out
    told = [text for text in report.warnings if "merge_and_unload adds its update twice" not in text]
    assert not told and len(report.warnings) == (tied and make is not classifier)
    model = PeftModel.from_pretrained(base, tmp_path / "lora").eval()
    assert (before - expected).abs().max() > 0.05
    torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-4, atol=1e-5)
    names = [name for name in load(tmp_path / "lora") if "lm_head" in name]
    assert len(names) == (0 if tied else 2)
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["fan_in_fan_out"] == (make is gpt2)
    assert config["task_type"] == (None if make is classifier else "CAUSAL_LM")
    assert config["base_model_name_or_path"] == str(tmp_path / "base")


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks
def test_a_new_head_is_written_whole(tmp_path: Path) -> None:
    """The base on disk has no classifier, and its names no ``bert.``; PEFT replaces a random head."""
    from peft import PeftModel

    model = classifier(tmp_path / "tuned", tied=True)
    model.bert.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "tuned")
    expected = model(IDS).logits
    given = {"base": tmp_path / "base", "energy": 1, "embeddings": True, "others": "carry"}
    with pytest.raises(UnsupportedError, match=r"classifier.* is in .*tuned but not in .*base"):
        extract(tmp_path / "tuned", tmp_path / "lora", **given)  # type: ignore[arg-type]
    report = extract(tmp_path / "tuned", tmp_path / "lora", missing="skip", **given)  # type: ignore[arg-type]
    assert not report.left_out
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_CLS" and "classifier" in config["modules_to_save"]
    fresh = classifier(tmp_path / "fresh", tied=True)
    fresh.bert.load_state_dict(dict(load(tmp_path / "base").items()), strict=False)
    torch.nn.init.normal_(fresh.classifier.weight)
    got = PeftModel.from_pretrained(fresh, tmp_path / "lora").eval()(IDS).logits
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", [1, 3])
def test_convolutions(tmp_path: Path, kernel: int) -> None:
    from peft import PeftModel

    torch.manual_seed(0)
    base, tuned = (
        torch.nn.ModuleDict({"conv": torch.nn.Conv2d(3, 8, kernel), "up": torch.nn.Linear(8, 4)})
        for _ in "ab"
    )
    extract(
        put(tmp_path / "tuned", tuned.state_dict()), tmp_path / "lora",
        base=put(tmp_path / "base", base.state_dict()), energy=1, others="carry",
    )  # fmt: skip
    x = torch.randn(2, 3, 5, 5)
    expected = tuned["conv"](x)
    model = PeftModel.from_pretrained(base, tmp_path / "lora")  # type: ignore[arg-type]
    torch.testing.assert_close(model.base_model.model["conv"](x), expected, rtol=1e-4, atol=1e-5)


def test_peft_is_pointed_at_what_was_extracted_alone(tmp_path: Path) -> None:
    """A name that ends another, of a module that has not changed or has another rank."""
    start = {
        "up.weight": torch.randn(8, 8),
        "deep.up.weight": torch.randn(8, 8),
        "x.up.weight": torch.randn(8, 8),
    }
    tuned = moved(start, only=lambda name: name != "x.up.weight")
    tuned["up.weight"] = start["up.weight"] + torch.ones(8, 8)
    extract(
        put(tmp_path / "tuned", tuned), tmp_path / "lora", base=put(tmp_path / "base", start), energy=0.99
    )
    from peft import PeftModel

    tree = {
        "up": torch.nn.Linear(8, 8),
        **{key: torch.nn.ModuleDict({"up": torch.nn.Linear(8, 8)}) for key in ("deep", "x")},
    }
    model = PeftModel.from_pretrained(torch.nn.ModuleDict(tree), tmp_path / "lora")  # type: ignore[arg-type]
    assert {name for name, _ in model.named_modules() if name.endswith(".up")} >= {"base_model.model.up"}
    assert {name for name, m in model.named_modules() if hasattr(m, "lora_A")} == {
        "base_model.model.up", "base_model.model.deep.up",
    }  # fmt: skip
