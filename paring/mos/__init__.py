"""MoS, Mixture of Shards: LoRA whose rank vectors are put together from shards that layers share.

Wang, Chen et al.: MoS: Unleashing Parameter Efficiency of Low-Rank Adaptation with Mixture of Shards (ICLR
2025, arXiv 2410.00938). All layers of one projection type share a pool of shards for A and one for B. Each
module's ``r`` rank vectors are ``r * l`` shards, drawn at random before training and fixed for ever. What is
trained is the pools: as many parameters as ordinary LoRA of rank ``e`` has, whatever ``r`` and ``l`` are.

:mod:`.routing` draws the shards, :mod:`.pools` expands and folds, :mod:`.file` is the compact file, read as
an ordinary adapter, :mod:`.convert` goes to and from PEFT's folders. :mod:`.training` attaches the torch
modules of :mod:`.layer` to a model, trains and saves.
"""

#: what the metadata of a compact file says of its format
FORMAT = "paring-mos"
