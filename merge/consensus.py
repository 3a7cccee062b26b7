"""Consensus (Wang et al. 2024, TALL-masks): the sum of deltas, where enough of the models want it.

With ``tau`` the weighted sum of the deltas, model i has an entry in its mask where ``|tau_i| > tall * |tau -
tau_i|``: its own part outweighs what the others add. Entries in fewer than ``agree`` masks are zeroed:
nobody's, or (with 2) one model's alone. (A mask by itself, applied to the sum, gives its model back nearly
whole: that is the paper's compression.)

Cost: one pass, in fp32. When not to use it: the sum grows with the number of models; lower ``--scale`` (the
paper tunes it), and ``tall`` too, on held-out data.
"""

from __future__ import annotations

from paring.errors import OptionError
from paring.kernels import masks
from paring.merging.models import Blend, Models
from paring.registry import method


@method(
    sees="deltas",
    reference="Wang et al.: Localizing Task Information for Improved Model Merging, arXiv:2405.07813",
    invariants=("identity", "order", "cancel", "homogeneous"),
)
def consensus(models: Models, *, tall: float = 0.4, agree: int = 2) -> Blend:
    """Consensus: the sum of deltas, less what too few models want.

    Options:
        tall: how strict the masks are; .2 to .6 in the paper, whose lambda it is
        agree: how many models must have an entry in their masks; no more than there are
    """
    if not 0 <= tall < float("inf"):
        raise OptionError(f"--tall {tall}: expected zero or more")
    if agree < 0:
        raise OptionError(f"--agree {agree}: a number of models")
    enough = min(agree, models.n)
    return Blend(lambda chunk, place: masks.consensus(chunk, place.weights, tall, enough))
