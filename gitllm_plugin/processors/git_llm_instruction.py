"""The text processor for LAVIS: from a question to the prompt of an instruction-tuned model."""

from collections.abc import Mapping
from typing import Any

from lavis.common.registry import registry
from lavis.processors.base_processor import BaseProcessor

from gitllm_plugin.config import read
from gitllm_plugin.m3it.prompts import Prompt, build_prompt, check_template
from gitllm_plugin.processors.settings import InstructionSettings


@registry.register_processor("git_llm_instruction")
class GitLLMInstructionProcessor(BaseProcessor):
    """Make prompts, the same in training and at inference.

    Args:
        template: a name of :data:`gitllm_plugin.m3it.prompts.TEMPLATES`.
        instruction: stands where a question comes without one, as in LAVIS's own data sets; None: one for questions
            and one for no question, see :func:`gitllm_plugin.m3it.prompts.default_instruction`.

    Raises:
        ConfigError: there is no such template.
    """

    Settings = InstructionSettings

    def __init__(self, template: str = "article", instruction: str | None = None):
        # Not super().__init__(): it stores a lambda, which cannot be pickled into a data loader's workers.
        check_template(template)
        self.template = template
        self.instruction = instruction

    def __call__(self, question: str, instruction: str | None = None) -> str:
        """The prompt; the answer follows after one space. Given an answer, it keeps that for the model to take.

        Args:
            question: may be empty.
            instruction: None for the processor's own.
        """
        text = build_prompt(self.template, self.instruction if instruction is None else instruction, question)
        return Prompt(text, question.strip())

    @classmethod
    def from_config(cls, cfg: Mapping[str, Any] | None = None) -> "GitLLMInstructionProcessor":
        """Build the processor from its node of a configuration; None for the defaults.

        Raises:
            ConfigError: naming everything in the node that is wrong.
        """
        settings = read(cls.Settings, cls.__name__, cfg)
        return cls(settings.template, settings.instruction)
