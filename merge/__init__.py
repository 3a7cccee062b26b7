"""Merging methods, one file each. There are none yet; :mod:`paring.registry` finds them by file name."""
