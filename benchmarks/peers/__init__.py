"""Other programs for the same work, each from its own public code in an environment of its own.

``python -m benchmarks peers llava`` measures one. Nothing of a peer is copied here: an adapter (``llava.py``,
``heron.py``, ...) builds it by its own classes and asks it for a few things. It runs in a process whose Python may lack
everything that this package needs, so that adapters and what they use import torch and the peer alone.
"""
