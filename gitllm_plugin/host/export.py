"""From a training run to a folder that loads without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gitllm_plugin
from gitllm_plugin.common.files import check_new_folder
from gitllm_plugin.common.run_files import BEST, CONFIG, LATEST, linked_run, run_folder_of, weights_of
from gitllm_plugin.errors import ConfigError


def export_run(run: str | Path, target: str | Path, *, merge: bool = False, with_base: bool = True) -> None:
    """Write the model of a run, with tokenizer, image processor and the run's own processors.

    Args:
        run: a run's folder (its best weights, else its newest) or one of its checkpoints.
        target: the folder to make.
        merge: add LoRA to the language model's weights.
        with_base: whether frozen parts are written; else they are named.

    Raises:
        ConfigError: no such run, a run of another model than ``git_llm``, or the target is in use.
    """
    if merge and not with_base:
        raise ConfigError("a merged language model is no longer its base: export it with the base")
    check_new_folder(target)
    checkpoint, config = find_run(run)
    model = load_model_of_run(config, checkpoint)
    from gitllm_plugin.modeling.folder import has_lora, save_folder
    from gitllm_plugin.modeling.lora import merge_lora

    if merge and has_lora(model.model):
        merge_lora(model.model.language_model)
    processors = eval_processors(config)
    settings = {
        **eval_processors(config, secrets=False),
        "loss_on": model.text_encoder.loss_on,
        "chat_template": model.text_encoder.chat_template is not None,
        "run": str(checkpoint),
    }
    save_folder(
        model.model,
        target,
        tokenizer=model.text_encoder.tokenizer if with_base else None,
        image_processor=_preprocessor_config(processors.get("vis_processor")),
        settings=settings,
        with_base=with_base,
    )


def find_run(run: str | Path) -> tuple[Path, Any]:
    """Give the checkpoint that is meant by a run's folder or file, and the run's resolved configuration.

    Raises:
        ConfigError: there is none.
    """
    from omegaconf import OmegaConf

    checkpoint, config = find_files(run)
    return checkpoint, OmegaConf.load(config)


def find_files(run: str | Path) -> tuple[Path, Path]:
    """Find the checkpoint and the configuration of a run.

    Args:
        run: its folder (the best weights, else the newest), the folder above (its latest run), or a checkpoint.

    Raises:
        ConfigError: there is none.
    """
    run = Path(run).expanduser()
    latest = linked_run(run)
    checkpoint = weights_of(run) or (latest and weights_of(latest)) or (run if run.is_file() else None)
    if checkpoint is not None and (config := run_folder_of(checkpoint) / CONFIG).is_file():
        return checkpoint, config
    raise ConfigError(
        f"{run} is not a run: expected a folder with {CONFIG} and one of {BEST}, {LATEST}, the folder above with its "
        "latest run, or such a checkpoint"
    )


def load_model_of_run(config: Any, checkpoint: Path | None) -> Any:
    """Give the registered model that a run trained, with the checkpoint's weights; None: as before training.

    Raises:
        ConfigError: it is not ``git_llm``, or the checkpoint does not fit.
    """
    from omegaconf import OmegaConf

    if config.model.get("arch") != "git_llm":
        raise ConfigError(f"the run trained {config.model.get('arch')!r}; only git_llm can be exported")
    gitllm_plugin.register()
    from gitllm_plugin.models.git_llm import GitLLMForLavis

    loaded = {"load_finetuned": checkpoint is not None, "finetuned": str(checkpoint), "self_test": False}
    return GitLLMForLavis.from_config(OmegaConf.merge(config.model, loaded))


def eval_processors(config: Any, secrets: bool = True) -> dict[str, Any]:
    """Give the evaluation processors of the run's first data set: they are the same for all in a sensible run.

    Args:
        config: of the run.
        secrets: False: what is secret in the environment is not resolved, to be written down.
    """
    from omegaconf import OmegaConf

    from gitllm_plugin.runners.saved_config import without_secrets

    dataset = next(iter(config.datasets.values()))
    kinds = ("vis_processor", "text_processor")
    return {
        kind: OmegaConf.to_container(dataset[kind].eval, resolve=True)
        if secrets
        else without_secrets(dataset[kind].eval)
        for kind in kinds
        if dataset.get(kind) is not None and dataset[kind].get("eval") is not None
    }


def _preprocessor_config(vis_processor: dict[str, Any] | None) -> dict[str, Any] | None:
    from gitllm_plugin.processors.git_llm_image import GitLLMImageEvalProcessor

    if vis_processor is None or vis_processor.get("name") != "git_llm_image_eval":
        return None
    return GitLLMImageEvalProcessor.from_config(vis_processor).transform.as_preprocessor_config()
