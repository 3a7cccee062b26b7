"""Passthrough: layers of one or several models stacked, each as it is.

Output layer k is a layer of one model, bit for bit; what is in no layer comes from the first model. The
layers are named in a recipe (``slices``, see docs/recipes.md), where a weight other than one scales what it
is given for. Cost: one pass, of copying. When not to use it: a stack is rarely better than its parts before
it is trained further; layers in another order than their own hardly ever are.
"""

from __future__ import annotations

import numpy as np

from paring.merging.models import F64, Mix, Models, Target
from paring.registry import method


@method(
    sees="weights",
    reference="Kim et al.: SOLAR 10.7B, depth up-scaling, arXiv:2312.15166, section 2",
    invariants=("identity",),
)
def passthrough(models: Models, *, stack: str | None = None) -> Mix:
    """Passthrough: layers of one or several models stacked, each as it is.

    Options:
        stack: what stands before a layer's number (model.layers), where a model has several such
    """

    def coefficients(target: Target) -> F64:
        given = [name is not None for name in target.names[1:]]
        return np.array(target.weights) * given

    return Mix(coefficients)
