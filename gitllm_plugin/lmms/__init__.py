"""A model for lmms-eval, found by it through the entry points of the group ``lmms_eval.models``."""

from typing import Any


def manifest() -> Any:
    """Tell lmms-eval, which alone calls it, what the model is called and where its class is."""
    from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]

    return ModelManifest(model_id="git_llm", simple_class_path="gitllm_plugin.lmms.model.GitLLMForLmmsEval")
