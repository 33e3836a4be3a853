"""GIT-LLM in plain PyTorch: attention rule, families, projection, model. Knows nothing of LAVIS."""

# ruff: noqa: E402, I001
from gitllm_plugin.common.torchvision_repair import repair_torchvision

# transformers, timm and peft import torchvision; beside a CPU-only torch that fails until it is repaired.
repair_torchvision()

from gitllm_plugin.modeling.build import (
    BuildSettings,
    build_from_folder,
    build_git_llm,
    find_chat_template,
    load_folder,
    make_text_encoder,
    merge_folder,
    resolve_family,
)
from gitllm_plugin.modeling.decoder import Decoder
from gitllm_plugin.modeling.folder import save_folder
from gitllm_plugin.modeling.lora import LoraSettings
from gitllm_plugin.modeling.loss import GitLLMOutput
from gitllm_plugin.modeling.model import GitLLM
from gitllm_plugin.modeling.published import convert_published, load_published
from gitllm_plugin.modeling.tokens import TextBatch, TextEncoder
from gitllm_plugin.modeling.trainable import (
    load_trainable_state_dict,
    parameter_groups,
    set_trainable,
    trainable_state_dict,
)
from gitllm_plugin.modeling.vision import ImageEncoder

__all__ = [
    "BuildSettings",
    "Decoder",
    "GitLLM",
    "GitLLMOutput",
    "ImageEncoder",
    "LoraSettings",
    "TextBatch",
    "TextEncoder",
    "build_from_folder",
    "build_git_llm",
    "convert_published",
    "find_chat_template",
    "load_folder",
    "load_published",
    "load_trainable_state_dict",
    "make_text_encoder",
    "merge_folder",
    "parameter_groups",
    "resolve_family",
    "save_folder",
    "set_trainable",
    "trainable_state_dict",
]
