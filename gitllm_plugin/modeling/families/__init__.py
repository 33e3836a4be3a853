"""Facts about families of language models, one small file each.

A family file holds one :class:`~gitllm_plugin.modeling.families.family.Family` and nothing else.  To add
one, write the file and list it below; the contract tests run over this table.
"""

from __future__ import annotations

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.modeling.families.family import Family
from gitllm_plugin.modeling.families.gpt_neox import GPT_NEOX
from gitllm_plugin.modeling.families.llama import LLAMA
from gitllm_plugin.modeling.families.mpt import MPT
from gitllm_plugin.modeling.families.opt import OPT

FAMILIES: dict[str, Family] = {
    model_type: family for family in (OPT, LLAMA, MPT, GPT_NEOX) for model_type in family.model_types
}


def family_of(model_type: str) -> Family:
    """The family of a Hugging Face ``model_type``.

    Raises:
        ConfigError: no such family; the message lists those that exist.
    """
    try:
        return FAMILIES[model_type]
    except KeyError:
        raise ConfigError(
            f"language model of type {model_type!r} is not supported; supported: {', '.join(sorted(FAMILIES))}. "
            "Add a file of facts to gitllm_plugin/modeling/families/."
        ) from None


__all__ = ["FAMILIES", "Family", "family_of"]
