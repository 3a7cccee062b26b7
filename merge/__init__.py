"""Merging methods, one file each; :mod:`paring.registry` finds them by file name."""
