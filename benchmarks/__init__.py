"""Measurements behind the figures in the documentation; run each with ``python -m benchmarks.NAME``."""
