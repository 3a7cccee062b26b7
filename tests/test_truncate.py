"""Truncation: the error is the tail of the singular values, ranks nest, files say the truth about both."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paring import adapters, lowrank
from paring.api import compress, decompress, inspect, verify
from paring.checkpoint import write_safetensors
from paring.coding import loss_of, total_error
from paring.dtypes import Stored, from_f32
from paring.errors import BudgetError, OptionError, UnsupportedError
from paring.factors import read_factors
from paring.packed import open_source
from paring.registry import load
from tests.helpers import put_adapter
from tests.make_golden import LORA, carried, ia3, kohya, lora
from tests.test_api import ADAPTERS, same
from tests.test_compeft import module, random_module

METHOD = load("compress", "truncate")
few = settings(deadline=None, max_examples=40)
NAME = "base_model.model.layers.{}.self_attn.{}.lora_{}.weight"


def family(modules, **options):
    return METHOD.function(modules, 1, **METHOD.parse(options))


def error(modules, coded):
    tensors = coded.tensors
    return total_error([loss_of(m, tensors.get(m.a), tensors.get(m.b) if m.b else None) for m in modules])


def tail(modules, ranks):
    """sqrt(sum of dropped sigma^2) over all, relative."""
    s = [m.scale * np.linalg.svd(m.B.astype(np.float64) @ m.A)[1] for m in modules]
    lost = sum(float((x[r:] ** 2).sum()) for x, r in zip(s, ranks, strict=True))
    return (lost / sum(float((x**2).sum()) for x in s)) ** 0.5


def ranks_of(modules, coded):
    return [len(coded.tensors[m.a].data) if m.a in coded.tensors else 0 for m in modules]


def tensors_of(path):
    opened = open_source(path)
    return {name: opened.read(name) for name in opened}


def view(path):
    """name -> (rank, scale, dense update) of an adapter in any form."""
    opened = open_source(path)
    adapter = adapters.read(opened)
    adapter.refuse_problems()
    return {
        f.name: (len(f.A), f.scale, f.scale * f.B.astype(np.float64) @ f.A) for f in read_factors(adapter)
    }


# the algebra


@few
@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9), st.data())
def test_the_error_is_the_tail_of_the_singular_values(r, n_in, n_out, data):
    modules = [random_module(r, n_in, n_out, seed, name=f"m{seed}", scale=0.5 + seed) for seed in range(2)]
    rank = data.draw(st.integers(1, r))
    coded = family(modules, rank=rank).encode(0)
    assert ranks_of(modules, coded) == [rank, rank]
    assert error(modules, coded) == pytest.approx(tail(modules, [rank] * 2), abs=1e-6)
    for m in modules:
        a, b = coded.tensors[m.a], coded.tensors[m.b]
        assert (a.shape, b.shape) == ((rank, n_in), (n_out, rank))
        np.testing.assert_allclose((a.data**2).sum(axis=1), (b.data**2).sum(axis=0), rtol=1e-3, atol=1e-9)


@few
@given(st.integers(0, 1000), st.floats(0.01, 1.0))
def test_a_share_of_the_energy_takes_the_fewest_ranks_that_hold_it(seed, share):
    modules = [random_module(5, 12, 9, seed, name="x"), random_module(3, 7, 8, seed, name="y")]
    ranks = ranks_of(modules, family(modules, energy=share).encode(0))
    for m, rank in zip(modules, ranks, strict=True):
        s = np.linalg.svd(m.B.astype(np.float64) @ m.A)[1] ** 2
        assert s[:rank].sum() >= (share - 1e-9) * s.sum()
        assert rank == 0 or s[: rank - 1].sum() < (share + 1e-9) * s.sum()


@few
@given(st.integers(0, 1000))
def test_the_dial_keeps_what_is_worth_most_a_byte(seed):
    modules = [random_module(3, 20, 10, seed, name="x"), random_module(2, 5, 60, seed, name="y", scale=0.3)]
    found = family(modules)
    assert found.dials == 5 and found.fixed is None
    worth = []
    for i, m in enumerate(modules):
        s = m.scale * np.linalg.svd(m.B.astype(np.float64) @ m.A)[1][: len(m.A)]
        worth += [(-(x**2) / (m.A.shape[1] + len(m.B)), i) for x in s]
    order = [i for _, i in sorted(worth)]
    errors = []
    for dial in range(found.dials):
        ranks = ranks_of(modules, found.encode(dial))
        assert ranks == [order[: dial + 1].count(0), order[: dial + 1].count(1)]
        errors.append(error(modules, found.encode(dial)))
        assert errors[-1] == pytest.approx(tail(modules, ranks), abs=1e-6)
        assert found.sketch(dial)[1] == pytest.approx(errors[-1], abs=1e-5)
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-6
    sizes = [found.sketch(dial)[0] for dial in range(found.dials)]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_ranks_nest_bit_for_bit(dtype, tmp_path):
    source = put_adapter(tmp_path / "s", lora(dtype, rank=8), LORA | {"r": 8})
    at = {"8": source}
    for rank, origin in (("4", "8"), ("2", "4"), ("2 at once", "8")):
        made = compress(at[origin], tmp_path / f"p{rank}", method="truncate", rank=int(rank[0]))
        decompress(made.output, tmp_path / rank)
        at[rank] = tmp_path / rank
    first, second = tensors_of(at["2"]), tensors_of(at["2 at once"])
    assert same(first, second)
    whole = tensors_of(at["4"])
    assert all((whole[n].data[:2] == t.data).all() for n, t in first.items() if "lora_A" in n)
    assert all((whole[n].data[:, :2] == t.data).all() for n, t in first.items() if "lora_B" in n)


def test_the_trained_gauge_cuts_and_does_not_turn():
    modules = [random_module(6, 20, 30, scale=1.5)]
    coded = family(modules, gauge="trained", rank=2).encode(0)
    assert (coded.tensors["m.a"].data == modules[0].A[:2]).all()
    assert (coded.tensors["m.b"].data == modules[0].B[:, :2]).all()
    M = modules[0].B.astype(np.float64) @ modules[0].A
    for dial in range(6):
        found = family(modules, gauge="trained")
        k = dial + 1
        own = np.linalg.norm(M - modules[0].B[:, :k].astype(np.float64) @ modules[0].A[:k]) / np.linalg.norm(
            M
        )
        assert error(modules, found.encode(dial)) == pytest.approx(own, abs=1e-6)
        assert found.sketch(dial)[1] == pytest.approx(own, abs=1e-6)


def test_modules_that_are_needed_keep_a_rank():
    strong, weak = random_module(2, 30, 30, name="x", scale=100.0), random_module(2, 30, 30, name="y")
    assert ranks_of([strong, weak], family([strong, weak]).encode(1)) == [2, 0]
    needed = [strong, replace(weak, needed=True)]
    assert [ranks_of(needed, family(needed).encode(d)) for d in (0, 1, 2)] == [[0, 1], [1, 1], [2, 1]]
    empty = replace(module(np.zeros((2, 5)), np.zeros((5, 2))), needed=True)
    assert ranks_of([empty], family([empty], energy=0.5).encode(0)) == [1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "--rank 0: at least 1"),
        ({"rank": 5}, "--rank 5: the largest rank of this adapter is 4"),
        ({"energy": 0.0}, "--energy 0.0: a share of the squared norm, in (0, 1]"),
        ({"energy": 1.5}, "--energy 1.5: a share of the squared norm, in (0, 1]"),
        ({"energy": "nan"}, "--energy nan: a share of the squared norm, in (0, 1]"),
        ({"rank": 2, "energy": 0.5}, "--rank and --energy both say what is kept: give one of them"),
        ({"adapter_scale": 0.0}, "--adapter-scale 0.0: a number other than 0"),
        ({"adapter_scale": "inf"}, "--adapter-scale inf: a number other than 0"),
        ({"store": "int8"}, "--store int8: expected source or fp16 or bf16 or fp32"),
    ],
)
def test_what_cannot_be_meant_is_refused(options, message):
    with pytest.raises(OptionError) as caught:
        family([random_module(4, 9, 9), random_module(2, 9, 9, name="n")], **options)
    assert message in str(caught.value)


def test_vectors_have_no_ranks(tmp_path):
    source = put_adapter(tmp_path / "s", ia3("F16"), {"peft_type": "IA3", "target_modules": ["k_proj"]})
    with pytest.raises(UnsupportedError, match="no ranks to cut"):
        compress(source, tmp_path / "x", method="truncate", rank=1)


def test_a_rank_beside_a_budget_is_refused(tmp_path):
    source = put_adapter(tmp_path / "s", lora())
    for own in ({"rank": 2}, {"energy": 0.5}):
        with pytest.raises(OptionError, match="fixes what is kept, --ratio 3 asks to have it solved"):
            compress(source, tmp_path / "x", method="truncate", ratio=3, **own)


# files


@pytest.mark.parametrize("store", ["source", "fp16"])
@pytest.mark.parametrize("ratio", [8, 16, 32])
def test_budgets_are_met_on_real_adapters(tmp_path, ratio, store):
    made = compress(
        ADAPTERS / "brown", tmp_path / "x.safetensors", method="truncate", ratio=ratio, store=store
    )
    assert made.ratio >= ratio and verify(made.output, ADAPTERS / "brown").ok
    left_out = [m.name for m in made.modules if m.rank == 0]
    assert {m.name for m in inspect(made.output).modules} == {m.name for m in made.modules} - set(left_out)
    assert bool(left_out) == any("left out" in text for text in made.warnings)
    facts = open_source(made.output).facts
    assert len(facts.get("dropped", [])) == 2 * len(left_out)
    assert all(rank > 0 for rank in (facts["config"]["r"], *facts["config"]["rank_pattern"].values()))
    assert all(m.error is not None for m in inspect(made.output).modules)
    assert inspect(made.output).packed["ratio_fp16"] == pytest.approx(made.ratio_fp16)
    looser = compress(
        ADAPTERS / "brown",
        tmp_path / "y.safetensors",
        method="truncate",
        error=made.error + 1e-6,
        store=store,
    )
    assert looser.error <= made.error + 1e-6 and looser.bytes_out <= made.bytes_out + 16


def test_a_budget_that_cannot_be_met_is_refused(tmp_path):
    with pytest.raises(BudgetError, match="the best that can be had"):
        compress(ADAPTERS / "brown", tmp_path / "x", method="truncate", ratio=5000)
    with pytest.raises(BudgetError, match="the best that can be had"):
        compress(ADAPTERS / "brown", tmp_path / "x", method="truncate", error=1e-9, store="bf16")


@pytest.mark.parametrize("config", [{}, {"use_rslora": True}, {"alpha_pattern": {"0.self_attn.q_proj": 3}}])
@pytest.mark.parametrize("options", [{"rank": 3}, {"energy": 0.6}, {"bits_per_param": 12}])
def test_peft_configurations_say_the_truth(tmp_path, config, options):
    rng = np.random.default_rng(1)
    tensors = lora() | {
        NAME.format(0, "q_proj", "A"): from_f32(rng.normal(size=(6, 40)).astype(np.float32), "F32"),
        NAME.format(0, "q_proj", "B"): from_f32(rng.normal(size=(56, 6)).astype(np.float32), "F32"),
    }
    told = LORA | {"rank_pattern": {"0.self_attn.q_proj": 6}} | config
    source = put_adapter(tmp_path / "s", tensors | carried(), told)
    made = compress(source, tmp_path / "x.safetensors", method="truncate", **options)
    decompress(made.output, tmp_path / "d")
    before, after = view(source), view(tmp_path / "d")
    for name, (rank, scale, update) in after.items():
        assert scale == pytest.approx(before[name][1], rel=1e-12)
        U, s, V = np.linalg.svd(before[name][2])
        np.testing.assert_allclose(update, (U[:, :rank] * s[:rank]) @ V[:rank], atol=1e-5)
    changed = json.loads((tmp_path / "d" / "adapter_config.json").read_text())
    left_out = before.keys() - after.keys()
    targets = sorted(after) if left_out else LORA["target_modules"]
    assert changed["target_modules"] == targets
    back = tensors_of(tmp_path / "d")
    assert same({name: back[name] for name in carried()}, carried())
    # a compressed file can be compressed again, and is checked as any other
    again = compress(tmp_path / "d", tmp_path / "y.safetensors", method="truncate", rank=1)
    assert {m.rank for m in again.modules} == {1}


def test_modules_aside_keep_their_ranks(tmp_path):
    # a DoRA module is carried: it must go on having the rank and alpha that the configuration gave it
    tensors = lora() | {
        "base_model.model.layers.0.self_attn.q_proj.lora_magnitude_vector": from_f32(np.ones(56), "F32")
    }
    source = put_adapter(tmp_path / "s", tensors, LORA)
    made = compress(source, tmp_path / "x.safetensors", method="truncate", rank=2)
    config = open_source(made.output).facts["config"]
    assert (config["r"], config["lora_alpha"]) == (4, 8)
    assert len(config["rank_pattern"]) == 3 and set(config["rank_pattern"].values()) == {2}
    assert view(made.output).keys() == view(source).keys()


def test_names_that_end_alike_are_told_apart(tmp_path):
    flat, steep = random_module(4, 20, 30), random_module(4, 20, 30)
    steep.B[:, 1:] /= 100
    for folder, pair in (("s", (steep, flat)), ("t", (flat, steep))):
        tensors = {}
        for name, one in zip(("a.b", "x.a.b", "c"), (*pair, pair[1]), strict=True):
            tensors[f"base_model.model.{name}.lora_A.weight"] = from_f32(one.A, "F32")
            tensors[f"base_model.model.{name}.lora_B.weight"] = from_f32(one.B, "F32")
        source = put_adapter(tmp_path / folder, tensors, LORA | {"target_modules": ["b", "c"]})
        made = compress(source, tmp_path / f"{folder}.p", method="truncate", energy=0.99)
        after = view(made.output)
        assert sorted(rank for rank, _, _ in after.values()) in ([1, 1, 4], [1, 4, 4])
        assert all(scale == 2.0 for _, scale, _ in after.values())


def test_smaller_modules_and_vectors_stay_as_they_are(tmp_path):
    tensors = lora() | lora(rank=2, modules=("up",)) | ia3("F16")
    source = put_adapter(tmp_path / "s", tensors, None)
    made = compress(source, tmp_path / "x", method="truncate", rank=3)
    assert sorted(m.rank or 0 for m in made.modules) == [0] * 6 + [2, 2, 3, 3, 3, 3]
    back = tensors_of(made.output)
    assert same({name: back[name] for name in ia3("F16")}, ia3("F16"))


def test_kohya_alphas_are_rewritten(tmp_path):
    tensors = kohya() | {"lora_unet_a.scalar": from_f32(np.array(0.5), "F32")}
    write_safetensors(tmp_path / "k.safetensors", tensors, {"ss_network_dim": "4", "ss_network_alpha": "2.0"})
    before = view(tmp_path / "k.safetensors")
    for rank, alphas in ((3, (1.5, 2.25)), (1, (0.5, 0.75))):
        made = compress(tmp_path / "k.safetensors", tmp_path / f"{rank}", method="truncate", rank=rank)
        back, found = tensors_of(made.output), view(made.output)
        assert tuple(float(back[f"lora_{n}.alpha"].data) for n in ("unet_a", "te_b")) == alphas
        assert back["lora_unet_a.alpha"].dtype == "F16"
        assert all(found[name][:2] == (rank, before[name][1]) for name in before)
        assert open_source(made.output).metadata == {
            "ss_network_dim": str(rank),
            "ss_network_alpha": "Dynamic",
        }


def test_an_alpha_that_its_dtype_cannot_hold_is_widened(tmp_path):
    tensors = {n: t for n, t in kohya().items() if "te_" not in n}
    tensors["lora_unet_a.alpha"] = Stored("I64", np.array(5))
    write_safetensors(tmp_path / "k.safetensors", tensors)
    made = compress(tmp_path / "k.safetensors", tmp_path / "x", method="truncate", rank=3)
    alpha = tensors_of(made.output)["lora_unet_a.alpha"]
    assert (alpha.dtype, float(alpha.data)) == ("F32", 3.75)


def test_alphas_of_modules_left_out_go_too(tmp_path):
    tensors = kohya()
    tensors["lora_te_b.lora_up.weight"] = from_f32(tensors["lora_te_b.lora_up.weight"].f32() / 1000, "F16")
    write_safetensors(tmp_path / "k.safetensors", tensors)
    made = compress(tmp_path / "k.safetensors", tmp_path / "x", method="truncate", error=0.5)
    assert list(view(made.output)) == ["lora_unet_a"]
    gone = {n for n in tensors if n.startswith("lora_te_b.")}
    assert set(open_source(made.output).facts["dropped"]) == gone and len(gone) == 3
    assert tensors_of(made.output).keys() == tensors.keys() - gone
    assert verify(made.output, tmp_path / "k.safetensors").ok


def test_numbered_modules_stay(tmp_path):
    tensors = {}
    for i, size in enumerate((1.0, 100.0, 1.0)):
        tensors[f"unet:{i}:up"] = from_f32(size * random_module(3, 8, 9, i).B, "F32")
        tensors[f"unet:{i}:down"] = from_f32(random_module(3, 8, 9, i).A, "F32")
    write_safetensors(tmp_path / "c.safetensors", tensors, {f"unet:{i}:rank": "3" for i in range(3)})
    made = compress(tmp_path / "c.safetensors", tmp_path / "x", method="truncate", error=0.2)
    assert len(view(made.output)) == 3
    ranks = {f"unet:{m.name[5:]}:rank": str(m.rank) for m in made.modules}
    assert open_source(made.output).metadata == ranks and set(ranks.values()) != {"3"}


def test_configurations_inside_a_file_are_rewritten(tmp_path):
    tensors, told = {}, {}
    for part, rank in (("unet", 4), ("text_encoder", 2)):
        one = random_module(rank, 12, 10)
        tensors[f"{part}.to_q.lora_A.weight"] = from_f32(one.A, "F32")
        tensors[f"{part}.to_q.lora_B.weight"] = from_f32(one.B, "F32")
        told |= {f"{part}.r": rank, f"{part}.lora_alpha": 8, f"{part}.peft_type": "LORA"}
    write_safetensors(tmp_path / "d.safetensors", tensors, {"lora_adapter_metadata": json.dumps(told)})
    before = view(tmp_path / "d.safetensors")
    made = compress(tmp_path / "d.safetensors", tmp_path / "x", method="truncate", rank=1)
    assert {n: v[:2] for n, v in view(made.output).items()} == {n: (1, v[1]) for n, v in before.items()}
    again = json.loads(open_source(made.output).metadata["lora_adapter_metadata"])
    assert (again["unet.r"], again["unet.lora_alpha"], again["text_encoder.lora_alpha"]) == (1, 2, 4)


# DyLoRA


@pytest.mark.parametrize("rslora", [False, True])
def test_a_trainers_scale_is_taken(tmp_path, rslora):
    source = put_adapter(tmp_path / "s", lora(), LORA | {"use_rslora": rslora})
    options = {"method": "truncate", "gauge": "trained", "rank": 2, "adapter_scale": 6.0}
    made = compress(source, tmp_path / "x.safetensors", **options)
    originals = tensors_of(source)
    for name, tensor in tensors_of(made.output).items():
        cut = originals[name].data[:2] if "lora_A" in name else originals[name].data[:, :2]
        assert (tensor.data == cut).all()
    assert all(scale == pytest.approx(6.0) for _, scale, _ in view(made.output).values())
    assert verify(made.output, source).ok
    write_safetensors(
        tmp_path / "k.safetensors", kohya() | {"lora_te_b.scalar": from_f32(np.array(0.5), "F32")}
    )
    made = compress(tmp_path / "k.safetensors", tmp_path / "y", **options)
    back = tensors_of(made.output)
    assert [float(back[f"{name}.alpha"].data) for name in ("lora_unet_a", "lora_te_b")] == [12.0, 24.0]


def test_a_scale_that_a_format_cannot_hold_is_refused(tmp_path):
    tensors = {n: t for n, t in kohya().items() if "alpha" not in n}
    write_safetensors(tmp_path / "k.safetensors", tensors)
    with pytest.raises(
        UnsupportedError, match=r"nothing here holds the scale.*paring convert --adapter-scale 6"
    ):
        compress(tmp_path / "k.safetensors", tmp_path / "x", method="truncate", rank=2, adapter_scale=6)
    compress(tmp_path / "k.safetensors", tmp_path / "x", method="truncate", rank=2, adapter_scale=1)


# what PEFT makes of it


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("options", [{"rank": 2}, {"error": 0.55}, {"rank": 1, "gauge": "trained"}])
def test_peft_computes_with_the_truncated_update(tmp_path, options, rslora):
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")

    class Tiny(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList([torch.nn.Linear(12, 12) for _ in range(3)])
            self.out = torch.nn.Linear(12, 5)

        def forward(self, x):
            for layer in self.layers:
                x = torch.tanh(layer(x))
            return self.out(x)

    torch.manual_seed(0)
    base = Tiny()
    state = {name: value.clone() for name, value in base.state_dict().items()}
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["0", "1", "2", "out"], use_rslora=rslora,
                             rank_pattern={"layers.1": 6}, alpha_pattern={"out": 3})  # fmt: skip
    model = peft.get_peft_model(base, config)
    with torch.no_grad():
        for i, (name, parameter) in enumerate(p for p in model.named_parameters() if "lora_B" in p[0]):
            parameter.copy_(torch.randn_like(parameter) * (0.02 if "layers.0" in name else 0.1 + i / 10))
    model.save_pretrained(tmp_path / "s")
    made = compress(tmp_path / "s", tmp_path / "x.safetensors", method="truncate", **options)
    decompress(made.output, tmp_path / "d")
    plain, x = Tiny(), torch.randn(7, 12)
    plain.load_state_dict(state)
    updates = view(made.output)
    if "error" in options:
        assert "layers.0" not in updates and len({rank for rank, _, _ in updates.values()}) > 1
    with torch.no_grad():
        loaded = peft.PeftModel.from_pretrained(plain, tmp_path / "d")(x)
        expected = Tiny()
        expected.load_state_dict(state)
        for name, (_, _, update) in updates.items():
            expected.get_submodule(name).weight += torch.from_numpy(update).float()
        torch.testing.assert_close(loaded, expected(x), rtol=1e-4, atol=1e-5)


def test_the_basis_is_the_balanced_one():
    one = random_module(5, 30, 20)
    A, B = lowrank.balanced(one.A, one.B)
    coded = family([one], rank=3).encode(0)
    np.testing.assert_array_equal(coded.tensors["m.a"].data, A[:3].astype(np.float32))
    np.testing.assert_array_equal(coded.tensors["m.b"].data, B[:, :3].astype(np.float32))
