"""From a training run to a folder that loads without it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from gitllm_plugin.common.files import check_new_folder, new_folder
from gitllm_plugin.common.run_files import BEST, CONFIG, LATEST, LATEST_RUN, linked_run, run_folder_of, weights_of
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.host.run_model import eval_processors, load_model_of_run, transform_of

PREPROCESSOR = "preprocessor_config.json"
Format = Literal["gitllm", "transformers"]
_MOST_NEW_TOKENS = 30


def export_run(
    run: str | Path,
    target: str | Path,
    *,
    merge: bool = False,
    with_base: bool = True,
    to: Format = "gitllm",
    dtype: str | None = None,
) -> None:
    """Write the model of a run, with tokenizer, image processor, the run's own processors, and a card.

    Args:
        run: a run's folder (its best weights, else its newest) or one of its checkpoints.
        target: the folder to make.
        merge: add LoRA to the language model's weights.
        with_base: whether frozen parts are written; else they are named.
        to: ``gitllm``, which this package opens, or ``transformers``, which transformers alone does: with LoRA merged
            and the base.
        dtype: of frozen weights and of those that LoRA is merged into; None: the run's, which may round what is merged.

    Raises:
        ConfigError: no such run, a run of another model than ``git_llm``, the target is in use, or transformers has no
            class for the model.
    """
    if not with_base and (merge or to != "gitllm"):
        raise ConfigError("a merged language model is no longer its base: export it with the base")
    check_new_folder(target)
    checkpoint, config = find_run(run)
    if dtype is not None:
        config.model.dtype = dtype
    model = load_model_of_run(config, checkpoint)
    from omegaconf import OmegaConf

    exported = _Exported(
        model.model,
        model.text_encoder,
        model.conversations,
        eval_processors(config),
        _without_paths(eval_processors(config, secrets=False)),
        cast(Any, OmegaConf.to_container(config)),
        checkpoint,
    )
    if to == "transformers":
        _write_stock(exported, Path(target))
    else:
        _write_folder(exported, Path(target), merge, with_base)


@dataclass
class _Exported:
    """A run's model with what stands around it; nothing secret is resolved in what is written of it."""

    model: Any
    text_encoder: Any
    conversations: bool
    processors: dict[str, Any]
    written_processors: dict[str, Any]
    config: dict[str, Any]
    checkpoint: Path


def _write_folder(run: _Exported, target: Path, merge: bool, with_base: bool) -> None:
    from gitllm_plugin.host.model_card import use_of_folder, write_card
    from gitllm_plugin.modeling.folder import has_lora, save_folder
    from gitllm_plugin.modeling.lora import merge_lora

    if merge and has_lora(run.model):
        merge_lora(run.model.language_model)
    settings = {
        **run.written_processors,
        "loss_on": run.text_encoder.loss_on,
        "chat_template": run.text_encoder.chat_template is not None,
        **({"conversations": True} if run.conversations else {}),
        **({} if run.text_encoder.image_places == "front" else {"image_places": run.text_encoder.image_places}),
        # Not where it is, which is of this machine alone.
        "run": f"{run_folder_of(run.checkpoint).name}/{run.checkpoint.name}",
    }
    with new_folder(target) as partial:
        # The folder gets its name when the card is in it too.
        save_folder(
            run.model,
            partial,
            tokenizer=run.text_encoder.tokenizer if with_base else None,
            image_processor=_preprocessor_config(run.processors.get("vis_processor")),
            settings=settings,
            with_base=with_base,
        )
        write_card(partial, target.name, "gitllm_plugin", use_of_folder(target.name), run.config, run.checkpoint)


def _write_stock(run: _Exported, target: Path) -> None:
    from transformers import GenerationConfig

    from gitllm_plugin.host.model_card import use_of_stock, write_card
    from gitllm_plugin.modeling.stock import save_stock

    pictures = _preprocessor_config(run.processors.get("vis_processor"))
    if pictures is None:
        raise ConfigError("the run's vis_processor is none of git_llm_image_eval, which transformers has no form of")
    if (tiles := run.processors["vis_processor"].get("max_tiles") or 1) > 1:
        raise ConfigError(
            f"the run reads pictures in tiles (max_tiles={tiles}), and transformers' own class whole ones: train "
            "without max_tiles, or export for gitllm_plugin"
        )
    if run.text_encoder.image_places != "front":
        raise ConfigError(
            "the run's texts say where their pictures stand (model.image_places=text), and transformers' own class "
            "reads them in front: export for gitllm_plugin, or train with model.image_places=front"
        )
    with new_folder(target) as partial:
        save_stock(run.model, partial)
        tokenizer = run.text_encoder.tokenizer
        tokenizer.chat_template = run.text_encoder.chat_template or tokenizer.chat_template
        tokenizer.save_pretrained(partial)
        (partial / PREPROCESSOR).write_text(json.dumps(pictures, indent=2) + "\n")
        GenerationConfig(
            do_sample=False, max_new_tokens=_MOST_NEW_TOKENS, **run.text_encoder.special_tokens
        ).save_pretrained(partial)
        side = pictures["crop_size"]
        use = use_of_stock(
            target.name,
            run.text_encoder,
            run.written_processors.get("text_processor") or {},
            run.model.image_encoder.num_tokens(side["height"], side["width"]),
        )
        write_card(partial, target.name, "transformers", use, run.config, run.checkpoint)


def find_run(run: str | Path) -> tuple[Path, Any]:
    """Give the checkpoint that is meant by a run's folder or file, and the run's resolved configuration.

    Raises:
        ConfigError: there is none.
    """
    from gitllm_plugin.host.config_file import load_config

    checkpoint, config = find_files(run)
    return checkpoint, load_config(config)


def is_run(path: str | Path) -> bool:
    """Tell whether a path means a run, see :func:`find_files`."""
    try:
        return find_files(path) is not None
    except ConfigError:
        return False


def find_files(run: str | Path) -> tuple[Path, Path]:
    """Find the checkpoint and the configuration of a run.

    Args:
        run: its folder or the configuration in it (the best weights, else the newest), the folder above (its latest
            run), the folder above that if runs lie in one folder of it, or a checkpoint.

    Raises:
        ConfigError: there is none.
    """
    run = Path(run).expanduser()
    run = run.parent if run.name == CONFIG and run.is_file() else run
    below = sorted(link.parent for link in run.glob(f"*/{LATEST_RUN}"))
    latest = linked_run(run) or (linked_run(below[0]) if len(below) == 1 else None)
    checkpoint = weights_of(run) or (latest and weights_of(latest)) or (run if run.is_file() else None)
    if checkpoint is not None and (config := run_folder_of(checkpoint) / CONFIG).is_file():
        return checkpoint, config
    raise ConfigError(
        f"{run} is not a run: expected a folder with {CONFIG} and one of {BEST}, {LATEST}, the folder above with its "
        "latest run, or such a checkpoint; nor is it a folder of `gitllm export`" + _named_below(below)
    )


def _named_below(folders: list[Path]) -> str:
    if len(folders) == 1:
        return f"; did you mean {folders[0] / LATEST_RUN}?"
    return f"; there are runs in {', '.join(map(str, folders))}: name one" if folders else ""


def _preprocessor_config(vis_processor: dict[str, Any] | None) -> dict[str, Any] | None:
    if vis_processor is None or vis_processor.get("name") != "git_llm_image_eval":
        return None
    return transform_of(vis_processor).as_preprocessor_config()


def _without_paths(processors: dict[str, Any]) -> dict[str, Any]:
    """Leave of paths on this machine the last part: what is written may go to others, and no one reads them again."""
    return {
        kind: {key: Path(value).name if key == "encoder" and _is_path(value) else value for key, value in node.items()}
        for kind, node in processors.items()
    }


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and Path(value).expanduser().is_absolute()
