"""Heavy reductions and element-wise work, by topic. Kernels know arrays, not files.

Each topic is a package with ``reference.py`` (numpy, plain: the specification), ``cpu.py`` (numba) and, where
it pays, ``gpu.py`` (torch): same names, same results. numba and torch are imported when a kernel is first
asked for.
"""
