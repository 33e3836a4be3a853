"""Gemma 1, 2 and 3: scaled embeddings; 2 and 3 alternate full and sliding attention, 2 caps its logits."""

from gitllm_plugin.modeling.families.family import Family
from gitllm_plugin.modeling.families.tiny_sizes import LLAMA_NAMES

_TURNS = (
    "{% for message in messages %}<start_of_turn>{{ message['role'] }}\n{{ message['content'] }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
_TINY = {**LLAMA_NAMES, "head_dim": 16}
_TARGETS = ("q_proj", "k_proj", "v_proj")

GEMMA = Family("gemma", ("gemma",), _TARGETS, chat_template=_TURNS, tiny_config=_TINY)
GEMMA2 = Family("gemma2", ("gemma2",), _TARGETS, chat_template=_TURNS, tiny_config={**_TINY, "sliding_window": 128})
GEMMA3 = Family(
    "gemma3", ("gemma3_text",), _TARGETS, chat_template=_TURNS, tiny_config={**_TINY, "sliding_window": 128}
)
