"""mergekit's rules in terms of ours: which parameters mean the same, and why others do not."""

from __future__ import annotations

import glob

from paring.merging.recipes.given import Fields, Given, Rule, numbers
from paring.merging.weights import Weight

ABSENT = {
    "multislerp": "paring's mean on the sphere is karcher: merge_method: karcher",
    "nearswap": "paring has no such rule",
    "arcee_fusion": "paring has no such rule",
    "ram": "paring has no such rule",
    "ramplus_tl": "paring has no such rule",
    "breadcrumbs_ties": "paring's breadcrumbs adds up what is kept, as published: merge_method: breadcrumbs",
    **dict.fromkeys(
        ("della", "della_linear"),
        "it scales each tensor as a whole, paring's divides each entry by its own probability, as published: "
        "method: della, in paring's form",
    ),
}


def _linear(given: Given) -> Fields:
    return given.fields("linear", {"normalise": given.flag("normalize", True)}, **given.weights())


def _slerp(given: Given) -> Fields:
    if given.base is None:
        raise given.method.error("slerp needs base_model, where t: 0 is")
    if len(given.sources) != 2:
        raise given.method.error(f"slerp takes two models, not {len(given.sources)}")
    found = given.setting("t", given.shared)
    if not found or found[-1][0] is not None:
        more = " where no filter fits: end the list with {value: ..}" if found else ""
        raise given.method.error(f"slerp has no t{more}")
    for _, value, node in found:
        if not all(0 <= x <= 1 for x in numbers(value)):
            raise node.error("t goes from 0, the base, to 1, the other model")
    *filtered, (_, whole, _) = found
    if not filtered and isinstance(whole, int | float):
        return given.fields("slerp", {"t": float(whole)})
    given.notes.append(
        "t differs by layer or tensor, so this is nuslerp with weights 1 - t and t: it turns nearly parallel "
        "tensors, too (cosine beyond .9995), where mergekit's slerp goes straight"
    )
    patterns: list[tuple[str, int, Weight]] = []
    for part, value, _ in reversed(filtered):
        patterns += [(glob.escape(part or "*"), 0, _rest(value)), (glob.escape(part or "*"), 1, value)]
    return given.fields("nuslerp", {}, weights=[_rest(whole), whole], patterns=patterns)


def _rest(t: Weight) -> Weight:
    return 1 - t if isinstance(t, int | float) else [1 - x for x in t]


def _nuslerp(given: Given) -> Fields:
    if not given.flag("nuslerp_flatten", True):
        raise given.wrong("nuslerp_flatten", "in paring's form, method: nuslerp, options: {per: row}")
    return given.fields("nuslerp", {}, **given.weights())


def _karcher(given: Given) -> Fields:
    if given.number("max_iter", 10) < 10 or given.number("tol", 1e-5) > 1e-5:
        raise given.wrong("max_iter", "paring's goes on to the mean itself: leave max_iter and tol out")
    return given.fields("karcher", {})


def _task_arithmetic(given: Given) -> Fields:
    told = given.weights()
    if given.flag("normalize", False):
        whole = [weight for weight in told["weights"] if isinstance(weight, int | float)]
        if told["patterns"] or len(whole) < len(told["weights"]) or abs(sum(whole)) < 1e-8:
            raise given.wrong(
                "normalize", "weights differ by tensor or sum to zero: write ones that sum to one"
            )
        told["weights"] = [weight / sum(whole) for weight in whole]
    return given.fields("task_arithmetic", {}, **told, **given.scaled())


def _ties(given: Given) -> Fields:
    if given.flag("rescale", False):
        raise given.wrong("rescale", "paring does not rescale what is kept: leave it out")
    given.notes.append(
        "of d entries ties keeps int(d density) + 1, and all that equal the smallest of them, as published; "
        "mergekit keeps int(d density)"
    )
    combine = "mean" if given.flag("normalize", True) else "sum"
    options = {"density": given.common("density", 1.0), "trim": "tensor", "combine": combine}
    return given.fields("ties", options, **given.positive(), **given.scaled())


def _dare(given: Given) -> Fields:
    combine = given.name.removeprefix("dare_")
    if given.flag("rescale", True):
        raise given.wrong(
            "rescale",
            "it brings each tensor back to its former sum of magnitudes, paring's divides by the density, as "
            "published: write rescale: false, or in paring's form method: dare, options: {density: .., "
            f"combine: {combine}}}",
        )
    if given.flag("normalize", False) != (combine == "ties"):
        reason = "paring's takes the mean: write true" if combine == "ties" else "paring's sums: write false"
        raise given.wrong("normalize", reason)
    given.notes.append("dare draws other random numbers than mergekit")
    options = {"density": given.common("density", 1.0), "rescale": False, "combine": combine}
    weights = given.positive() if combine == "ties" else given.weights()
    return given.fields("dare", options, **weights, **given.scaled())


def _breadcrumbs(given: Given) -> Fields:
    for name in ("normalize", "rescale"):
        if given.flag(name, False):
            raise given.wrong(name, "paring's adds up what is kept, as it is: leave it out")
    density, gamma = given.common("density", 1.0), given.common("gamma", 0.01)
    if density + gamma > 1 + 1e-9:
        raise given.method.error(f"density {density:g} and gamma {gamma:g} are more than the whole")
    given.notes.append("breadcrumbs keeps tensors of few entries, of which mergekit drops the whole delta")
    options = {"density": density, "gamma": gamma}
    return given.fields("breadcrumbs", options, **given.weights(), **given.scaled())


def _model_stock(given: Given) -> Fields:
    if given.flag("filter_wise", False):
        raise given.wrong("filter_wise", "paring's angles are those of whole tensors: leave it out")
    if len(given.sources) < 2:
        raise given.method.error("model_stock needs two models beside the base")
    given.notes.append("model_stock takes a mean cosine below zero for zero; mergekit does not")
    return given.fields("model_stock", {})


def _sce(given: Given) -> Fields:
    given.flag("int8_mask", False)
    if given.number("select_topk", 1.0) != 1:
        raise given.wrong(
            "select_topk",
            "it is a share of the entries that differ at all, paring's density of all entries: in paring's "
            "form, method: sce, options: {density: .., normalise: true}",
        )
    return given.fields("sce", {"density": 1.0, "normalise": True})


def _passthrough(given: Given) -> Fields:
    told = given.weights("scale", 1.0)
    for source, weight in zip(given.sources, told["weights"], strict=True):
        if not isinstance(weight, int | float):
            raise source.node.error("a scale that changes within a slice: give each layer a slice")
    first, last = given.sources[0], given.sources[-1]
    same = first.path == last.path and len(set(told["weights"])) == 1 and not told["patterns"]
    if not told["patterns"] and set(told["weights"]) == {1.0}:
        told["weights"] = None
    return given.fields("passthrough", {}, **told, tail=None if same else "last")


_DELTAS = ("normalize", "lambda", "int8_mask", "rescale")
_SPARSE = ("weight", "density")

RULES = {
    "linear": Rule(_linear, ("weight",), ("normalize",)),
    "slerp": Rule(_slerp, (), ("t",)),
    "nuslerp": Rule(_nuslerp, ("weight",), ("nuslerp_flatten", "nuslerp_row_wise")),
    "karcher": Rule(_karcher, (), ("max_iter", "tol")),
    "task_arithmetic": Rule(_task_arithmetic, ("weight",), _DELTAS, base=True),
    "ties": Rule(_ties, _SPARSE, _DELTAS, base=True),
    "dare_linear": Rule(_dare, _SPARSE, _DELTAS, base=True),
    "dare_ties": Rule(_dare, _SPARSE, _DELTAS, base=True),
    "breadcrumbs": Rule(_breadcrumbs, (*_SPARSE, "gamma"), _DELTAS, base=True),
    "model_stock": Rule(_model_stock, (), ("filter_wise",), base=True),
    "sce": Rule(_sce, (), ("select_topk", "int8_mask"), base=True),
    "passthrough": Rule(_passthrough, ("scale",), ()),
}
