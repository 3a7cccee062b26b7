"""Write the pages that come from docstrings and signatures: docs/methods and docs/api.md.

    python docs/build.py           # write them
    python docs/build.py --check   # write nothing; say what differs, and exit with 1 if anything does

Nothing in those pages is edited by hand: a test fails when they are not what this makes.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import textwrap
from collections.abc import Callable
from importlib import import_module
from itertools import chain, groupby
from pathlib import Path
from typing import Any, get_args

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))

from paring import api, errors, registry  # noqa: E402

#: where the classes of reports are
REPORTS = [import_module(f"paring.{where}report") for where in ("", "diffing.", "pooling.", "pruning.")]
#: what ``paring.registry`` calls that which a method is given, for the index
SEES = {
    "weights": "weights",
    "deltas": "deltas",
    "modules": "factors of adapters",
    "adapters": "adapters, all together",
    "tensors": "tensors, one by one",
    "methods": "other methods' results",
    "norms": "weights, norms of inputs",
    "grams": "weights, products of inputs",
    "model": "a model and text",
}
#: what a method that declares it is held to by ``tests/test_merge_contract.py``
INVARIANTS = {
    "identity": "One model alone, with weight 1, is itself.",
    "order": "The order of the models, with their weights, does not matter.",
    "cancel": "A model with some weight and again with minus that weight gives nothing.",
    "homogeneous": "Vectors scaled by a power of two give the result scaled by it.",
    "magnitude": "Scores order as magnitudes do, so 16-bit files are compared as they are stored.",
}
VERBS = {
    "compress": "Adapters, fine-tunes and checkpoints made smaller: [compressing](../compressing.md).",
    "merge": "Several models made one: [merging](../merging.md).",
    "prune": "Weights set to zero, and what is left retrained: [pruning](../pruning.md), "
    "[retraining](../perp.md).",
}
_WIDTH = 118


def pages() -> dict[str, str]:
    """All generated pages: their paths under ``docs`` and their text."""
    found = {"methods/README.md": _index(), "api.md": _api()}
    for kind in get_args(registry.Kind):
        for method in _methods(kind):
            found[f"methods/{kind}/{method.name}.md"] = _method(method)
    return found


def _methods(kind: registry.Kind) -> list[registry.Method]:
    """Our methods, without those of other distributions."""
    found = [registry.load(kind, name) for name in registry.names(kind)]
    return [method for method in found if method.function.__module__.startswith("paring.")]


def _index() -> str:
    out = [_made_from("the methods' docstrings"), "# Methods", "", "One page a method."]
    out += ["`paring methods` lists the same, and those of other distributions."]
    out += ["How to [add a method](../adding-a-method.md).", ""]
    for kind in get_args(registry.Kind):
        out += [f"## {kind}", "", VERBS[kind], ""]
        out += ["| `--method` | sees | what it does | from |", "|---|---|---|---|"]
        for method in _methods(kind):
            flag = f"[`{method.name}`]({kind}/{method.name}.md)"
            summary = re.sub(r"^[\w+-]+: (.)", lambda found: found[1].upper(), method.summary)
            cells = [flag, SEES[method.sees], prose(summary), _linked(method.reference)]
            out.append(_row(cells))
        out.append("")
    return _text(out)


def _method(method: registry.Method) -> str:
    module = inspect.getmodule(method.function)
    text = inspect.getdoc(module) or ""
    parts = re.split(r"\s(Cost|When\s+not\s+to\s+use\s+it):\s", " " + text)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    recipe = method.sees == "model"
    flag = f"--{'retrain' if recipe else 'method'} {method.name}"
    out = [_made_from(f"{method.kind}/{method.name}.py"), f"# {method.kind} {flag}", ""]
    out += [prose(parts[0].strip(), depth=3), "", f"Reference: {_linked(method.reference)}.", ""]
    out += ["```console", f"$ {_command(method, flag)}", "```", ""]
    for title, body in sections.items():
        out += [f"## {' '.join(title.split())}", "", prose(body[0].upper() + body[1:], depth=3), ""]
    out += ["## Options", ""]
    out += _options(method, "options of the recipe" if recipe else "options")
    notes = re.sub(r"^Options:\n(?: {4}.*\n?|\n(?= {4}))*", "", _rest(method.function), flags=re.MULTILINE)
    if notes.strip():
        out += ["## In Python", "", prose(notes.strip(), depth=3), ""]
    told = [INVARIANTS[name] for name in method.invariants]
    if told:
        out += ["## Invariants", "", *(f"- {line}" for line in told), ""]
    return _text(out)


def _options(method: registry.Method, what: str) -> list[str]:
    if not method.options:
        return [f"No {what} of its own.", ""]
    out = ["| option | value | default | |", "|---|---|---|---|"]
    for option in method.options.values():
        flag = option.name.replace("_", "-")
        if bool in option.types:
            flags, value = f"`--{flag}` / `--no-{flag}`", ""
            default = f"`{'' if option.default else 'no-'}{flag}`"
        else:
            kinds = [kind.__name__.upper() for kind in option.types if kind is not type(None)]
            flags, value = f"`--{flag}`", " or ".join([*(f"`{one}`" for one in option.choices), *kinds])
            default = "" if option.default is None else f"`{option.default}`"
        out.append(_row([flags, value, default, prose(option.help[:1].upper() + option.help[1:])]))
    for name, preset in method.presets.items():
        told = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in preset.items())
        out.append(_row([f"`--{name}`", "", "", f"the same as `{told}`"]))
    return [*out, ""]


def _command(method: registry.Method, flag: str) -> str:
    """The command line that calls a method, as one would type it."""
    if method.kind == "compress":
        if method.sees == "adapters":
            return f"compress a/ b/ c/ {flag} -o pool.paring.safetensors"
        whole = method.sees in ("weights", "tensors")
        return f"compress {'model/' if whole else 'adapter/'} {flag} -o small.paring.safetensors"
    if method.kind == "merge":
        if method.name == "passthrough":
            return "merge recipe.yaml -o merged/  # method: passthrough, and slices: see docs/recipes.md"
        models = "a/ b/" if method.name in ("slerp", "nuslerp") else "a/ b/ c/"
        return f"merge {models} {flag}{' --base base/' if method.sees == 'deltas' else ''} -o merged/"
    more = {"norms": " --stats stats.safetensors", "grams": " --stats stats.safetensors"}
    more |= {"model": " --data text.txt"}
    return f"prune model/ --sparsity .5 {flag}{more.get(method.sees, '')} -o pruned/"


def _api() -> str:
    out = [_made_from("paring/api, its reports and paring/errors.py"), "# The Python API", ""]
    out += [prose(inspect.getdoc(api) or "", depth=1), ""]
    out += [
        "Names of the Hub go wherever paths go ([hub.md](hub.md)). What a method takes as further arguments"
    ]
    out += ["is on [its page](methods/README.md): `--density` there is `density=` here.", ""]
    verbs = [(name, getattr(api, name)) for name in api.__all__]
    out += ["| verb | |", "|---|---|"]
    for name, verb in verbs:
        first = (inspect.getdoc(verb) or "").split("\n\n")[0].replace("\n", " ")
        out.append(_row([f"[`{name}`](#{name})", prose(re.split(r"(?<=[.:]) ", first)[0].rstrip(":"))]))
    out.append("")
    for name, verb in verbs:
        out += [f"## {name}", "", "```text", *_signature(name, verb), "```", ""]
        out += [prose(inspect.getdoc(verb) or "", depth=1), ""]
    out += ["## Reports", ""]
    out += [
        "What verbs return. `to_json()` gives what `--json` prints: fields that do not apply are left out.",
        "",
    ]
    for name, kind in chain.from_iterable(map(_classes, REPORTS)):
        if dataclasses.is_dataclass(kind):
            inherited = next((base for base in kind.__bases__ if dataclasses.is_dataclass(base)), None)
            known = {field.name for field in dataclasses.fields(inherited)} if inherited else set()
            fields = [f"`{field.name}`" for field in dataclasses.fields(kind) if field.name not in known]
            more = f"Those of `{inherited.__name__}`, and " if inherited else ""
            out += [f"### {name}", "", prose(inspect.getdoc(kind) or "", depth=1), ""]
            out += [*_filled(f"{more or 'Fields: '}{', '.join(fields)}.", "", ""), ""]
    out += ["## Errors", "", "All are in `paring.errors`; the message is fit to show to a user.", ""]
    out += ["| error | |", "|---|---|"]
    for name, kind in _classes(errors):
        bases = [base.__name__ for base in kind.__bases__ if base.__module__ == "builtins"]
        told = prose(inspect.getdoc(kind) or "").replace("\n", " ")
        out.append(_row([f"`{name}`", f"{told} Also a `{bases[0]}`." if len(kind.__bases__) > 1 else told]))
    return _text([*out, ""])


def _signature(name: str, verb: Callable[..., Any]) -> list[str]:
    """A signature, on a line or one argument a line."""
    signature = inspect.signature(verb)
    found = []
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in found:
            found.append("*")
        stars = "**" if parameter.kind is parameter.VAR_KEYWORD else ""
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        found.append(f"{stars}{parameter.name}: {parameter.annotation}{default}")
    whole = f"{name}({', '.join(found)}) -> {signature.return_annotation}"
    if len(whole) <= 100:
        return [whole]
    return [f"{name}(", *(f"    {one}," for one in found), f") -> {signature.return_annotation}"]


def _classes(module: Any) -> list[tuple[str, type]]:
    """The public classes that a module defines, in order of the file."""
    found = [(name, kind) for name, kind in vars(module).items() if inspect.isclass(kind)]
    own = [(name, kind) for name, kind in found if kind.__module__ == module.__name__]
    return [(name, kind) for name, kind in own if not name.startswith("_")]


def _rest(function: Callable[..., Any]) -> str:
    """A docstring without its first paragraph."""
    return (inspect.getdoc(function) or "").partition("\n\n")[2]


def prose(text: str, depth: int = 0) -> str:
    """A docstring's text as Markdown. ``depth`` is how far below ``docs`` the page is, less one; 0 for a
    cell of a table, which stays on one line.
    """
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`")
    if not depth:
        return " ".join(text.split())
    up = "../" * (depth - 1)
    text = re.sub(r"(?<![`/\w])docs/([\w-]+)\.md", rf"[\1.md]({up}\1.md)", text)
    out: list[str] = []
    for is_code, blocks in groupby(re.split(r"\n{2,}", text), lambda block: block.startswith("    ")):
        if is_code:
            code = textwrap.dedent("\n\n".join(blocks))
            out += [f"```{_language(code)}", *code.split("\n"), "```", ""]
            continue
        for block in blocks:
            for item in re.split(r"\n(?=- |\d+\. )", block):
                found = re.match(r"- |\d+\. ", item)
                mark = found[0] if found else ""
                out += _filled(item[len(mark) :], mark, " " * len(mark))
            out.append("")
    return "\n".join(out).strip()


def _language(code: str) -> str:
    try:
        compile(code, "docstring", "exec")
    except SyntaxError:
        return "text"
    return "python"


def _filled(text: str, first: str, then: str) -> list[str]:
    """Text in lines; code is never broken."""
    whole = re.sub(r"`[^`]+`", lambda found: found[0].replace(" ", "\0"), " ".join(text.split()))
    lines = textwrap.wrap(
        whole, _WIDTH, initial_indent=first, subsequent_indent=then, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
    return [line.replace("\0", " ") for line in lines]


def _linked(reference: str) -> str:
    """A reference whose arXiv numbers are links."""
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", reference)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _made_from(source: str) -> str:
    return f"<!-- made by docs/build.py from {source} -->\n"


def _text(lines: list[str]) -> str:
    return "\n".join(lines).rstrip() + "\n"


def differing() -> list[str]:
    """What stands in ``docs`` otherwise than :func:`pages` has it: what differs, lacks, or is left over."""
    made = pages()
    files = [*(DOCS / "methods").rglob("*.md"), *DOCS.glob("api.md")]
    there = {path.relative_to(DOCS).as_posix(): path.read_text(encoding="utf-8") for path in files}
    return sorted(name for name in {*made, *there} if made.get(name) != there.get(name))


def main(check: bool) -> int:
    wrong = differing()
    for name in wrong:
        print(f"docs/{name} {'is not what docs/build.py makes' if check else 'written'}")
    if not check:
        made = pages()
        for name in wrong:
            if name in made:
                (DOCS / name).parent.mkdir(parents=True, exist_ok=True)
                (DOCS / name).write_text(made[name], encoding="utf-8")
            else:
                (DOCS / name).unlink()
    return 1 if check and wrong else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
