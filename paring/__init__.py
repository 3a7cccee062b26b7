"""paring: compress, merge and prune model checkpoints and adapters, file to file.

``import paring`` is cheap: neither torch nor numba is loaded. The verbs live in :mod:`paring.api`::

    from paring.api import compress, decompress, load

``paring.compress``, ``paring.merge`` and ``paring.prune`` are packages of methods, one file each.
"""

__version__ = "0.1.0"
