"""Trellis-coded quantisation and its entropy coder: a few tenths of a bit to 8 bits a value, within some
percent of what no code can pass.

``reference.py`` is the specification, ``tables.py`` the numbers that files depend on, ``cpu.py`` the search
and ``coder.py`` the coder in numba; ``header_reference.py``, ``tape.py`` and ``header.py`` are for what
stands beside the symbols. ``tensor.py`` has whole tensors. There is no torch version: search and coder are
sequential along a segment, and segments run in parallel threads.
"""
