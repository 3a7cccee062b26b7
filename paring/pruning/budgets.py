"""What each matrix keeps, from options and shapes; and what is given tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from paring.errors import BadFileError, OptionError, UnsupportedError
from paring.pruning import allocating, sparsity
from paring.pruning.matrix import Budget
from paring.pruning.reading import matrices, shapes
from paring.pruning.tensors import Target, fits

if TYPE_CHECKING:
    from paring.pruning.request import Request

#: what sparse tensor cores and their libraries want of rows and columns, of 16-bit entries
_HARDWARE = {"cuSPARSELt": (16, 16), "CUTLASS": (32, 64)}
_LONGEST = 1 << 20

#: a sparsity, (keep, of), or "dense"
Wanted = Fraction | tuple[int, int] | Literal["dense"]


def of_targets(
    request: Request, targets: Sequence[Target], share: Fraction | None
) -> tuple[dict[str, Budget], frozenset[str], list[str]]:
    """Budgets by matrix, as far as shapes tell them; the tensors that ``--budget`` is for; warnings. What is
    kept whole, or has to be looked at first, has none.

    Raises OptionError, UnsupportedError for an axis that groups do not divide.
    """
    own = _given(request, targets)
    rest = [target for target in targets if target.name not in own]
    kept: Mapping[str, int] = {}
    if share is not None and request.scope != "global" and request.allocate not in allocating.BY_DATA:
        kept = (allocating.erk if request.allocate == "erk" else allocating.uniform)(shapes(rest), share)
    common: Wanted = "dense" if request.keep is None or request.of is None else (request.keep, request.of)
    found: dict[str, Budget] = {}
    for index, number in matrices(targets):
        target = targets[index]
        name = target.matrix(number)
        budget = _budget(target, own.get(target.name, common), kept.get(name), request.scope == "row")
        if budget is not None:
            found[name] = budget
            if budget.of is not None and target.inn % budget.of and request.tail == "error":
                raise UnsupportedError(
                    f"{target.name} has {target.inn} inputs, which groups of {budget.of} do not divide: "
                    "--tail dense keeps the last ones whole, --exclude leaves the tensor alone"
                )
    return found, frozenset(own), _unfit(targets, found)


def _budget(target: Target, wanted: Wanted, kept: int | None, row: bool) -> Budget | None:
    """Of one matrix: what it is to lose, or ``kept`` where an allocator has said that."""
    if isinstance(wanted, tuple):
        return Budget(wanted[0], of=wanted[1])
    if kept is None and not isinstance(wanted, Fraction):
        return None
    if row:
        share = wanted if isinstance(wanted, Fraction) else 1 - Fraction(kept or 0, target.size)
        return Budget(target.inn - sparsity.pruned(share, target.inn), row=True)
    if isinstance(wanted, Fraction):
        return Budget(target.size - sparsity.pruned(wanted, target.size))
    return Budget(kept or 0)


def fewest(targets: Sequence[Target], share: Fraction, told: Mapping[str, Any]) -> int:
    """How many zeros pruning to ``share`` makes at least, in all; ``told`` is a recipe of how it was done.

    Where it tells nothing each matrix loses the whole part of its share. Where each row does, of shares that
    an allocator gave, less than one entry a row is missing from the whole part of all.
    """
    whole = sparsity.pruned(share, sum(target.numel for target in targets))
    scope, allocate, lines = told.get("scope"), told.get("allocate", "uniform"), told.get("lines")
    if allocate != "uniform" and allocate != "lamp" and scope == "row":
        rows = sum(target.stack * max(way.out for way in _ways(target)) for target in targets)
        return whole - max(0, rows - 1)
    if allocate != "uniform" or scope == "global":
        return whole
    lost = ((min(_lost(way, share, scope == "row", lines) for way in _ways(t)), t.stack) for t in targets)
    return sum(each * stack for each, stack in lost)


def _ways(target: Target) -> list[Target]:
    """How a target may lie in its file; a file without its config.json may not tell."""
    return (
        [target] if target.turned is not None else [target, replace(target, out=target.inn, inn=target.out)]
    )


def _lost(target: Target, share: Fraction, row: bool, lines: object) -> int:
    """Of one matrix."""
    if lines == "outputs":
        return sparsity.pruned(share, target.out) * target.inn
    if lines == "inputs":
        return sparsity.pruned(share, target.inn) * target.out
    budget = _budget(target, share, None, row)
    assert budget is not None, "there is a share"
    return target.out * (target.inn - budget.keep) if row else target.size - budget.keep


def _given(request: Request, targets: Sequence[Target]) -> dict[str, Wanted]:
    """What ``--budget`` gives each tensor; of several patterns that fit, the last counts."""
    parsed = {pattern: value_of(pattern, told) for pattern, told in (request.budgets or {}).items()}
    out: dict[str, Wanted] = {}
    for pattern, value in parsed.items():
        found = [target.name for target in targets if fits(target.name, pattern)]
        if not found:
            some = ", ".join(target.name for target in targets[:3])
            raise OptionError(f"--budget {pattern} fits nothing that is pruned; there are {some}, ...")
        out.update(dict.fromkeys(found, value))
    if parsed and request.sparsity is None and request.of is None:
        for target in targets:
            if target.name not in out:
                raise OptionError(
                    f"no --budget fits {target.name}: add --sparsity for the rest, or '*=dense'"
                )
    return out


def value_of(pattern: str, told: object) -> Wanted:
    """A budget as written: a sparsity, ``2:4``, or ``dense``. Raises OptionError."""
    if told == "dense":
        return "dense"
    if isinstance(told, str) and ":" in told:
        return sparsity.pattern(told)
    if isinstance(told, str | int | float) and not isinstance(told, bool):
        return sparsity.fraction(told, f"--budget {pattern}")
    raise OptionError(f"--budget {pattern}: expected a sparsity, keep:of or dense, not {told!r}")


def read(given: Sequence[str], file: str | None) -> dict[str, Any]:
    """Budgets by pattern: those of a YAML or JSON ``file``, then ``PATTERN=VALUE`` texts. Raises OptionError,
    BadFileError."""
    found: dict[str, Any] = {}
    if file is not None:
        found.update(_read_file(Path(file)))
    for text in given:
        pattern, mark, value = text.rpartition("=")
        if not mark or not pattern or not value:
            raise OptionError(f"--budget {text}: expected PATTERN=VALUE, such as '*mlp*=.6'")
        found.pop(pattern, None)  # the last one given comes last
        found[pattern] = value
    for pattern, told in found.items():
        value_of(pattern, told)
    return found


def _read_file(path: Path) -> dict[str, Any]:
    import yaml

    try:
        if path.stat().st_size > _LONGEST:
            raise BadFileError(f"{path} is larger than {_LONGEST} bytes: no budgets")
        # numbers are kept as they are written: .29 is 29/100
        told = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except OSError as error:
        raise BadFileError(f"{path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeError) as error:
        raise BadFileError(f"{path} is not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(told, dict) or not all(isinstance(value, str) for value in told.values()):
        raise BadFileError(
            f"{path}: expected patterns of tensors' names, each with a sparsity, keep:of, dense"
        )
    return {str(key): value for key, value in told.items()}


def _unfit(targets: Sequence[Target], found: Mapping[str, Budget]) -> list[str]:
    """A warning of matrices that keep 2 of 4, but of a shape that sparse tensor cores do not take."""
    groups = [target for target in targets if (b := found.get(target.matrix(0))) and (b.keep, b.of) == (2, 4)]
    out = []
    for library, (rows, columns) in _HARDWARE.items():
        bad = [target for target in groups if target.out % rows or target.inn % columns]
        if bad:
            more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
            out.append(
                f"2:4 kernels ({library}, 16 bits) need multiples of {rows} × {columns}: {bad[0].name}, "
                f"{bad[0].out} × {bad[0].inn}{more} will run dense"
            )
    turned = next((target for target in groups if target.turned), None)
    if turned is not None:
        out.append(f"{turned.name} is stored as (in, out): kernels want its groups along rows, transposed")
    return out
