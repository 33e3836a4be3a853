"""What GIT needs to know of a decoder and cannot see by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from transformers import PreTrainedConfig

Positions = Literal["text", "sequence", "slots"]


@dataclass(frozen=True)
class Family:
    """Facts about one family of decoders.

    Attributes:
        name: the family's name in messages and tests.
        model_types: Hugging Face ``model_type`` values that it serves.
        positions: "text" where learned positions belong to text tokens alone and image features enter behind
            them; "sequence" where positions run over image and text and are given as ``position_ids``; "slots"
            where the decoder computes them from the slots of a row (ALiBi). A function of the decoder's
            configuration where members of the family differ.
        position_module: dotted name, below the causal LM, of the module that adds learned positions
            ("text" only).
        lora_targets: names of the query, key and value projections, fused or not.
        chat_template: Jinja template of a conversation, for tokenizers of the family that bring none; None: there
            is no usual one.
        tiny_config: sizes of a copy small enough for the self-test, the tests and the ``tiny`` model types,
            by the names of the family's configuration, without the vocabulary's size.
        prepare: what is done to transformers' classes of the family before they compute; None: nothing.
        variants: name -> further settings: members of the family that work differently inside, each of which
            the tests cover.
    """

    name: str
    model_types: tuple[str, ...]
    lora_targets: tuple[str, ...]
    positions: Positions | Callable[[PreTrainedConfig], Positions] = "sequence"
    position_module: str | None = None
    chat_template: str | None = field(default=None, repr=False)
    tiny_config: dict[str, Any] = field(default_factory=dict, repr=False)
    prepare: Callable[[], None] | None = None
    variants: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)

    def positions_of(self, config: PreTrainedConfig) -> Positions:
        """Tell where the positions of the decoder with this configuration come from."""
        return self.positions(config) if callable(self.positions) else self.positions
