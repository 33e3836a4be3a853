"""Prompts, and groups of texts that share an image."""

import pytest

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.m3it.group import group_by_image
from gitllm_plugin.m3it.prompts import TEMPLATES, build_prompt


def test_article_template():
    prompt = build_prompt("article", "Look. ", "what is it?\n")
    assert prompt == "##Instruction: Look. ##Question: what is it? ##Answer:"


@pytest.mark.parametrize(
    ("instruction", "question", "prompt"),
    [
        ("Look. ", "what\nis it?", "##human: Look. what\nis it?\n##gpt:"),
        ("", "what is it?", "##human: what is it?\n##gpt:"),
        ("Describe the picture.", " ", "##human: Describe the picture.\n##gpt:"),
        ("", "", "##human:\n##gpt:"),
        ("say {question}", "", "##human: say {question}\n##gpt:"),
    ],
)
def test_heron_template(instruction, question, prompt):
    assert build_prompt("heron", instruction, question) == prompt


def test_question_template_is_the_question_alone():
    assert build_prompt("question", "Look.", " what is it?\n") == "what is it?"
    assert build_prompt("question", "Describe the picture.", "") == ""


@pytest.mark.parametrize("template", sorted(set(TEMPLATES) - {"question"}))
def test_templates_hold_both_parts_braces_included_and_end_without_space(template):
    prompt = build_prompt(template, "in{0}", "qu{x}")
    assert "in{0}" in prompt
    assert "qu{x}" in prompt
    assert prompt == prompt.strip()


def test_unknown_template_lists_the_names():
    with pytest.raises(ConfigError, match="unknown prompt template 'articel'; the templates are 'article'"):
        build_prompt("articel", "i", "q")


def test_groups_hold_each_example_once_in_order():
    keys = ["a", "b", "a", "", "a", "a", "", "b"]
    assert group_by_image(keys, 1) == [[index] for index in range(8)]
    assert group_by_image(keys, 3) == [[0, 2, 4], [1, 7], [3], [5], [6]]
    assert group_by_image(keys, 16) == [[0, 2, 4, 5], [1, 7], [3], [6]]
    assert group_by_image([], 2) == []
