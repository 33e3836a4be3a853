"""What projected image vectors mean in words: they against the language model's token embeddings.

The article's last experiment. Works on any :class:`~gitllm_plugin.modeling.GitLLM`; knows nothing of LAVIS.
"""
