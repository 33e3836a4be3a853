"""What is asked of a program."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks.peers.cases import PAD, Case
from benchmarks.peers.setups import Setup
from benchmarks.peers.weights import common_name, fill

LONGEST = "padded to the longest"
AT_ONCE = 8
"""Answers that are ranked in one forward pass, where a program has no way of its own to rank."""


class Adapter(ABC):
    """A program around a model of ``setup``'s sizes.

    Attributes:
        ways: in which it can train on the same texts; the first is the usual one.
        other_losses: those of them by which a text reads more than its image and itself.
        model: what is trained; set by the subclass.
        renamed: patterns in its parameters' names, and what stands for them in the common ones.
    """

    ways: tuple[str, ...] = (LONGEST,)
    other_losses: tuple[str, ...] = ()
    model: nn.Module
    renamed: Sequence[tuple[str, str]] = ()

    def __init__(self, setup: Setup) -> None:
        self.setup = setup

    def names(self, name: str) -> str | Sequence[str]:
        """Give the common name of a parameter, or of all that it holds."""
        for pattern, replacement in self.renamed:
            name = re.sub(pattern, replacement, name)
        return name

    def draw(self) -> None:
        """Give every parameter its values; frozen ones then have ``setup``'s dtype."""
        fill(self.model, self.names)
        for parameter in self.model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(getattr(torch, self.setup.dtype))

    @property
    def trained(self) -> list[nn.Parameter]:
        """What the optimizer changes."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def shared_gradients(self) -> list[Tensor]:
        """Gradients of what all programs train: projection and LoRA of the language model."""
        found = []
        for own, parameter in self.model.named_parameters():
            names = self.names(common_name(own))
            if isinstance(names, str) and names.startswith(("text.", "projection.")) and parameter.grad is not None:
                found.append(parameter.grad)
        return found

    @abstractmethod
    def batch(self, case: Case, way: str, pictures: bool) -> Any:
        """Make what :meth:`loss` takes; without ``pictures`` of the texts alone. Not timed."""

    @abstractmethod
    def loss(self, batch: Any) -> Tensor:
        """Give the mean over supervised tokens."""

    def training(self, case: Case, way: str) -> Callable[[], float] | None:
        """Give one step by a loop of the program's own, which gives its loss; None where it leaves that to its user."""
        return None

    @abstractmethod
    def answers(self, case: Case) -> Callable[[], list[list[int]]]:
        """Prepare, and give what is timed: new tokens of every prompt, chosen greedily, as many as ``new_tokens``."""

    def continued(self, inputs: Mapping[str, Any], case: Case) -> Callable[[], list[list[int]]]:
        """Prepare :meth:`answers` of a model that has transformers' ``generate`` and gives the prompt again."""
        read = inputs["input_ids"].shape[1]

        def answer() -> list[list[int]]:
            found = cast(Any, self.model).generate(
                **inputs,
                max_new_tokens=case.new_tokens,
                min_new_tokens=case.new_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=PAD,
            )
            return found[:, read:].tolist()

        return answer

    @abstractmethod
    def scores(self, case: Case) -> Callable[[], list[float]]:
        """Prepare, and give what is timed: log-likelihoods of the candidates."""

    @abstractmethod
    def merge_lora(self) -> None:
        """Add LoRA to its weights, as before answering."""
