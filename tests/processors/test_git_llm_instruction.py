"""The instruction processor."""

import pytest
from lavis.common.registry import registry
from omegaconf import OmegaConf

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.processors.git_llm_instruction import GitLLMInstructionProcessor


def test_registered_name():
    assert registry.get_processor_class("git_llm_instruction") is GitLLMInstructionProcessor


def test_instruction_of_the_question_or_of_the_processor():
    processor = GitLLMInstructionProcessor.from_config(OmegaConf.create({"instruction": "Look."}))
    assert processor("why?") == "##Instruction: Look. ##Question: why? ##Answer:"
    assert processor("why?", "Think.") == "##Instruction: Think. ##Question: why? ##Answer:"
    assert processor("why?", "") == "##Instruction:  ##Question: why? ##Answer:"


@pytest.mark.parametrize(
    ("question", "prompt"),
    [
        ("why?", "##Instruction: Answer the question about the image. ##Question: why? ##Answer:"),
        (" ", "##Instruction: Describe the picture. ##Question:  ##Answer:"),
    ],
)
def test_defaults(question, prompt):
    assert GitLLMInstructionProcessor.from_config(None)(question) == prompt


@pytest.mark.parametrize(
    "cfg, message",
    [({"template": "chat"}, "unknown prompt template 'chat'"), ({"prompt": "x"}, "unknown key 'prompt'")],
)
def test_wrong_configuration(cfg, message):
    with pytest.raises(ConfigError, match=message):
        GitLLMInstructionProcessor.from_config(OmegaConf.create(cfg))
