"""The model of a training run without LAVIS: built by the run's saved configuration, with a checkpoint's weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from gitllm_plugin.config import read
from gitllm_plugin.config.model import GitLLMSettings
from gitllm_plugin.errors import ConfigError

if TYPE_CHECKING:
    from gitllm_plugin.modeling import GitLLM, TextEncoder
    from gitllm_plugin.processors.image_transform import ImageTransform

PICTURES, TEXTS = "vis_processor", "text_processor"


@dataclass
class RunModel:
    """What a run trained.

    Attributes:
        model: in evaluation mode on the CPU.
        text_encoder: with the run's tokenizer, loss and conversation template.
        conversations: whether it was trained on conversations.
    """

    model: GitLLM
    text_encoder: TextEncoder
    conversations: bool = False


def load_model_of_run(config: Any, checkpoint: Path | None) -> RunModel:
    """Give the model that a run trained, with the checkpoint's weights; None: as before training.

    Raises:
        ConfigError: it is not ``git_llm``, or the checkpoint does not fit.
    """
    from omegaconf import OmegaConf

    if config.model.get("arch") != "git_llm":
        raise ConfigError(f"the run trained {config.model.get('arch')!r}; only git_llm can be exported")
    from gitllm_plugin.common.weights import read_checkpoint, without_known
    from gitllm_plugin.modeling import load_trainable_state_dict, trainable_state_dict
    from gitllm_plugin.modeling.build import build_with_texts

    asked = {"load_finetuned": checkpoint is not None, "finetuned": str(checkpoint), "self_test": False}
    settings = read(GitLLMSettings, "model", cast(Any, OmegaConf.merge(config.model, asked)))
    model, text_encoder = build_with_texts(settings)
    conversations = False
    if checkpoint is not None:
        content = read_checkpoint(checkpoint)
        conversations = bool(content.get("conversations"))
        # The run's model is a part of the class that LAVIS knows, by this name.
        given = {name.removeprefix("model."): value for name, value in content["model"].items()}
        weights = without_known(model, trainable_state_dict(model).keys(), given)
        load_trainable_state_dict(model, weights, str(checkpoint))
        model.untrained.clear()
    return RunModel(model, text_encoder, conversations)


def eval_processors(config: Any, secrets: bool = True) -> dict[str, Any]:
    """Give the evaluation processors of the run's first data set: they are the same for all in a sensible run.

    Args:
        config: of the run.
        secrets: False: what is secret in the environment is not resolved, to be written down.
    """
    from omegaconf import OmegaConf

    from gitllm_plugin.runners.saved_config import without_secrets

    dataset = next(iter(config.datasets.values()))
    return {
        kind: OmegaConf.to_container(dataset[kind].eval, resolve=True)
        if secrets
        else without_secrets(dataset[kind].eval)
        for kind in (PICTURES, TEXTS)
        if dataset.get(kind) is not None and dataset[kind].get("eval") is not None
    }


def transform_of(node: dict[str, Any] | None) -> ImageTransform:
    """Make what a picture processor's node describes; None: the defaults.

    Raises:
        ConfigError: naming everything in the node that is wrong.
    """
    from gitllm_plugin.processors.settings import PictureSettings
    from gitllm_plugin.processors.transform_config import make_transform

    return make_transform(read(PictureSettings, PICTURES, node))


def prompts_of(node: dict[str, Any] | None) -> dict[str, Any]:
    """Give ``template`` and ``instruction`` of a text processor's node; None: the defaults.

    Raises:
        ConfigError: naming everything in the node that is wrong.
    """
    from gitllm_plugin.processors.settings import InstructionSettings

    settings = read(InstructionSettings, TEXTS, node)
    return {"template": settings.template, "instruction": settings.instruction}
