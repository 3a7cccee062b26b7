"""What the pages show of benchmarks is what their results say."""

from __future__ import annotations

import pytest

from benchmarks import __main__ as entry
from benchmarks import page
from benchmarks.machine import ROOT

MARK = "<!-- figures: {} -->\nstale\n<!-- /figures -->\n"


@pytest.mark.parametrize("file", page.pages(ROOT), ids=str)
def test_pages_are_rendered_from_the_results_that_are_there(file):
    text = file.read_text(encoding="utf-8")
    assert page.filled(text) == text


def test_every_result_is_on_a_page_and_of_a_benchmark():
    marks = {mark[2] for file in page.pages(ROOT) for mark in page._MARK.finditer(file.read_text())}
    results = {file.stem for file in page.RESULTS.glob("*.json")}
    assert results == {page.BLOCKS[mark][0] for mark in marks}
    assert results <= set(entry.PARTS)


def test_a_stale_block_is_made_anew_and_an_unknown_one_noticed():
    made = page.filled(MARK.format("prune"))
    assert "stale" not in made
    assert "| global |" in made
    assert page.filled(made) == made
    with pytest.raises(KeyError):
        page.filled(MARK.format("purne"))


def test_a_block_whose_results_are_not_there_stays(monkeypatch, tmp_path):
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    assert page.filled(MARK.format("prune")) == MARK.format("prune")


def test_every_benchmark_takes_the_file_that_it_is_given(capsys, monkeypatch):
    import importlib

    for name in entry.PARTS:
        module = importlib.import_module(f"benchmarks.{name}")
        monkeypatch.setattr("sys.argv", [name, "--help"])
        with pytest.raises(SystemExit):
            module.main()
        assert "--json" in capsys.readouterr().out


ADAPTERS = {
    "machine": "one", "rows": [{
        "method": "spectral", "asked": 16, "ratio_fp16": {"a": 16.0, "b": 17.0},
        "error": {"a": 0.25, "b": 0.35}, "over_bound": {"a": 1.05, "b": None},
        "kept": {"accuracy": 0.99, "accuracy_se": 0.01, "nll": 1, "nll_se": 0},
    }],
}  # fmt: skip


def test_tables_of_adapters():
    assert page.adapters(ADAPTERS).splitlines()[2] == (
        "| **default** | 16.5 | 0.300 | 0.990 ± 0.010 | 1.000 ± 0.000 | 1.05 |"
    )
    assert len(page.ternary(ADAPTERS).splitlines()) == 2  # none of its methods
    assert page.adapters({"rows": ADAPTERS["rows"] * 2}) == page.adapters(ADAPTERS)
    assert "| **`spectral`** (default) | 0.99 ± 0.01 |  |  |  |" in page.kept(ADAPTERS)


def test_tables_of_quality():
    merged = {"rule": "ties", "options": {"trim": "tensor"}, "scale": 1.0, "accuracy": {"a": 0.5, "b": 0.7},
              "closed": 0.7, "error": 0.06}  # fmt: skip
    assert "| `ties --trim tensor` | 1 | 0.600 | 0.70 ± 0.06 |" in page.merge_quality({"rows": [merged]})
    pruned = {"amount": "2:4", "case": "wanda", "perplexity": 186.9, "loss": 1.514, "error": 0.029}
    found = page.prune_quality({"rows": [{"case": "dense", "perplexity": 41.1}, pruned]})
    assert "| `wanda` |  |  | 186.9 | 1.514 ± 0.029 |" in found
    lines = [
        {"what": what, "ratio": ratio, "error": 0.1}
        for what in ("LoRA of rank 5, fp16", "int4")
        for ratio in (8.0, 16.0)
    ]
    other = [{**line, "what": line["what"].replace("5", "2"), "error": 0.2} for line in lines]
    found = page.finetune({"fp32": lines, "fp16": other})
    assert "| LoRA of rank 5 or 2, fp16 | 16.0 | 0.100 | 16.0 | 0.200 |" in found
    assert "| int4 | 8.0 | 0.100 | 8.0 | 0.200 |" in found


def test_pictures_are_drawn_from_results_with_their_machine(monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, file, **_: figures.append(self))
    (tmp_path / "docs").mkdir()
    assert list(page.draw(tmp_path, ["perp", "merge"])) == [tmp_path / "docs" / "perp.png"]
    (figure,) = figures
    assert "commit" in figure._supxlabel.get_text()
    assert "dense" in [label.get_text() for label in figure.axes[0].get_yticklabels()]
