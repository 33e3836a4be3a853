"""Tiny models whose attention matters, as folders, and what the tests of engines share."""

import shutil
from functools import cache
from pathlib import Path

import pytest
import torch

from gitllm_plugin.conform import Reference
from gitllm_plugin.inference.pipeline import Pipeline
from gitllm_plugin.modeling import GitLLM, build_git_llm, save_folder
from gitllm_plugin.modeling.tiny import sharpen
from tests.tiny_folder import TRANSFORM

SETTINGS = {"text_processor": {"name": "git_llm_instruction", "template": "plain"}}


def build(family: str, **settings) -> tuple[GitLLM, object]:
    """A model of random weights, large enough that who sees whom moves its logits; and its tokenizer."""
    torch.manual_seed(0)
    model, tokenizer = build_git_llm(f"tiny:{family}", "tiny:clip", trainable="proj", dtype="float32", **settings)
    sharpen(model.language_model)
    if model.temporal_embedding is not None:
        torch.nn.init.normal_(model.temporal_embedding)
    return model, tokenizer


class Models:
    """Folders, each made when it is first asked for, and their references.

    Args:
        place: an empty folder.
    """

    def __init__(self, place: Path):
        self.place = place

    @cache  # noqa: B019 - lives as long as the tests
    def folder(self, family: str, **settings) -> Path:
        """Write a model."""
        folder = self.place / "-".join([family, *map(str, settings.values())])
        model, tokenizer = build(family, **settings)
        preprocessor = TRANSFORM.as_preprocessor_config()
        save_folder(model, folder, tokenizer=tokenizer, image_processor=preprocessor, settings=SETTINGS)
        return folder

    @cache  # noqa: B019
    def reference(self, family: str, **settings) -> Reference:
        """Its reference, which keeps what it has computed."""
        return Reference(self.folder(family, **settings))

    def pipeline(self, family: str, dtype: str = "float32", **settings) -> Pipeline:
        """A pipeline of one's own."""
        return Pipeline.from_pretrained(self.folder(family, **settings), dtype, "cpu")

    @cache  # noqa: B019
    def stock(self, family: str) -> Path:
        """As transformers' class."""
        from gitllm_plugin.modeling.stock import save_stock

        folder = self.place / f"stock-{family}"
        folder.mkdir()
        save_stock(build(family, projection="linear")[0], folder)
        return folder

    @cache  # noqa: B019
    def gguf(self, family: str, quantize: str | None = None) -> Path:
        """For llama.cpp; the image encoder, which takes seconds to write, is written once."""
        from gitllm_plugin.llama_cpp import export

        folder = self.place / f"gguf-{family}-{quantize}"
        with pytest.MonkeyPatch.context() as patch:
            if quantize is not None:
                encoder = self.gguf(family) / export.ENCODER
                patch.setattr(export, "write_encoder", lambda model, side, path: shutil.copyfile(encoder, path))
            export.write_llama_folder(self.pipeline(family), folder, quantize)
        return folder
