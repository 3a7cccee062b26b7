"""Singular components of ``B @ A`` on a GPU; on the CPU they are numpy's (:mod:`paring.lowrank`)."""
