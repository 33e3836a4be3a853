"""What vLLM calls in each of its processes, by the entry point ``vllm.general_plugins``."""

from __future__ import annotations

ARCHITECTURE = "GitLLMForConditionalGeneration"
"""What ``config.json`` of an exported folder names."""


def register() -> None:
    """Tell transformers and vLLM which classes open an exported folder; a second time changes nothing."""
    from vllm import ModelRegistry

    from gitllm_plugin.hf.configuration import GitLLMConfig
    from gitllm_plugin.hf.registration import register as register_with_transformers

    register_with_transformers()
    # By it vLLM lets the tokens of an image see each other, where its attention can, and reads no image in pieces.
    GitLLMConfig.is_mm_prefix_lm = True  # type: ignore[attr-defined]
    # By name, since importing the class would start what vLLM's processes have to start themselves.
    ModelRegistry.register_model(ARCHITECTURE, f"gitllm_plugin.vllm.model:{ARCHITECTURE}")
