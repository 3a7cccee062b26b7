"""``extract``: a plain LoRA from a full fine-tune and its base.

:mod:`.plan` sorts tensors into what a LoRA can hold and what not, :mod:`.run` decomposes deltas,
:mod:`.output` writes the adapter in PEFT's form.
"""
