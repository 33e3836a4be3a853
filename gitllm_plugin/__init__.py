"""GIT-LLM for Salesforce LAVIS.

Importing this package is cheap: neither torch nor lavis is imported before ``register`` is called. transformers, when
it is imported, learns to open what ``gitllm export`` wrote: see ``hf/registration.py``.
"""

from typing import Any

from gitllm_plugin.hf.registration import watch_transformers

__version__ = "0.2.0"

# Every module whose import registers something with LAVIS, in the order of dependency.
REGISTERED_MODULES = (
    "gitllm_plugin.processors.git_llm_image",
    "gitllm_plugin.processors.git_llm_video",
    "gitllm_plugin.processors.git_llm_instruction",
    "gitllm_plugin.models.git_llm",
    "gitllm_plugin.models.git",
    "gitllm_plugin.datasets.builders.m3it_builder",
    "gitllm_plugin.datasets.builders.visdial_builder",
    "gitllm_plugin.tasks.m3it",
    "gitllm_plugin.tasks.dpo",
    "gitllm_plugin.tasks.captioning",
    "gitllm_plugin.tasks.vqa",
    "gitllm_plugin.tasks.multimodal_classification",
    "gitllm_plugin.tasks.image_text_pretrain",
    "gitllm_plugin.tasks.dialogue",
    "gitllm_plugin.tasks.retrieval",
    "gitllm_plugin.runners.git_llm",
)


def register() -> None:
    """Make LAVIS importable on this machine's libraries and add everything of GIT-LLM to its registries.

    Afterwards LAVIS's own functions know the names: ``load_model_and_preprocess("git_llm", ...)``,
    ``load_dataset("m3it")``, ``model_zoo``, ``dataset_zoo``. Calling it again does nothing.

    Raises:
        gitllm_plugin.errors.HostError: LAVIS, or a package it cannot do without, is missing.
    """
    from gitllm_plugin.host.locate import register_modules

    register_modules(REGISTERED_MODULES)


def __getattr__(name: str) -> Any:
    """Import :class:`~gitllm_plugin.inference.pipeline.Pipeline` when it is first asked for; it takes seconds."""
    if name == "Pipeline":
        from gitllm_plugin.inference.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


watch_transformers()
