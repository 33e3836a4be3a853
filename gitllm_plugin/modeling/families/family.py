"""What GIT needs to know of a decoder and cannot see by itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Family:
    """Facts about one family of decoders.

    Attributes:
        name: the family's name in messages and tests.
        model_types: Hugging Face ``model_type`` values that it serves.
        positions: "text" where learned positions belong to text tokens alone and image features enter behind
            them; "sequence" where positions run over image and text and are given as ``position_ids``; "slots"
            where the decoder computes them from the slots of a row (ALiBi).
        position_module: dotted name, below the causal LM, of the module that adds learned positions
            ("text" only).
        lora_targets: names of the query, key and value projections, fused or not.
        tiny_config: keyword arguments of a random model small enough for tests and the ``tiny`` model types,
            without the vocabulary's size.
    """

    name: str
    model_types: tuple[str, ...]
    positions: Literal["text", "sequence", "slots"]
    lora_targets: tuple[str, ...]
    tiny_config: dict = field(repr=False)
    position_module: str | None = None

    @property
    def shares_rows(self) -> bool:
        """Whether several texts can stand behind one image: positions must be free to restart."""
        return self.positions != "slots"
