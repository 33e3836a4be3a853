"""Facts about families of language models, one small file each.

A family file holds :class:`~gitllm_plugin.modeling.families.family.Family` and nothing else.  To add one,
write the file and list it below; the contract tests run over this table.  What is not in the table is served
by :func:`default_family`, if it passes the self-test (:mod:`gitllm_plugin.modeling.self_test`).
"""

from __future__ import annotations

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.modeling.families.default import default_family
from gitllm_plugin.modeling.families.falcon import FALCON
from gitllm_plugin.modeling.families.family import Family, Positions
from gitllm_plugin.modeling.families.gemma import GEMMA, GEMMA2, GEMMA3
from gitllm_plugin.modeling.families.gpt2 import GPT2
from gitllm_plugin.modeling.families.gpt_neox import GPT_NEOX
from gitllm_plugin.modeling.families.llama import LLAMA
from gitllm_plugin.modeling.families.mistral import MISTRAL
from gitllm_plugin.modeling.families.mpt import MPT
from gitllm_plugin.modeling.families.opt import OPT
from gitllm_plugin.modeling.families.phi3 import PHI3
from gitllm_plugin.modeling.families.qwen import QWEN2, QWEN3
from gitllm_plugin.modeling.families.smollm3 import SMOLLM3
from gitllm_plugin.modeling.families.stablelm import STABLELM

_TABLE = (
    OPT,
    LLAMA,
    MPT,
    GPT_NEOX,
    MISTRAL,
    QWEN2,
    QWEN3,
    GEMMA,
    GEMMA2,
    GEMMA3,
    PHI3,
    GPT2,
    FALCON,
    STABLELM,
    SMOLLM3,
)

FAMILIES: dict[str, Family] = {model_type: family for family in _TABLE for model_type in family.model_types}
"""Hugging Face ``model_type`` -> family."""

__all__ = ["FAMILIES", "Family", "Positions", "default_family", "family_in_table"]


def family_in_table(model_type: str) -> Family:
    """Find the family of a decoder by its ``model_type``.

    Raises:
        ConfigError: it is in none.
    """
    if model_type not in FAMILIES:
        raise ConfigError(
            f"language model of type {model_type!r} is in no family of the table ({', '.join(sorted(FAMILIES))}); "
            "build_git_llm tests whether it fits, or give `family`"
        )
    return FAMILIES[model_type]
