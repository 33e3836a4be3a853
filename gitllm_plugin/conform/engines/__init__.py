"""Engines of this package, of transformers, and whatever answers at an address, as ``gitllm conform`` asks them."""
