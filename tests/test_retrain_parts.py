"""The parts of retraining: adapters, subsets, APOLLO, text, the loop."""

from __future__ import annotations

import json
import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from paring.errors import BadFileError, BadValueError, OptionError, UnsupportedError
from paring.pruning.layers import layers
from paring.retraining import text
from paring.retraining.adapters import Adapter, Pst
from paring.retraining.apollo import Apollo
from paring.retraining.fitting import Fit, Keeper, fit
from paring.retraining.kinds import Kind
from paring.retraining.subsets import choose, head, norms, parse
from tests import retraining as tiny


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sparse(*shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.rand(shape, generator=generator(seed)) < 0.5
    return torch.randn(shape, generator=generator(seed + 1)) * mask, mask


# --- adapters ---


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("kind", get_args(Kind))
def test_adapters_begin_at_the_weight_and_merge_inside_the_mask(kind, turned):
    weight, mask = sparse(*(12, 20)[:: -1 if turned else 1])
    adapter = Adapter(kind, weight, mask, 4, 8.0, generator(), turned)
    assert torch.equal(adapter(weight), weight)
    with torch.no_grad():
        for factor in (adapter.a, adapter.b):
            factor.add_(torch.randn(factor.shape, generator=generator(5)))
    product = (adapter.b.double() @ adapter.a.double()).detach()
    product = product.T if turned else product
    expected = {
        "masklora": weight + 2 * mask * product,
        "loraprune": weight + 2 * mask * product,
        "scalelora": weight * product,
        "lora": weight,
    }[kind]
    merged = adapter.merged(weight)
    assert merged.dtype == torch.float32 and not merged[~mask].any()
    torch.testing.assert_close(merged, expected.float())
    if kind in ("masklora", "scalelora"):  # what was trained is what is merged, bit for bit
        assert torch.equal(merged, adapter(weight).masked_fill(~mask, 0))
        assert torch.equal(adapter(weight)[~mask], torch.zeros(int((~mask).sum())))
    else:
        assert adapter(weight)[~mask].any()


def test_masklora_merges_to_fp32_rounding():
    """Each entry is within one rounding of a product of rank 4, a scaling and an addition."""
    weight, mask = sparse(64, 48)
    adapter = Adapter("masklora", weight, mask, 4, 8.0, generator())
    with torch.no_grad():
        adapter.b.normal_(generator=generator(3))
    exact = weight.double() + 2 * mask * (adapter.b.double() @ adapter.a.double())
    size = weight.double().abs() + 2 * adapter.b.double().abs() @ adapter.a.double().abs()
    assert ((adapter.merged(weight).double() - exact).abs() <= 6 * 2.0**-24 * size).all()


def train(model: nn.Module, parameters: list[nn.Parameter], steps: int = 30) -> None:
    x = torch.randn(64, 20, generator=generator(7))
    y = torch.randn(64, 12, generator=generator(8))
    fit(parameters, lambda _: (model(x) - y).square().mean(), Fit(steps, 0.02))


def test_scalelora_leaves_rank_one():
    """The published beginning, all factors alike, never does."""
    ranks = {}
    for name in ("ours", "published"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(20, 12))
        subset = choose(model, ["adapters"], layers(model), {}, adapter="scalelora", rank=4, alpha=8.0)
        ((_, adapter),) = subset.adapters.values()
        if name == "published":
            with torch.no_grad():
                adapter.a.fill_(0.5)
                adapter.b.fill_(0.5)
        assert torch.equal(adapter.product(), torch.ones(12, 20))
        train(model, subset.parameters)
        ranks[name] = int(torch.linalg.matrix_rank(adapter.product()))
    assert ranks == {"ours": 4, "published": 1}


def test_pst_without_a_step_prunes_by_magnitude():
    weight = torch.randn(10, 12, generator=generator())
    part = Pst(weight, generator())
    part.drop = 61
    kept = weight.abs().flatten().sort(descending=True).indices[: 120 - 61]
    expected = torch.zeros(120, dtype=torch.bool)
    expected[kept] = True
    assert torch.equal(part.mask(weight), expected.reshape(10, 12))
    assert torch.equal(part.merged(weight), weight * expected.reshape(10, 12))


def test_pst_has_the_published_gradients():
    weight = torch.randn(5, 6, generator=generator())
    part = Pst(weight, generator(), 2, 2)
    with torch.no_grad():
        for factor in part.parameters():
            factor.normal_(generator=generator(4))
    part.drop = 11
    upstream = torch.randn(5, 6, generator=generator(9))
    (part(weight) * upstream).sum().backward()
    updated = (weight + part.u @ part.v).detach()
    through = upstream * updated  # what reaches the mask, straight through to S
    torch.testing.assert_close(part.r.grad, through.sum(1, keepdim=True))
    torch.testing.assert_close(part.b.grad, part.a.detach().T @ through)
    mask = part.mask(weight)
    to_weights = upstream * mask + through * updated.sign()
    torch.testing.assert_close(part.v.grad, part.u.detach().T @ to_weights)
    assert int((part.merged(weight) == 0).sum()) == 11


# --- subsets ---


def test_norms_are_found_by_what_they_do():
    import transformers

    assert set(norms(tiny.model("llama"))) == {
        "model.norm.weight",
        *(
            f"model.layers.{i}.{side}_layernorm.weight"
            for i in (0, 1)
            for side in ("input", "post_attention")
        ),
    }
    small = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    more = {"intermediate_size": 8, "num_key_value_heads": 1, "head_dim": 8}
    qwen = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**small, **more))
    assert sum("_norm.weight" in name for name in norms(qwen)) == 2  # of queries and keys
    gemma = transformers.GemmaForCausalLM(transformers.GemmaConfig(**small, **more))
    assert len(norms(gemma)) == 3  # whose weights begin at zero
    zero = nn.LayerNorm(8)
    nn.init.zeros_(zero.weight)
    assert set(norms(zero)) == {"weight", "bias"}
    gpt2, bert = norms(tiny.model("gpt2")), norms(tiny.model("encoder"))
    assert (
        len(gpt2) == 10 and len(bert) == 10 and all("norm" in n.lower() or "ln_" in n for n in (*gpt2, *bert))
    )


def test_what_is_no_norm():
    model = nn.Sequential(
        nn.Linear(4, 4), nn.PReLU(4), nn.BatchNorm1d(4), nn.GroupNorm(2, 4), nn.LayerNorm(4)
    )
    assert set(norms(model)) == {f"{i}.{side}" for i in (2, 3, 4) for side in ("weight", "bias")}


def test_subsets_and_what_stays_frozen():
    model = tiny.model("gpt2")
    masks = {name: torch.ones_like(layer.weight, dtype=torch.bool) for name, layer in layers(model).items()}
    biases = choose(model, ["biases"], layers(model), masks)
    assert set(biases.own) == {name for name, _ in model.named_parameters() if name.endswith(".bias")}
    assert all(p.requires_grad == (name in biases.own) for name, p in model.named_parameters())
    everything = choose(model, ["all"], layers(model), masks)
    assert everything.count == sum(p.numel() for p in model.parameters())
    sizes = [sum(layer.weight.shape) for layer in layers(model).values()]
    assert choose(model, ["adapters"], layers(model), masks, rank=3).count == 3 * sum(sizes) > 0
    inner = choose(tiny.model("gpt2"), ["norms"], {}, {}, within="transformer.h.1.")
    assert len(inner.own) == 4


def test_an_untied_head_is_trained_through_lora():
    model = tiny.model("untied")
    before = model.lm_head.weight.detach().clone()
    subset = choose(model, ["head"], layers(model), {}, rank=2)
    ids = torch.arange(16).reshape(1, 16)
    fit(subset.parameters, lambda _: model(input_ids=ids, labels=ids).loss, Fit(5, 0.05))
    assert subset.merge() == {} and type(model.lm_head) is nn.Linear
    change = (model.lm_head.weight - before).detach()
    assert int(torch.linalg.matrix_rank(change, atol=1e-5)) == 2
    with pytest.raises(OptionError, match="also the input embedding"):
        head(tiny.model("llama"))
    with pytest.raises(OptionError, match="no output head"):
        head(tiny.model("encoder"))


def test_names_of_subsets():
    assert parse("norms, adapters") == ["norms", "adapters"]
    with pytest.raises(OptionError, match="did you mean 'norms'"):
        parse("norm")
    with pytest.raises(OptionError, match="everything"):
        parse("all,norms")
    with pytest.raises(OptionError, match="no such parameters"):
        choose(tiny.model("llama"), ["biases"], {}, {})


# --- APOLLO ---


def plain_apollo(weight, gradients, lr, rank, mini, seed, draw):
    """The published update in fp64, step by step; ``draw`` gives the projections."""
    w, moments, before = weight.astype(np.float64), None, 0.0
    for t, g in enumerate(gradients, 1):
        wide = g if g.shape[0] < g.shape[1] else g.T
        r = draw(wide.shape[0], t).T @ wide
        m, v = moments if moments is not None else (np.zeros_like(r), np.zeros_like(r))
        m, v = 0.9 * m + 0.1 * r, 0.999 * v + 0.001 * r * r
        moments = m, v
        ratio = m / (np.sqrt(v) + 1e-6)
        axis = None if mini else 0
        scaled = wide * (np.sqrt((ratio**2).sum(axis)) / (np.sqrt((r**2).sum(axis)) + 1e-8))
        norm = np.sqrt((scaled**2).sum())
        if before and norm > 1.01 * before:
            scaled, norm = scaled * (1.01 * before / norm), 1.01 * before
        before = norm
        rate = lr * math.sqrt(1 - 0.999**t) / (1 - 0.9**t) * math.sqrt(128 if mini else 1)
        w = w - rate * (scaled if wide is g else scaled.T)
    return w


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
@pytest.mark.parametrize("mini", [False, True])
def test_apollo_is_the_published_update(shape, mini):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal(shape).astype(np.float32)
    gradients = [rng.standard_normal(shape) * (1 + 3 * (t == 3)) for t in range(6)]
    parameter = nn.Parameter(torch.from_numpy(weight.copy()))
    optimizer = Apollo([parameter], lr=0.01, rank=3, mini=mini, refresh=4, seed=5)
    drawn: dict[int, np.ndarray] = {}
    inner = optimizer._projection

    def noting(wide, index, step):
        found = inner(wide, index, step)
        drawn[step] = found.double().numpy()
        return found

    optimizer._projection = noting
    for gradient in gradients:
        parameter.grad = torch.from_numpy(gradient.astype(np.float32))
        optimizer.step()
    expected = plain_apollo(weight, gradients, 0.01, 3, mini, 5, lambda _, step: drawn[step])
    np.testing.assert_allclose(parameter.detach(), expected, rtol=2e-5, atol=2e-6)
    assert np.array_equal(drawn[1], drawn[4]) and not np.array_equal(drawn[4], drawn[5])
    state = optimizer.state[parameter]
    assert state["exp_avg"].shape == (1 if mini else 3, 10)


def test_apollo_treats_vectors_as_adam_does():
    values = torch.randn(8, generator=generator())
    ours, adam = nn.Parameter(values.clone()), nn.Parameter(values.clone())
    one = Apollo([ours], lr=0.01, eps=1e-12, weight_decay=0.1)
    two = torch.optim.AdamW([adam], lr=0.01, eps=1e-12, weight_decay=0.1)
    for seed in range(4):
        ours.grad = torch.randn(8, generator=generator(seed))
        adam.grad = ours.grad.clone()
        one.step()
        two.step()
    torch.testing.assert_close(ours, adam)
    with pytest.raises(OptionError, match="at least 1"):
        Apollo([ours], rank=0)


# --- the loop ---


def problem(seed: int = 0) -> tuple[nn.Linear, torch.Tensor]:
    torch.manual_seed(seed)
    layer = nn.Linear(20, 12)
    return layer, sparse(12, 20)[1]


def loss_of(layer: nn.Linear):
    def loss(number: int) -> torch.Tensor:
        x = torch.randn(16, 20, generator=generator(number))
        return (layer(x) - x[:, :12].cos()).square().mean()

    return loss


@pytest.mark.parametrize("optimizer", ["adamw", "apollo", "apollo-mini"])
def test_masked_entries_stay_exactly_zero(optimizer):
    layer, mask = problem()
    how = Fit(20, 0.01, optimizer=optimizer, rank=4, weight_decay=0.1)
    losses = fit(list(layer.parameters()), loss_of(layer), how, held={layer.weight: mask})
    assert losses[-1] < losses[0] and not layer.weight[~mask].any() and layer.weight[mask].all()


@pytest.mark.parametrize("optimizer", ["adamw", "apollo"])
def test_a_killed_run_goes_on_as_if_nothing_had_been(tmp_path, optimizer):
    how = Fit(17, 0.01, accumulate=2, optimizer=optimizer, rank=4, save_every=5)
    layer, mask = problem()
    whole = fit(list(layer.parameters()), loss_of(layer), how, held={layer.weight: mask})

    broken, _ = problem()
    plain = loss_of(broken)

    def dying(number: int) -> torch.Tensor:
        if number == 2 * 12 + 1:
            raise KeyboardInterrupt
        return plain(number)

    keeper = Keeper(tmp_path / "state")
    parameters = list(broken.parameters())
    with pytest.raises(KeyboardInterrupt):
        fit(parameters, dying, how, held={broken.weight: mask}, keeper=keeper, label="a part")
    again, _ = problem(1)  # another beginning: everything comes from the checkpoint
    seen: list[int] = []
    inner = loss_of(again)

    def counting(number: int) -> torch.Tensor:
        seen.append(number)
        return inner(number)

    losses = fit(
        list(again.parameters()), counting, how, held={again.weight: mask}, keeper=keeper, label="a part"
    )
    assert losses == whole and seen[0] == 20
    assert torch.equal(again.weight, layer.weight) and torch.equal(again.bias, layer.bias)
    assert keeper.load("another part") is None


def test_nan_stops_and_keeps_the_last_good_state(tmp_path):
    layer, _ = problem()
    plain = loss_of(layer)

    def loss(number: int) -> torch.Tensor:
        return plain(number) * (math.nan if number == 8 else 1)

    keeper = Keeper(tmp_path / "state")
    message = r"loss of step 9 is nan: lower --lr \(now 0.01\).*after step 6 is kept in .*state.pt"
    with pytest.raises(BadValueError, match=message):
        fit(list(layer.parameters()), loss, Fit(20, 0.01, save_every=3), keeper=keeper)
    state = keeper.load("training")
    assert state is not None and len(state["losses"]) == 6
    other, _ = problem()
    fit(list(other.parameters()), loss_of(other), Fit(6, 0.01))
    assert all(values.isfinite().all() for values in state["parameters"])


def test_the_rate_rises_and_falls_in_lines():
    how = Fit(20, 1.0, warmup=0.25)
    assert [how.rate(step) for step in (0, 4, 5, 12, 19)] == pytest.approx([0.2, 1, 1, 8 / 15, 1 / 15])
    assert Fit(10, 1.0, warmup=0).rate(0) == 1.0
    for wrong in ({"steps": 0}, {"lr": 0.0}, {"lr": math.nan}, {"warmup": 2.0}, {"accumulate": 0}):
        with pytest.raises(OptionError, match=f"--{next(iter(wrong))}"):
            Fit(**{"steps": 5, "lr": 0.1, **wrong})


# --- text ---


@given(count=st.integers(2, 200), length=st.integers(2, 40))
def test_windows_hold_every_token(count, length):
    ids = np.arange(count)
    found = text.pack(ids, length)
    assert set(found.ravel().tolist()) == set(range(count))
    assert found.shape[1] == min(length, count) and (np.diff(found, axis=1) == 1).all()


def test_documents_are_separated_and_long_ones_whole(monkeypatch):
    monkeypatch.setattr(text, "_PIECE", 40)
    made = tiny.tokenizer()
    long = tiny.text(200)
    ids = text.windows(made, [("a", long), ("b", "the cat"), ("c", "")], 8)
    flat = [*ids[:-1].ravel().tolist()]
    expected = [*made(long)["input_ids"], 1, *made("the cat")["input_ids"], 1]
    assert flat == expected[: len(flat)] and ids[-1].tolist() == expected[-8:]


def test_batches_go_through_everything_in_another_order_each_time():
    data = np.arange(10)[:, None].repeat(3, 1)
    epochs = [np.concatenate([text.batch(data, e * 5 + i, 2, 3)[:, 0] for i in range(5)]) for e in (0, 1)]
    assert all(sorted(epoch.tolist()) == list(range(10)) for epoch in epochs)
    assert (epochs[0] != epochs[1]).any()
    assert (text.batch(data, 1, 2, 3) == text.batch(data, 1, 2, 3)).all()
    assert text.batch(data, 4, 3, 0).shape == (3, 3)  # across an epoch's end


def test_what_is_read(tmp_path):
    (tmp_path / "b.txt").write_text("two")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.jsonl").write_text('{"text": "one"}\n\n{"text": "more"}\n')
    (tmp_path / ".hidden.txt").write_text("no")
    (tmp_path / "c.parquet").write_bytes(b"PAR1")
    assert list(text.read(tmp_path)) == [("a/x.jsonl:1", "one"), ("a/x.jsonl:3", "more"), ("b.txt", "two")]
    assert list(text.read(tmp_path / "b.txt")) == [("b.txt", "two")]
    with pytest.raises(UnsupportedError, match=r"c\.parquet: only \.txt"):
        list(text.read(tmp_path / "c.parquet"))
    with pytest.raises(BadFileError, match=r"x.jsonl, line 1: .*'body'"):
        list(text.read(tmp_path / "a" / "x.jsonl", field="body"))
    (tmp_path / "d.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(BadFileError, match="UTF-8"):
        list(text.read(tmp_path / "d.txt"))
    with pytest.raises(OptionError, match="no such file"):
        text.check(tmp_path / "none.txt")
    with pytest.raises(OptionError, match="no such file"):
        list(text.read("nothing"))
    (tmp_path / "e").mkdir()
    with pytest.raises(BadFileError, match=r"holds no \.txt"):
        list(text.read(tmp_path / "e"))
    with pytest.raises(BadFileError, match="no two tokens"):
        text.windows(tiny.tokenizer(), [("a", "")], 8)


def test_lines_end_where_json_lines_do(tmp_path):
    """Not at the other separators that Unicode has, which texts hold."""
    told = ["one\u2028two\x85three", "four"]
    path = tmp_path / "x.jsonl"
    path.write_bytes("".join(json.dumps({"text": t}, ensure_ascii=False) + "\r\n" for t in told).encode())
    assert list(text.read(path)) == [("x.jsonl:1", told[0]), ("x.jsonl:2", told[1])]


def test_data_sets_on_the_hub(tmp_path, monkeypatch):
    import huggingface_hub

    (tmp_path / "train.txt").write_text("the cat")
    listing = ["README.md", ".gitattributes", "train.txt", "data.parquet"]
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda *a, **k: listing)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo, name, **k: str(tmp_path / name))
    text.check("org/set")
    assert list(text.read("org/set")) == [("train.txt", "the cat")]
    listing.remove("train.txt")
    with pytest.raises(UnsupportedError, match=r"it holds data\.parquet"):
        list(text.read("org/set"))

    def offline(*a, **k):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "list_repo_files", offline)
    with pytest.raises(BadFileError, match="org/set: no such file or folder here, and the Hub"):
        list(text.read("org/set"))
