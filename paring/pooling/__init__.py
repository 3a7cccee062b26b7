"""Pools: many adapters in one packed file, what they have in common stored once.

:mod:`.members` reads one adapter of a pool; :mod:`.plan` and :mod:`.pool` make one. :mod:`.hashing` finds
what is bit for bit the same, :mod:`.relations` adapters that are related, :mod:`.storing`, by :mod:`.exact`,
and :mod:`.lossy` code what is left of these, :mod:`.joint` and :mod:`.codebook` try what pays for many or
alike shards only, and :mod:`.sharing` tells from a file who shares what. ``docs/format.md`` specifies it.
"""
