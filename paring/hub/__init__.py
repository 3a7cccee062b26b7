"""The Hugging Face Hub: names of its repositories wherever paths go, and results pushed to it.

:mod:`.names` is what a source is called, :mod:`.reading` finds it, :mod:`.pushing` publishes, :mod:`.client`
is all that we need of ``huggingface_hub``, which nothing imports before a command needs the Hub, and
:mod:`.errors` says in one sentence what went wrong.
"""
