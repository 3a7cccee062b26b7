"""Slerp (Shoemake 1985): from one model to another along a great circle, tensor by tensor.

``sin((1-t) a) / sin a * theta_0 + sin(t a) / sin a * theta_1``, with ``a`` the angle between the two tensors
as whole vectors; linear where they are nearly parallel (cosine beyond .9995 either way) or one is zero. Of
adapters, the updates take the place of weights. Cost: one pass for the angles, in fp64, and one to write.
When not to use it: checkpoints tuned from one base are nearly parallel, and slerp of them is linear.
"""

from __future__ import annotations

from paring.errors import OptionError
from paring.merge._common import by_angles, refuse_unless_two
from paring.merge._sphere import arc
from paring.merging.models import Mix, Models
from paring.registry import method


@method(
    sees="weights",
    reference="Shoemake: Animating Rotation with Quaternion Curves, SIGGRAPH 1985",
    torch=True,
    invariants=("order", "homogeneous"),
)
def slerp(models: Models, *, t: float = 0.5) -> Mix:
    """Slerp: two models, interpolated along a great circle.

    Options:
        t: how far from the first model to the second, in 0 .. 1

    Raises OptionError for other than two models, and for weights that differ: nuslerp takes those.
    """
    refuse_unless_two(models, "slerp")
    if not 0 <= t <= 1:
        raise OptionError(f"--t {t}: 0 is the first model, 1 the second")
    if any(len(set(target.weights)) > 1 for target in models.targets):
        raise OptionError("slerp is told by --t how much of each model to take; nuslerp takes weights")
    return by_angles(models, lambda gram, target: arc(gram, t, nearly=0.9995))
