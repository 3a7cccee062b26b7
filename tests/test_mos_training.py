"""Training MoS: it learns, what is saved is what was trained, and PEFT runs what it expands to."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from paring.dtypes import Stored
from paring.errors import BadFileError, BadValueError, OptionError, UnsupportedError
from paring.mos.convert import expand_file
from paring.mos.file import write_mos
from paring.mos.layer import MosLinear
from paring.mos.pools import expand
from paring.mos.routing import FACTORS
from paring.mos.training import MosModel, attach, attach_file

IDS = torch.arange(24).reshape(2, 12) % 40
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def llama(layers: int = 3) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=1, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


class Plain(nn.Module):
    """Four square layers in a list, one of another name."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.head = nn.Linear(8, 4)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = torch.relu(block(x)) + x
        out: torch.Tensor = self.head(self.norm(x))
        return out


def with_mos(model: nn.Module, wanted: Any = r"blocks\.\d", **more: Any) -> MosModel:
    return attach(model, wanted, **{"r": 4, "e": 2, "private": 1, "shards": 2, "alpha": 8, **more})


def train(model: nn.Module, mos: MosModel, steps: int = 30) -> list[float]:
    torch.manual_seed(2)
    x, y = torch.randn(64, 8), torch.randint(0, 4, (64,))
    optimizer = torch.optim.AdamW(mos.trainable_parameters, lr=2e-2)
    losses = []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.fixture
def trained() -> tuple[Plain, MosModel]:
    model = Plain()
    mos = with_mos(model)
    train(model, mos)
    return model, mos


def test_it_learns_and_nothing_else_changes() -> None:
    model = Plain()
    before = copy.deepcopy(model.state_dict())
    mos = with_mos(model)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {id(parameter) for parameter in trainable} == {id(pool) for pool in mos.trainable_parameters}
    assert mos.num_trainable == mos.layout.parameters == 2 * 4 * 16
    losses = train(model, mos)
    assert losses[-1] < 0.8 * losses[0]
    mos.unload()
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_it_begins_as_published() -> None:
    """B zero: nothing changes. A uniform within 1 / sqrt(in), in the full length and not the shard's."""
    x, model = torch.randn(5, 8), Plain()
    before = model(x)
    mos = with_mos(model, shards=4, seed=3)
    assert torch.equal(model(x), before)
    (pools,) = mos.pools.values()
    assert pools.a.shape == pools.b.shape == (2 * 4 * 4, 2)
    assert not pools.b.any()
    wide = nn.ModuleList(nn.Linear(4096, 64) for _ in range(3))
    (pools,) = with_mos(wide, ["0", "1", "2"], shards=64).pools.values()
    bound = 1 / math.sqrt(4096)
    assert 0.99 * bound < pools.a.abs().max() <= bound
    assert abs(pools.a.mean()) < 0.05 * bound
    assert pools.a.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    whole = torch.empty(8, 4096)
    nn.init.kaiming_uniform_(whole, a=math.sqrt(5))
    assert whole.std().item() == pytest.approx(pools.a.std().item(), rel=0.03)


def test_one_seed_is_one_beginning() -> None:
    def made(seed: int) -> Any:
        (pools,) = with_mos(Plain(), seed=seed).pools.values()
        return pools.a.detach().numpy()

    torch.manual_seed(5)
    first = made(0)
    torch.manual_seed(6)
    np.testing.assert_array_equal(made(0), first)
    assert (made(1) != first).all()
    # as one of the golden numbers: files of a seed trained anywhere begin alike
    np.testing.assert_array_equal(
        first[0], np.array([0.297923595, -0.113116659, 0.0375463925, 0.102250487], np.float32)
    )


def test_forward_is_the_formula(trained: tuple[Plain, MosModel]) -> None:
    model, mos = trained
    (each,), (pools,) = mos.layout.projections, mos.pools.values()
    assert each.modules == ("blocks.0", "blocks.1", "blocks.2", "blocks.3")
    x = torch.randn(3, 7, 8)
    for layer, name in enumerate(each.modules):
        module: Any = model.get_submodule(name)
        A, Bt = (
            expand(pool.detach().numpy(), mos.layout.route(each, layer, factor), 2)
            for factor, pool in zip(FACTORS, (pools.a, pools.b), strict=True)
        )
        delta = 8 / 4 * Bt.T.astype(np.float64) @ A.astype(np.float64)
        expected = module.base_layer(x) + (x.double() @ torch.from_numpy(delta).T).float()
        torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_indexing() -> None:
    model = Plain()
    mos = with_mos(model)
    train(model, mos, 1)
    (each,), (pools,) = mos.layout.projections, mos.pools.values()
    x = torch.randn(5, 8)
    for pool in (pools.a, pools.b):
        pool.grad = None
    model(x).square().sum().backward()
    found = [pool.grad.clone() for pool in (pools.a, pools.b)]
    layers: list[Any] = [model.get_submodule(name) for name in each.modules]
    for pool in (pools.a, pools.b):
        pool.grad = None
    for layer in layers:
        index_a, index_b = layer.index_a, layer.index_b
        layer.factors = lambda a=index_a, b=index_b: (
            pools.a[a].reshape(4, -1), pools.b[b].reshape(4, -1).T
        )  # fmt: skip
    model(x).square().sum().backward()
    for pool, one in zip((pools.a, pools.b), found, strict=True):
        torch.testing.assert_close(pool.grad, one)


def test_merge_is_the_same_function(trained: tuple[Plain, MosModel]) -> None:
    model, mos = trained
    x = torch.randn(9, 8)
    before = model(x)
    assert mos.merge() is model
    assert not any(isinstance(module, MosLinear) for module in model.modules())
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)
    for again in (mos.merge, mos.unload):
        with pytest.raises(OptionError, match="was merged or unloaded"):
            again()


def test_merge_into_bf16_rounds_once() -> None:
    model = Plain().to(torch.bfloat16)
    mos = with_mos(model)
    (pools,) = mos.pools.values()
    assert pools.a.dtype == torch.float32
    nn.init.normal_(pools.b)
    layer: Any = model.blocks[2]
    a, b = layer.factors()
    exact = layer.weight.double() + 2.0 * (b.double() @ a.double())
    assert model(torch.randn(2, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16
    mos.merge()
    assert torch.equal(model.blocks[2].weight, exact.float().to(torch.bfloat16))


def test_dropout_acts_in_training_alone() -> None:
    model = Plain().eval()
    mos = with_mos(model, dropout=0.5)
    nn.init.normal_(next(iter(mos.pools.values())).b)
    x = torch.randn(4, 8)
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


def test_saved_and_attached_again_it_trains_on(trained: tuple[Plain, MosModel], tmp_path: Path) -> None:
    model, mos = trained
    mos.save(tmp_path / "x.safetensors", base="org/base")
    other = Plain()
    again = attach_file(other, tmp_path / "x.safetensors", dropout=0.1)
    x = torch.randn(5, 8)
    assert torch.equal(other.eval()(x), model.eval()(x))
    assert again.layout.seed == mos.layout.seed
    other.train()
    losses = train(other, again, 20)
    assert losses[-1] < losses[0]
    with pytest.raises(BadValueError, match=r"pool_A holds NaN"):
        with torch.no_grad():
            mos.trainable_parameters[0][0, 0] = math.nan
        mos.save(tmp_path / "y.safetensors")


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks
def test_peft_runs_what_it_expands_to(tmp_path: Path) -> None:
    from peft import PeftModel

    model = llama()
    mos = attach(model, TARGETS, r=4, e=2, private=1, shards=4, alpha=16, seed=5)
    assert len(mos.layout.projections) == 7
    optimizer = torch.optim.AdamW(mos.trainable_parameters, lr=1e-2)
    losses = []
    for _ in range(8):
        loss = model(input_ids=IDS, labels=IDS).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    mos.save(tmp_path / "x.mos.safetensors")
    expand_file(tmp_path / "x.mos.safetensors", tmp_path / "lora")
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
        base = llama()(input_ids=IDS).logits
        lora = PeftModel.from_pretrained(llama(), tmp_path / "lora").eval()
        found = lora(input_ids=IDS).logits
        merged = mos.merge()(input_ids=IDS).logits
    assert (expected - base).abs().max() > 0.05
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(merged, expected, rtol=0, atol=1e-5)


def test_all_linear_leaves_the_head_out() -> None:
    model = llama(2)
    names = [
        name
        for each in attach(model, "all-linear", r=3, e=2, shards=2).layout.projections
        for name in each.modules
    ]
    assert len(names) == 14
    assert "lm_head" not in names


def test_targets_are_found_as_peft_finds_them() -> None:
    for wanted, count in ((["q_proj"], 3), (["model.layers.1.self_attn.q_proj"], 1), (r".*\.[qk]_proj", 6)):
        mos = attach(llama(), wanted, r=2, e=2, shards=2)
        assert sum(each.layers for each in mos.layout.projections) == count


@pytest.mark.parametrize(
    ("wanted", "more", "why"),
    [
        (["nothing"], {}, "no layer of the model is called"),
        (["norm"], {}, "norm is a LayerNorm, not an nn.Linear"),
        (["blocks"], {}, "blocks is a ModuleList"),
        (["head"], {}, r"MoS of head: 1 layer\(s\) have 2 public shards, but each module draws 6"),
        (r"blocks\.\d", {"shards": 3}, "in = 8 cannot be cut into 3 equal shards"),
        (r"blocks\.\d", {"private": 2}, "leaves no public shards"),
        (r"blocks\.\d", {"dropout": 1}, "dropout must be in"),
        (r"blocks\.\d", {"alpha": math.inf}, "alpha must be a number"),
    ],
)
def test_a_refusal_leaves_the_model_as_it_was(wanted: Any, more: dict[str, Any], why: str) -> None:
    model = Plain()
    with pytest.raises(OptionError, match=why):
        with_mos(model, wanted, **more)
    assert not any(isinstance(module, MosLinear) for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_one_adapter_at_a_time() -> None:
    model = Plain()
    mos = with_mos(model)
    with pytest.raises(OptionError, match=r"blocks\.0 has a MoS adapter already"):
        with_mos(model, ["head"], r=2, e=2)
    mos.unload()
    with_mos(model)


def test_layers_of_two_names_or_two_devices() -> None:
    model = Plain()
    model.blocks[3] = model.blocks[0]
    with pytest.raises(OptionError, match=r"blocks\.3 is one layer under two names"):
        with_mos(model)
    model = Plain()
    model.blocks[1].to("meta")
    with pytest.raises(OptionError, match="must be on one device"):
        with_mos(model)


def test_weights_that_are_shared_or_quantised_are_not_merged() -> None:
    model = Plain()
    mos = with_mos(model)
    model.blocks[1].base_layer.weight = model.blocks[0].base_layer.weight
    before = model.blocks[0].weight.clone()
    with pytest.raises(UnsupportedError, match=r"blocks\.0 shares its weight"):
        mos.merge()
    model.blocks[1].base_layer.weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.int8), requires_grad=False)
    with pytest.raises(UnsupportedError, match=r"blocks\.1 has quantised weights \(torch.int8\)"):
        mos.merge()
    assert torch.equal(model.blocks[0].weight, before)


def test_files_for_another_model(trained: tuple[Plain, MosModel], tmp_path: Path) -> None:
    _, mos = trained
    mos.save(tmp_path / "x")
    with pytest.raises(OptionError, match=r"blocks\.0: the model must have an nn.Linear there.* missing"):
        attach_file(llama(), tmp_path / "x")
    model = Plain()
    model.blocks[2] = nn.Linear(8, 6)
    with pytest.raises(OptionError, match=r"blocks\.2: it is \(6, 8\), but the adapter is for \(8, 8\)"):
        attach_file(model, tmp_path / "x")
    huge = {
        (name, factor): Stored("F64", np.full(pool.shape, 1e300))
        for name, pools in mos.pools.items()
        for factor, pool in zip(FACTORS, (pools.a, pools.b), strict=True)
    }
    write_mos(tmp_path / "huge", mos.layout, huge)
    with pytest.raises(BadFileError, match="hold NaN or infinity"):
        attach_file(Plain(), tmp_path / "huge")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_trains_the_same() -> None:
    here, there = Plain(), Plain().cuda()
    one, two = with_mos(here), with_mos(there)
    x = torch.randn(5, 8)
    for model, mos in ((here, one), (there, two)):
        nn.init.constant_(next(iter(mos.pools.values())).b, 0.1)
        model(x.to(next(model.parameters()).device)).square().sum().backward()
    for a, b in zip(one.trainable_parameters, two.trainable_parameters, strict=True):
        torch.testing.assert_close(a.grad, b.grad.cpu(), rtol=1e-4, atol=1e-5)
