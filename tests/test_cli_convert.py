"""The command line of ``convert``."""

import json

import pytest
from click.testing import CliRunner

from paring.cli import paring
from tests.helpers import put_adapter
from tests.test_adapters import pair, tensor
from tests.test_adapters_derived import LOHA, loha

CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 3}


@pytest.fixture
def source(tmp_path):
    return put_adapter(tmp_path / "a", pair() | {"extra": tensor(3)}, CONFIG)


def run(*arguments):
    return CliRunner().invoke(paring, ["convert", *map(str, arguments)])


def test_the_scale_and_its_source_are_printed(source, tmp_path):
    result = run(source, "--dialect", "kohya", "-o", tmp_path / "k.safetensors")
    assert result.exit_code == 0, result.output
    assert "peft → kohya" in result.output
    assert "1.5 = lora_alpha / r; alpha; 1 modules" in result.output
    assert "unknown tensor" in result.output and "error    none" in result.output
    assert "extra among them" in result.stderr
    result = run(source, "--dialect", "cloneofsimo", "-o", tmp_path / "c.safetensors", "-v")
    assert "multiplied into B, rounded to F32" in result.output and "model:0" in result.output


def test_json(source, tmp_path):
    result = run(source, "--dialect", "kohya", "-o", tmp_path / "k.safetensors", "--json", "--dry-run")
    told = json.loads(result.stdout)
    assert told["command"] == "convert" and told["dry_run"]
    assert told["scales"] == [{"scale": 1.5, "source": "lora_alpha / r", "kept": "alpha", "modules": 1}]
    assert told["modules"][0]["name"] == "lora_q" and told["carried"][0]["name"] == "extra"
    assert told["renamed"] == {"q": "lora_q"}
    assert not (tmp_path / "k.safetensors").exists()


def test_kinds_are_counted(tmp_path):
    source = put_adapter(tmp_path / "l", loha(), LOHA)
    result = run(source, "--dialect", "peft", "-o", tmp_path / "plain")
    assert "1 of LoHa, as plain factors" in result.output
    result = run(source, "--dialect", "lycoris", "-o", tmp_path / "l.safetensors")
    assert "1 of LoHa, as they are" in result.output


def test_quiet_and_help(source, tmp_path):
    result = run(source, "--dialect", "kohya", "-o", tmp_path / "k.safetensors", "-q")
    assert result.exit_code == 0 and not result.output
    assert "--adapter-scale" in run("--help").output
