"""A folder of a tiny GIT-LLM with everything that a person's use of it needs, made in a second without training."""

from pathlib import Path

from gitllm_plugin.modeling import build_git_llm, save_folder
from gitllm_plugin.processors.image_transform import NORMALIZATIONS, ImageTransform

TRANSFORM = ImageTransform(32, *NORMALIZATIONS["clip"])


def write_tiny_folder(folder: Path, language_model: str = "tiny:llama", **settings) -> Path:
    """Write a model with random weights; gives the folder."""
    model, tokenizer = build_git_llm(language_model, "tiny:clip", trainable="proj", dtype="float32", **settings)
    save_folder(
        model,
        folder,
        tokenizer=tokenizer,
        image_processor=TRANSFORM.as_preprocessor_config(),
        settings={"text_processor": {"name": "git_llm_instruction", "template": "plain"}},
    )
    return folder
