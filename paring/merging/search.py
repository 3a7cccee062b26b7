"""``merge --search``: weights that score best, by a user's command or function.

Every trial merges with other weights to ``OUT`` 's trial folder and scores that. What a rule must know of the
models (thresholds, inner products, digests) does not depend on weights: it is found once for all trials, and
only the pass that writes is redone. Trials are proposed by Optuna's TPE sampler from a seed and kept in a
journal beside the output, so that a search that was stopped goes on; a command that prints scores on the way
is stopped when they are worse than the median of earlier trials' at that point.
"""

from __future__ import annotations

import hashlib
import json
import math
import shlex
import shutil
import subprocess
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from paring import atomic
from paring.errors import BadFileError, OptionError, UnsupportedError
from paring.merging.places import placed
from paring.merging.request import Request, check
from paring.merging.single import How, merge_one
from paring.report import Jsonable, Report

#: a score of the model at a path; larger is better
Score = Callable[[Path], float]


@dataclass(frozen=True, slots=True)
class Trial:
    """One try: weights by model (one each, or several spread over the layers), score, and how it ended."""

    number: int
    weights: list[Any]
    score: float | None
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Found(Jsonable):
    """What a search found: all trials, the best, and the report of the merge with its weights."""

    command: str = "search"
    best: Trial
    trials: list[Trial] = field(default_factory=list)
    merge: Report


@dataclass(frozen=True, slots=True)
class Space:
    """What is searched: ``trials`` weights within ``low .. high``, ``anchors`` a model spread over the
    layers (1: one weight for the whole model)."""

    trials: int = 30
    low: float = 0.0
    high: float = 1.5
    anchors: int = 1
    seed: int = 0
    maximise: bool = True

    def check(self) -> None:
        """Raise OptionError for what cannot be meant."""
        if self.trials < 1:
            raise OptionError(f"--trials {self.trials}: at least 1")
        if not self.low < self.high or not math.isfinite(self.low) or not math.isfinite(self.high):
            raise OptionError(f"--low {self.low} --high {self.high}: expected two numbers, the lower first")
        if self.anchors < 1:
            raise OptionError(f"--anchors {self.anchors}: at least 1")


def search(request: Request, output: Path, score: Score | str, space: Space, how: How) -> Found:
    """Search weights for ``request``, then merge with the best to ``output``.

    ``score`` is a function of a path, or a command in which ``{}`` stands for it; the last number that it
    prints counts. Raises UnsupportedError without Optuna, BadFileError for a command that fails or prints no
    number, and what merging raises.
    """
    space.check()
    _, options = check(request)
    request, places = placed(replace(request, options=options), {})
    optuna = _optuna()
    home = output.with_name(f".{output.name}.search")
    _refuse_output(output, how)
    home.mkdir(parents=True, exist_ok=True)
    name = _fingerprint(request, score, space)
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(home / "journal"))
    )
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        sampler=optuna.samplers.TPESampler(seed=space.seed, multivariate=True, n_startup_trials=8),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5),
        direction="maximize" if space.maximise else "minimize",
        load_if_exists=True,
    )
    if not study.trials:  # what anybody would try first
        even = 1.0 / len(request.models) if request.method == "linear" else 1.0
        first = min(max(even, space.low), space.high)
        study.enqueue_trial(dict.fromkeys(_keys(request, space), first))
    trial_how = replace(how, overwrite=True)
    known: dict[Any, Any] = {}

    def objective(trial: Any) -> float:
        values = [trial.suggest_float(key, space.low, space.high) for key in _keys(request, space)]
        weights = _weights(request, space, values)
        place = home / ("trial.safetensors" if output.suffix == ".safetensors" else "trial")
        try:
            merge_one(replace(request, weights=weights), place, replace(trial_how, known=known), places)
        except OptionError:  # weights that sum to zero, say
            raise optuna.TrialPruned from None
        return _scored(score, place, trial, optuna)

    def ended() -> list[Trial]:
        found = (_trial(request, space, trial) for trial in study.trials)
        return [trial for trial in found if trial.state in ("complete", "pruned")]

    study.optimize(objective, n_trials=max(0, space.trials - len(ended())))
    trials = ended()
    if not any(trial.score is not None for trial in trials):
        raise BadFileError("no trial was scored to its end: nothing to choose from")
    best = _trial(request, space, study.best_trial)
    report = merge_one(replace(request, weights=best.weights), output, replace(how, known=known), places)
    shutil.rmtree(home, ignore_errors=True)
    return Found(best=best, trials=trials, merge=report)


def _optuna() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import optuna
    except ImportError:
        raise UnsupportedError("--search needs Optuna: pip install 'paring[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _refuse_output(output: Path, how: How) -> None:
    """Refuse before the first trial what the last merge would refuse."""
    if output.suffix == ".safetensors":
        atomic.refuse_existing(output, how.overwrite)
    else:
        atomic.refuse_folder(atomic.target_of(output), how.overwrite, None)


def _fingerprint(request: Request, score: Score | str, space: Space) -> str:
    """What tells this search from others; more trials are the same search."""
    told = [request.recipe(), score if isinstance(score, str) else getattr(score, "__qualname__", "score")]
    told += [space.low, space.high, space.anchors, space.seed, space.maximise]
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def _keys(request: Request, space: Space) -> list[str]:
    """The names of all weights."""
    return [f"{i}.{j}" for i in range(len(request.models)) for j in range(space.anchors)]


def _weights(request: Request, space: Space, values: Sequence[float]) -> list[Any]:
    rows = [list(values[i * space.anchors : (i + 1) * space.anchors]) for i in range(len(request.models))]
    return [row[0] if space.anchors == 1 else row for row in rows]


def _trial(request: Request, space: Space, trial: Any) -> Trial:
    values = [trial.params[key] for key in _keys(request, space) if key in trial.params]
    weights = _weights(request, space, values) if len(values) == len(_keys(request, space)) else []
    done = trial.state.name == "COMPLETE"
    return Trial(trial.number, weights, trial.value if done else None, trial.state.name.lower())


def _scored(score: Score | str, place: Path, trial: Any, optuna: Any) -> float:
    if not isinstance(score, str):
        return float(score(place))
    command = [part.replace("{}", str(place)) for part in shlex.split(score)]
    if "{}" not in score:
        command.append(str(place))
    last: float | None = None
    step = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None and run.stderr is not None
        for line in run.stdout:
            number = _number(line)
            if number is None:
                continue
            last, step = number, step + 1
            trial.report(number, step)
            if trial.should_prune():
                run.kill()
                raise optuna.TrialPruned
        told = run.stderr.read().strip().splitlines()
    if run.returncode:
        said = (told or ["it said nothing"])[-1]
        raise BadFileError(f"the scoring command failed with {run.returncode}: {said}")
    if last is None or not math.isfinite(last):
        raise BadFileError(f"the scoring command printed no number to go by: {shlex.join(command)}")
    return last


def _number(line: str) -> float | None:
    """The last number of a line, None for none."""
    for word in reversed(line.replace("=", " ").split()):
        try:
            return float(word)
        except ValueError:
            continue
    return None
