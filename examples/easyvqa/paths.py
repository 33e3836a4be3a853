"""Where the demonstration keeps what it fetches and what it makes."""

import os
from dataclasses import dataclass
from pathlib import Path

TRAIN_CONFIG = Path("projects/git_llm/train/demo_easyvqa.yaml")
EVAL_CONFIG = Path("projects/git_llm/eval/demo_easyvqa.yaml")
OUTPUT = Path("output/demo")
"""Where the two configurations put their runs, too; relative to the checkout's root, as they are."""

CACHE_VARIABLE = "GITLLM_CACHE"


@dataclass(frozen=True)
class Cache:
    """The folders of what is fetched and converted once.

    Attributes:
        root: the plugin's cache folder.
    """

    root: Path

    @classmethod
    def from_environment(cls) -> "Cache":
        """``$GITLLM_CACHE``, or ``~/.cache/gitllm``, as the configurations have it."""
        given = os.environ.get(CACHE_VARIABLE)
        return cls(Path(given).expanduser().absolute() if given else Path.home() / ".cache" / "gitllm")

    @property
    def demo(self) -> Path:
        """All of the demonstration's."""
        return self.root / "demo"

    @property
    def wheels(self) -> Path:
        """Packages that are downloaded and not yet unpacked."""
        return self.demo / "wheels"

    @property
    def packages(self) -> Path:
        """Unpacked packages, a folder each."""
        return self.demo / "packages"

    @property
    def licenses(self) -> Path:
        """The packages' licences and descriptions, a folder each."""
        return self.demo / "licenses"

    @property
    def language_model(self) -> Path:
        """SmolLM2 as a Hugging Face folder."""
        return self.demo / "smollm2-135m-instruct"

    @property
    def image_encoder(self) -> Path:
        """EfficientNet-Lite0 as a Hugging Face folder."""
        return self.demo / "efficientnet-lite0"

    @property
    def data(self) -> Path:
        """easy-VQA as M3IT JSONL, a folder per split."""
        return self.demo / "easyvqa"

    @property
    def balanced(self) -> Path:
        """easy-VQA's yes/no questions, as often yes as no, a folder per split."""
        return self.demo / "easyvqa_balanced"
