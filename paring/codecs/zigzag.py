"""Differences of unsigned words, modulo 2^width, as numbers that are small for near ones: 2d, or -2d - 1."""

from __future__ import annotations

from paring.dtypes import Array


def zigzag(steps: Array) -> Array:
    """The numbers of differences, of any shape but (); both are unsigned, of one dtype."""
    found: Array = steps << 1 ^ ~(steps >> 8 * steps.itemsize - 1) + 1
    return found


def steps(numbers: Array) -> Array:
    """The differences that :func:`zigzag` numbered, in its shape and dtype."""
    found: Array = numbers >> 1 ^ ~(numbers & 1) + 1
    return found
