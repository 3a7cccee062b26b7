"""Make models smaller by whole parts: layers, neurons, heads, experts, width.

``families`` says as data what the tensors of an architecture are, ``cuts`` what is asked and what becomes of
the configuration, ``parts`` which indices of which axis a tensor keeps, ``scores`` which are worth keeping,
``checking`` whether the result will load, ``run`` does it.
"""
