"""A trained model by the path that a user has: an exported folder, a training run, or one of its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gitllm_plugin.errors import ConfigError

if TYPE_CHECKING:
    from gitllm_plugin.inference.asking import Answering
    from gitllm_plugin.inference.pipeline import Pipeline


def open_answering(path: str | Path) -> Answering:
    """Load what answers: a folder for llama.cpp, without torch, or else a model as :func:`open_pipeline` does.

    Raises:
        ConfigError: see :func:`open_pipeline`.
    """
    from gitllm_plugin.common.hub import local_folder
    from gitllm_plugin.llama_cpp.folder import DESCRIPTION

    path = local_folder(path)
    if (path / DESCRIPTION).is_file():
        from gitllm_plugin.llama_cpp.engine import Engine

        return Engine(path)
    return open_pipeline(path)


def open_pipeline(path: str | Path, *, trained: bool = True, dtype: str = "auto") -> Pipeline:
    """Load a model with its processors.

    Args:
        path: a folder of ``gitllm export`` or its name on the model hub, which need no LAVIS; or a run's folder or
            checkpoint.
        trained: False: the run's model as it was before training, its projection drawn with the run's seed.
        dtype: of frozen parts, see ``Pipeline.from_pretrained``; auto: a run's own.

    Raises:
        ConfigError: none of these, or an exported folder is asked for before training.
    """
    from gitllm_plugin.common.hub import local_folder

    path = local_folder(path)
    if not path.exists():
        raise ConfigError(
            f"there is no model {path}; give a folder of `gitllm export`, a name on the model hub (user/name), or a "
            "training run (`make demo` trains one into output/demo/train/latest)"
        )
    from gitllm_plugin.llama_cpp import folder as of_llama_cpp

    if (path / of_llama_cpp.DESCRIPTION).is_file():
        raise ConfigError(
            f"{path} is a folder for llama.cpp, from which one can only be answered (`gitllm ask`, `serve`)"
        )
    if find_spec("torch") is None:
        raise ConfigError(
            f"{path} is no folder of `gitllm export --to llama.cpp`, which alone answers where torch is not installed: "
            "name one, or install torch"
        )
    from gitllm_plugin.inference.pipeline import Pipeline
    from gitllm_plugin.modeling.folder import BASES, DESCRIPTION, PROJECTION

    if (path / DESCRIPTION).is_file():
        if not trained:
            raise ConfigError(
                f"{path} is an exported model; before training there is only a run: give the run's folder"
            )
        return Pipeline.from_pretrained(path, dtype)
    if there := [name for name in (*BASES, PROJECTION) if (path / name).exists()]:
        raise ConfigError(
            f"{path} is an exported model that was not copied whole: it has {', '.join(there)} and no {DESCRIPTION}. "
            "Copy the folder again"
        )
    return _pipeline_of_run(path, trained, dtype)


def _pipeline_of_run(path: Path, trained: bool, dtype: str) -> Pipeline:
    import torch

    from gitllm_plugin.host.export import find_run
    from gitllm_plugin.host.run_model import (
        PICTURES,
        TEXTS,
        eval_processors,
        load_model_of_run,
        prompts_of,
        transform_of,
    )

    checkpoint, config = find_run(path)
    if dtype != "auto":
        config.model.dtype = dtype
    torch.manual_seed(config.run.get("seed", 42))
    loaded = load_model_of_run(config, checkpoint if trained else None)
    from gitllm_plugin.common.device import default_device
    from gitllm_plugin.inference.pipeline import Pipeline

    nodes = {kind: node for kind, node in eval_processors(config).items() if kind != TEXTS or _is_ours(node)}
    # Of a text processor of LAVIS's, as those of its captions, nothing is left in an exported folder either.
    other = [node["name"] for node in nodes.values() if not _is_ours(node)]
    if other:
        raise ConfigError(
            f"the run used the processors {', '.join(other)}; only git_llm_* can be used outside of LAVIS"
        )
    return Pipeline(
        model=loaded.model.to(default_device()),
        text_encoder=loaded.text_encoder,
        transform=transform_of(nodes.get(PICTURES)),
        conversations=loaded.conversations,
        **prompts_of(nodes.get(TEXTS)),
    )


def _is_ours(node: Mapping[str, Any]) -> bool:
    return node["name"].startswith("git_llm_")
