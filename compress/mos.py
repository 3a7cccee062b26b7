"""MoS shard deduplication: what adapters have in common, stored once, in one file that decodes one by one.

Steps, each measured in bytes and taken only where it is smaller:

1. Exactly, and before anything changes a bit: tensors that repeat under whatever name, then rank vectors,
   then shards at the divisors of a rank vector's length; also with signs flipped or times a power of two.
   An adapter that was trained as MoS and expanded to plain LoRA is e/r of its size this way: its pool comes
   back exactly.
2. Adapters that span the same subspaces (checkpoints of one run, one seed; gauge-rotated or scaled copies):
   the later one as the earlier one, mixed, and what is left.
3. With ``--error E``, what is left and what stands alone is coded within that error of every adapter's
   update (the method ``spectral``); a basis in common for many adapters (Compress then Serve, arXiv
   2407.00066) and a pool of alike shards with a residual are tried against it at the same error.

Cost: without loss, hashes of every tensor, of its rank vectors and of its shards at each divisor tried, and
for pairs of adapters the overlap of their subspaces, O((in + out) r^2) a module; the pool is held in memory
until it is written. With ``--error`` also a coding of every adapter, and of joint ones.

When not to use it: for one ordinary adapter, or several that were trained apart. Independently trained
LoRAs share no shards. K codewords for shards of d entries leave at least ``2^(-2 log2(K) / d)`` of the
variance of Gaussian shards, 84 % for K = 256 and d = 64, and cost in indices what they save in residual;
the codebook comes on top. The answer then is "no gain", with the figures.
"""

from __future__ import annotations

from paring.errors import OptionError
from paring.pooling.pile import Pile
from paring.pooling.pool import build
from paring.pooling.storing import Made
from paring.pooling.work import Coders
from paring.registry import method


@method(
    sees="adapters",
    reference=(
        "ours; shards after Wang, Chen, et al.: MoS, arXiv:2410.00938; joint bases after Brüel Gabrielsson "
        "et al.: Compress then Serve, arXiv:2407.00066"
    ),
)
def mos(
    pile: Pile, threads: int = 1, device: str = "cpu", *, shortest: int = 16, overlap: float = 0.5
) -> Made:
    """MoS shard deduplication: many adapters in one file, what they share stored once.

    Options:
        shortest: entries of the shortest shard that is looked for, at least 4
        overlap: of the subspaces of two adapters from which on one is tried as difference from the other

    Returns the payloads of a pool. Without an error budget every tensor comes back bit for bit. Raises
    OptionError.
    """
    if shortest < 4:
        raise OptionError(f"--shortest {shortest}: at least 4")
    if not 0 <= overlap <= 1:
        raise OptionError(f"--overlap {overlap}: a share between 0 and 1")
    return build(pile, shortest, overlap, threads, device, _coders)


def _coders() -> Coders:
    """What codes single adapters."""
    from paring.compress._trellis import PLAN
    from paring.compress.spectral import spectral

    return Coders(lambda modules, threads, device: spectral(modules, threads, device), PLAN)
