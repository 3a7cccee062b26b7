"""Recipes of merges: YAML read with its lines (:mod:`.nodes`), our dialect (:mod:`.recipe`), mergekit's
(:mod:`.mergekit`; what its parameters come to, :mod:`.given`; its rules in our terms,
:mod:`.mergekit_rules`), and recipes as results store them (:mod:`.stored`).
"""
