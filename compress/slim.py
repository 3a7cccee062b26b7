"""Slimming: whole modules dropped first, then ranks of those that stay, by scores (Light-PEFT).

Light-PEFT scores modules and ranks while training starts: a module by ``||update's output|| / ||layer's
output||``, a rank by first-order importance ``|p dL/dp|`` summed over its row of A; then it drops the
modules below one quantile and, of what is left, the ranks below another, over all modules together. Such
scores can be given here (``--scores``). Without them a *proxy of ours*, which needs no data, takes their
place: a module's score is the norm of its update, ``||scale B A||_F``, a rank's is its singular value, and
a module keeps the first rank vectors of its balanced SVD (see ``truncate``). The norms of the base's
weights, by which the score of a module should be divided, are not looked at.

The file of scores is a JSON object of module (as ``paring inspect`` calls it) -> score of the module, or of
module -> list of scores, one for each rank vector as trained, whose sum is the module's score; all modules,
and all in one of the two ways.

Cost: without scores an SVD of every module's r x r core, O((in + out) r^2); with scores of ranks none. When
not to use it: where the error of the update counts; ``truncate`` loses least for its size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from paring.coding import Factors, Family
from paring.compress import _ranks
from paring.errors import BadFileError, OptionError
from paring.registry import method, nearest
from paring.untrusted import parse_json


@method(
    sees="modules",
    reference="Gu et al.: Light-PEFT, arXiv:2406.03792; scores without data are ours",
)
def slim(
    factors: Sequence[Factors],
    threads: int = 1,
    device: str = "cpu",
    *,
    modules: float = 0.25,
    ranks: float = 0.5,
    scores: str | None = None,
    store: Literal["source", "fp16", "bf16", "fp32"] = "source",
) -> Family:
    """Slimming: drop the modules of least score, then the ranks of least score (Light-PEFT).

    Options:
        modules: share of modules kept, in (0, 1], rounded up (the published scripts': .25)
        ranks: share kept of the ranks of those, in (0, 1], over all modules, rounded up (published: .5)
        scores: a JSON file of module -> score, or module -> list of scores of its ranks; without it a
            module's score is the norm of its update and a rank's its singular value (ours)
        store: the dtype of the factors

    Returns a single coding: a budget beside it is checked, not solved. Modules that their format cannot leave
    out keep one rank. Raises OptionError, BadFileError for a file of scores that makes no sense, and
    UnsupportedError where nothing has ranks.
    """
    for name, share in (("modules", modules), ("ranks", ranks)):
        if not 0.0 < share <= 1.0:
            raise OptionError(f"--{name} {share}: the share kept, in (0, 1]")
    given = None if scores is None else _scores(scores, [f for f in factors if f.b is not None])
    by_rank = given is not None and all(isinstance(value, list) for value in given.values())
    parts, vectors = _ranks.parts(factors, "trained" if by_rank else "svd", threads)
    of_module = np.array([part.energy**0.5 for part in parts])
    of_ranks = [np.sqrt(part.gains) for part in parts]
    if given is not None:
        own = [given[part.factors.name] for part in parts]
        of_module = np.array([np.sum(value) for value in own], np.float64)
        if by_rank:
            of_ranks = [np.array(value, np.float64) for value in own]
    staying = _best(of_module, modules)
    pool = np.concatenate([of_ranks[i] for i in staying])
    best = set(_best(pool, ranks).tolist())
    tensors = dict(_ranks.whole(vectors))
    first = dict(
        zip(staying.tolist(), np.cumsum([0, *(parts[i].rank for i in staying)]).tolist(), strict=False)
    )
    for i, part in enumerate(parts):
        chosen = [k for k in range(part.rank) if i in first and first[i] + k in best]
        if not chosen and part.factors.needed:
            chosen = [int(of_ranks[i].argmax())]
        tensors.update(_ranks.kept(part, np.array(chosen, np.int64), store))
    return _ranks.Fixed(dict(tensors))


def _best(scores: npt.NDArray[np.float64], share: float) -> npt.NDArray[np.int64]:
    """The places of the highest scores, in order of place; equal ones from the front."""
    count = -int(-Fraction(str(share)) * len(scores) // 1)
    return np.sort(np.argsort(-scores, kind="stable")[:count])


def _scores(path: str, modules: Sequence[Factors]) -> Mapping[str, Any]:
    """The scores in a file, checked against the modules. Raises OptionError or BadFileError."""
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise OptionError(f"--scores {path}: {error.strerror or error}") from None
    told = parse_json(raw, path)
    ranks = {factors.name: len(factors.A) for factors in modules}
    for name, value in told.items():
        if name not in ranks:
            raise BadFileError(f"{path}: the adapter has no module {name!r}{nearest(name, ranks)}")
        numbers = value if isinstance(value, list) else [value]
        if not all(type(n) in (int, float) and abs(n) < float("inf") for n in numbers):
            raise BadFileError(f"{path}: the scores of {name} must be finite numbers")
        if isinstance(value, list) and len(value) != ranks[name]:
            raise BadFileError(f"{path}: {len(value)} scores for {name}, which has {ranks[name]} ranks")
    if missing := [name for name in ranks if name not in told]:
        raise BadFileError(f"{path}: no score for {missing[0]} ({len(missing)} modules have none)")
    if len({isinstance(value, list) for value in told.values()}) > 1:
        raise BadFileError(f"{path}: give a score for every module, or a list for every module, not both")
    return told
