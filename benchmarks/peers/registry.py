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
_NO_LORA = "It has no LoRA of its own; PEFT's is put into its decoder."
_PACKED = "Packed texts see those in front of them in their row."
_NANOVLM = ("https://github.com/huggingface/nanoVLM", "4e0c0961846135c2217f95e54cb4c2d66eb55e42")
_ENCODER_TOO = "Its LoRA reaches the image encoder's query, key and value too, which it therefore trains."
_HERON = ("https://github.com/turingmotors/heron", "883cd7c6e99d6d22343d6d62bb35520daf8ac92a")

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
    "nanovlm": Peer(
        "nanoVLM",
        "benchmarks.peers.nanovlm:NanoVLM",
        SMOLLM2_SIGLIP,
        same_rule=False,
        notes=(_CAUSAL, _NO_LORA, "Every patch is an image token, as with ours.", _PACKED),
        source=_NANOVLM,
        requirements="nanovlm",
    ),
    "nanovlm-49": Peer(
        "nanoVLM with its pixel shuffle",
        "benchmarks.peers.nanovlm:NanoVLM",
        replace(SMOLLM2_SIGLIP, shuffle=2),
        same_rule=False,
        notes=(
            _CAUSAL,
            _NO_LORA,
            "Four patches are one image token, 49 of 196, here and there.",
            _PACKED,
        ),
        source=_NANOVLM,
        requirements="nanovlm",
    ),
    "heron": Peer(
        "heron, the article's published code, padding to 128 tokens as the article does",
        "benchmarks.peers.heron:HeronPadded",
        OPT_350M_CLIP,
        same_rule=True,
        notes=(
            _ENCODER_TOO,
            "Its data sets pad every text to one length: 128 in the article, 512 in its configuration.",
        ),
        kinds=("train",),
        source=_HERON,
        requirements="heron",
    ),
    "heron-longest": Peer(
        "heron, the article's published code, given texts that are padded to the longest",
        "benchmarks.peers.heron:Heron",
        OPT_350M_CLIP,
        same_rule=True,
        notes=(_ENCODER_TOO, "Its own data sets pad to a fixed length."),
        source=_HERON,
        requirements="heron",
    ),
    "trl": Peer(
        "TRL's SFTTrainer around transformers' class of LLaVA",
        "benchmarks.peers.sft_trainer:Trl",
        SMOLLM2_CLIP,
        same_rule=False,
        notes=(
            _CAUSAL,
            "A step is its loop's, from pictures and words to changed weights.",
            "Gradient checkpointing, its default, is off.",
        ),
        kinds=("train",),
        requirements="trl",
        libraries=("torch", "transformers", "peft", "trl"),
    ),
}
