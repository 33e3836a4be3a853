"""Which programs there are: where each comes from, what it is compared on, and what to know of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.peers.setups import OPT_350M_CLIP, SMOLLM2_CLIP, SMOLLM2_SIGLIP, Setup

OURS = "benchmarks.peers.ours:Ours"
REQUIREMENTS = Path(__file__).parent / "requirements"


@dataclass(frozen=True)
class Peer:
    """One program.

    Attributes:
        title: for people.
        adapter: ``module:class``.
        setup: of both models.
        same_rule: whether it computes GIT's rule, so that losses and answers are ours; else texts alone are compared.
        kinds: what it is asked for.
        source: address and commit of a repository, where it is no package; on ``PYTHONPATH`` of its process.
        requirements: a file of pinned packages; None: it runs in this environment.
        libraries: whose versions are written down.
        notes: what a reader must know, a sentence each.
    """

    title: str
    adapter: str
    setup: Setup
    same_rule: bool
    notes: Sequence[str]
    kinds: Sequence[str] = ("train", "generate", "rank")
    source: tuple[str, str] | None = None
    requirements: str | None = None
    libraries: Sequence[str] = ("torch", "transformers", "peft")

    @property
    def requirements_file(self) -> Path | None:
        """The pinned packages."""
        return None if self.requirements is None else REQUIREMENTS / f"{self.requirements}.txt"


_CAUSAL = "It reads images causally, so its loss is another; losses of the texts alone are equal."

PEERS = {
    "llava": Peer(
        "transformers' class of LLaVA, LoRA by PEFT",
        "benchmarks.peers.llava:Llava",
        SMOLLM2_CLIP,
        same_rule=False,
        notes=(_CAUSAL, "Its projection has two layers."),
    ),
    "paligemma": Peer(
        "transformers' class of PaliGemma, LoRA by PEFT",
        "benchmarks.peers.paligemma:PaliGemma",
        replace(SMOLLM2_SIGLIP, projection="linear"),
        same_rule=True,
        notes=("By its token types it computes GIT's rule: image tokens see each other, texts are causal.",),
    ),
}
