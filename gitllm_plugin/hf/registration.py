"""Telling transformers which classes open a folder whose ``config.json`` says ``git_llm``.

Each class is registered when transformers has imported the mapping that it goes into, or at once where it has.
Imports nothing at the top that costs time: ``import gitllm_plugin`` imports this.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial

from gitllm_plugin.common.import_watch import ImportWatcher, when_imported

_AUTO = "transformers.models.auto"


def watch_transformers() -> None:
    """Register each class as soon as transformers is as far, see :func:`register`; what fails is not told.

    Whoever uses transformers for something else must not notice this package. Who opens a folder of it is told by
    transformers that it knows no ``git_llm``, and by :func:`register` why.
    """
    # Where transformers imports torchvision, which beside a CPU-only torch has to be repaired; the classes import it.
    ImportWatcher("transformers.image_utils", before=partial(_quietly, _repair_torchvision)).watch()
    for mapping, register_one in _WHEN_IMPORTED.items():
        when_imported(mapping, partial(_quietly, register_one))


def _quietly(call: Callable[[], None]) -> None:
    with suppress(Exception):
        call()


def _repair_torchvision() -> None:
    from gitllm_plugin.common.torchvision_repair import repair_torchvision

    repair_torchvision()


def register() -> None:
    """Register all classes; a second time changes nothing.

    Raises:
        ImportError, or what transformers makes of it: its version has other mappings than this package knows.
    """
    for register_one in _WHEN_IMPORTED.values():
        register_one()


@cache
def _register_config() -> None:
    from transformers.models.auto.configuration_auto import AutoConfig

    from gitllm_plugin.hf.configuration import GitLLMConfig

    AutoConfig.register(GitLLMConfig.model_type, GitLLMConfig, exist_ok=True)


@cache
def _register_model() -> None:
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        AutoModelForImageTextToText,
    )

    from gitllm_plugin.hf.configuration import GitLLMConfig
    from gitllm_plugin.hf.model import GitLLMForConditionalGeneration

    AutoModelForImageTextToText.register(GitLLMConfig, GitLLMForConditionalGeneration, exist_ok=True)
    # The names that `pipeline` knows: of a class that is not among them it logs that it is not supported.
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[GitLLMConfig.model_type] = GitLLMForConditionalGeneration.__name__


@cache
def _register_processor() -> None:
    from transformers.models.auto.processing_auto import AutoProcessor

    from gitllm_plugin.hf.configuration import GitLLMConfig
    from gitllm_plugin.hf.processor import GitLLMProcessor

    AutoProcessor.register(GitLLMConfig, GitLLMProcessor, exist_ok=True)


_WHEN_IMPORTED: dict[str, Callable[[], None]] = {
    f"{_AUTO}.configuration_auto": _register_config,
    f"{_AUTO}.modeling_auto": _register_model,
    f"{_AUTO}.processing_auto": _register_processor,
}
"""What is registered when which module of transformers has been imported."""
