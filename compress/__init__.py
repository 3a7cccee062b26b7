"""Compression methods, one file each; ``paring methods`` lists them, :mod:`paring.registry` loads them."""
