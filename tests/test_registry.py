"""Methods: found by file name, described by their signatures, added from elsewhere, cheap to look at."""

import subprocess
import sys
from pathlib import Path
from typing import Literal, get_args

import pytest

from paring import registry
from paring.errors import OptionError
from paring.registry import Kind, Option, describe, load, method, names

ROOT = Path(__file__).parent.parent
METHODS = [(kind, name) for kind in get_args(Kind) for name in names(kind)]


@method(sees="deltas", reference="nobody, nowhere", presets={"bold": {"count": 3}})
def sample(
    deltas: list[float],
    *,
    count: int = 2,
    share: float | None = None,
    alpha: float | Literal["lsq"] = "lsq",
    sign: Literal["mass", "total"] = "mass",
    exact: bool = False,
) -> None:
    """A sample: does nothing.

    Options:
        count: how many
        share: how much of it, a text that goes on
            for two lines
        alpha: a number, or lsq
        sign: which sign
        exact: whether exactly

    Returns nothing.
    """


SAMPLE = describe(sample, "merge", "sample")


@pytest.mark.parametrize(("kind", "name"), METHODS)
def test_every_method_is_declared_and_documented(kind, name):
    found = load(kind, name)
    assert (found.kind, found.name, found.function.__name__) == (kind, name, name)
    assert found.sees in get_args(registry.Sees)
    assert found.reference
    assert found.summary.endswith(".")
    for option in found.options.values():
        assert option.help, f"{name}: the docstring does not explain {option.name}"
        assert option.types or option.choices
        assert option.parse(option.default) == option.default
    for preset in found.presets.values():
        assert found.parse(preset).keys() == found.options.keys()


def test_files_are_methods_and_methods_files():
    files = {path.stem for path in (ROOT / "compress").glob("[!_]*.py")}
    assert "compeft" in files
    assert set(names("compress")) == files


def test_a_signature_becomes_options():
    assert SAMPLE.summary == "A sample: does nothing."
    assert (SAMPLE.sees, SAMPLE.reference, SAMPLE.presets) == (
        "deltas",
        "nobody, nowhere",
        {"bold": {"count": 3}},
    )
    assert SAMPLE.options["count"] == Option("count", (int,), (), 2, "how many")
    share = SAMPLE.options["share"]
    assert share.types == (float, type(None))
    assert share.help == "how much of it, a text that goes on for two lines"
    assert SAMPLE.options["alpha"] == Option("alpha", (float,), ("lsq",), "lsq", "a number, or lsq")
    assert SAMPLE.options["sign"].choices == ("mass", "total")
    assert SAMPLE.parse({}) == {"count": 2, "share": None, "alpha": "lsq", "sign": "mass", "exact": False}


@pytest.mark.parametrize(
    ("name", "given", "meant"),
    [
        ("count", "7", 7),
        ("count", 7, 7),
        ("share", "0.25", 0.25),
        ("share", 1, 1.0),
        ("share", None, None),
        ("alpha", "lsq", "lsq"),
        ("alpha", "1.5", 1.5),
        ("sign", "total", "total"),
        ("exact", True, True),
    ],
)
def test_what_is_typed_becomes_what_is_meant(name, given, meant):
    value = SAMPLE.options[name].parse(given)
    assert value == meant
    assert type(value) is type(meant)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("count", "7.5", "--count 7.5: expected int"),
        ("count", True, "--count True: expected int"),
        ("count", None, "--count None: expected int"),
        ("share", "much", "--share much: expected float"),
        ("alpha", "lsr", "--alpha lsr: expected lsq or float"),
        ("sign", "masses", "--sign masses: expected mass or total"),
        ("exact", 1, "--exact 1: expected bool"),
    ],
)
def test_what_cannot_be_meant_is_refused(name, given, message):
    with pytest.raises(OptionError) as caught:
        SAMPLE.options[name].parse(given)
    assert str(caught.value) == message


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(OptionError, match="no compress method 'compefd'; did you mean 'compeft'"):
        load("compress", "compefd")
    with pytest.raises(OptionError, match="no merge method 'zzz'; `paring methods`"):
        load("merge", "zzz")
    with pytest.raises(OptionError, match="method sample has no option --cuont; did you mean 'count'"):
        SAMPLE.parse({"cuont": 1})
    with pytest.raises(OptionError, match=r"no compress method '_ternary'"):
        load("compress", "_ternary")


def test_a_function_without_the_decorator_is_not_a_method():
    with pytest.raises(TypeError, match="not decorated"):
        describe(print, "merge", "print")


EXTERNAL = '''
from paring.registry import method

@method(sees="modules", reference="elsewhere")
def halve(modules, *, by: int = 2):
    """Halve: a method from elsewhere.

    Options:
        by: divisor
    """

@method(sees="modules", reference="an impostor")
def compeft(modules):
    """Not ours."""
'''


def test_another_distribution_adds_methods(tmp_path, monkeypatch):
    (tmp_path / "elsewhere_methods.py").write_text(EXTERNAL)
    info = tmp_path / "elsewhere_methods-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere-methods\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[paring.compress]\nhalve-it = elsewhere_methods:halve\ncompeft = elsewhere_methods:compeft\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert "halve_it" in names("compress")
    for name in ("halve_it", "halve-it"):
        found = load("compress", name)
        assert (found.name, found.reference) == ("halve_it", "elsewhere")
        assert found.parse({"by": "3"}) == {"by": 3}
    assert names("compress").count("compeft") == 1
    assert "Yadav" in load("compress", "compeft").reference, (
        "another distribution must not replace our method"
    )
    with pytest.raises(OptionError, match="no merge method"):
        load("merge", "halve_it")


def test_looking_at_methods_imports_neither_torch_nor_numba():
    script = """
import sys
import paring, paring.registry as registry
assert not {"numpy", "torch", "numba"} & sys.modules.keys(), "import paring.registry"
assert registry.load("compress", "compeft").options
assert registry.names("merge") is not None
print(sorted({"torch", "numba", "scipy"} & sys.modules.keys()))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
