"""A model in llama.cpp: writing its folder, and the engine that answers from one. Knows nothing of LAVIS."""
