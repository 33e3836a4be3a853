"""A model for lmms-eval, found by it through the entry points of the group `lmms_eval.models`."""

from typing import Any


def manifest() -> Any:
    """How lmms-eval calls the model, and where its class is; called by lmms-eval alone."""
    from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]

    return ModelManifest(model_id="git_llm", simple_class_path="gitllm_plugin.lmms.model.GitLLMForLmmsEval")
