"""vLLM's plug-in: exported folders as a model of vLLM's. Imports neither torch nor vLLM."""
