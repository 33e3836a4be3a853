"""LAVIS's main sequence, as in its scripts for training and evaluation, and its scripts run unmodified."""

import argparse
import ast
import ctypes
import importlib
import os
import random
import runpy
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gitllm_plugin
from gitllm_plugin.common.run_files import weights_of_own_config
from gitllm_plugin.config import read
from gitllm_plugin.config.options import as_assignments
from gitllm_plugin.config.run import LaunchSettings
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.host.locate import prepare
from gitllm_plugin.resources import find_config
from gitllm_plugin.tables import Block


def train(cfg_path: str | Path, options: Sequence[str] = ()):
    """Train as the configuration says.

    Args:
        cfg_path: YAML file with the sections ``model``, ``datasets`` and ``run``.
        options: overrides, each ``key.subkey=value``.

    Returns:
        the runner, after training.

    Raises:
        ConfigError: the file, an option or a name in them is wrong; all such errors at once.
        HostError: LAVIS, or a library that it cannot do without, is missing.
        LostProcessError: a data loader's worker was killed, or another rank is gone.
    """
    cfg = _read_config(cfg_path, options)
    runner = _build_runner(cfg)
    from gitllm_plugin.common.lost_processes import lost_processes_explained

    with lost_processes_explained(cfg.run_cfg, ("batch_size_train", "batch_size_eval")):
        runner.train()
    _leave_process_group()
    return runner


def dry_run(cfg_path: str | Path, options: Sequence[str] = ()) -> str:
    """Describe a training without doing it: configuration, parameters, first batch, memory and time.

    Of several ranks the first describes its own batch, and the others give "". The only file written is a figure of
    the first batch's images, below ``run.output_dir`` in ``dry_run``.

    Raises:
        ConfigError: as ``train``, or another runner than ``git_llm``.
    """
    cfg = _read_config(cfg_path, options)
    if _runner_name(cfg) != "git_llm":
        raise ConfigError(f"--dry-run needs run.runner=git_llm, and it is {_runner_name(cfg)!r}")
    output_dir = Path(cfg.run_cfg.get("output_dir") or "output/git_llm") / "dry_run"
    apart = [f"run.output_dir={output_dir}", "run.resume_ckpt_path=null"]
    cfg = _read_config(cfg_path, [*as_assignments(options), *apart])
    kept: dict[str, Any] = {}

    def build(task: Any, cfg: Any) -> Any:
        """Build the model, but for its weights where nothing else asks for them."""
        from gitllm_plugin.common.simulated_memory import Simulation
        from gitllm_plugin.modeling.weightless import without_weights

        # Features are those of certain weights.
        if any((node.get("build_info") or {}).get("features") for node in cfg.datasets_cfg.values()):
            return kept.setdefault("model", task.build_model(cfg))
        with without_weights():
            model = task.build_model(cfg)
        if all(not parameter.is_meta for parameter in model.parameters()):
            return kept.setdefault("model", model)
        kept["load_model"] = partial(task.build_model, cfg)
        return kept.setdefault("model", Simulation().copy_of(model, [getattr(model, "text_encoder", None)]))

    runner = _build_runner(cfg, build)
    from gitllm_plugin.runners.dry_run import dry_run as describe

    return describe(runner, **kept, leave_group=_leave_process_group)


def evaluate(cfg_path: str | Path, options: Sequence[str] = ()):
    """Evaluate the model that the configuration describes on ``run.test_splits``; see ``train``.

    A run's own configuration, the file in its folder, means the run's trained weights, unless an option names others.
    Unlike LAVIS's ``evaluate.py``, it uses the runner named by ``run.runner``.

    Returns:
        the runner, after evaluation.

    Raises:
        ConfigError: as ``train``, for ``run.resume_ckpt_path``, which an evaluation does not read, and for weights that
            nothing has trained, where ``run.allow_untrained`` does not allow them.
    """
    cfg = _read_config(cfg_path, options, evaluating=True)
    runner = _build_runner(cfg)
    from gitllm_plugin.common.lost_processes import lost_processes_explained

    with lost_processes_explained(cfg.run_cfg, ("batch_size_eval",)):
        runner.evaluate(skip_reload=True)
    _leave_process_group()
    return runner


def evaluate_run(run: str | Path, options: Sequence[str] = ()):
    """Evaluate a run by its folder, the folder above (its latest run), or one of its checkpoints; see :func:`evaluate`.

    Raises:
        ConfigError: there is no such run; else as ``evaluate``.
    """
    from gitllm_plugin.host.export import find_files

    gitllm_plugin.register()
    checkpoint, config = find_files(run)
    named = [] if Path(run).expanduser().is_dir() else ["model.load_finetuned=true", f"model.finetuned={checkpoint}"]
    return evaluate(config, [*named, *as_assignments(options)])


def run_script(path: str | Path, argv: Sequence[str] = ()) -> None:
    """Run a script of LAVIS's, such as its ``train.py``, unmodified, with the plugin registered before.

    A script of a checkout runs with the checkout's library; which one it is, is said.

    Args:
        path: the script.
        argv: its arguments; a configuration given by ``--cfg-path`` is found and checked before the script starts.

    Raises:
        ConfigError: no such script, or its configuration is wrong.
        HostError: LAVIS, or a library that it cannot do without, is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"there is no script '{path}'; give the path of a file such as LAVIS's train.py")
    try:
        ast.parse(path.read_bytes(), str(path))
    except (OSError, SyntaxError, ValueError) as error:
        raise ConfigError(f"{path} is no script of Python: {error}") from error
    # As Python does; `runpy` does not. Before LAVIS is imported: a checkout's script comes with its library.
    sys.path.insert(0, str(path.resolve().parent))
    importlib.invalidate_caches()
    host = prepare()
    if os.environ.get("RANK", "0") == "0":
        name = f"salesforce-lavis {host.version}" if host.version else host.variant
        print(f"{path.name} runs with LAVIS of {host.folder} ({name})", file=sys.stderr)
    gitllm_plugin.register()
    sys.argv = [str(path), *_check_script_config(path, argv)]
    runpy.run_path(str(path), run_name="__main__")


def _check_script_config(path: Path, argv: Sequence[str]) -> list[str]:
    """Give the script's arguments, with its configuration checked and named by where it was found."""
    from gitllm_plugin.host.config_check import check_config

    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--cfg-path")
    parser.add_argument("--options", nargs="+", default=[])
    try:
        known, _ = parser.parse_known_args(list(argv))
    except argparse.ArgumentError:
        return list(argv)  # the script parses its own arguments and says what is wrong with them
    if known.cfg_path is None:
        return list(argv)
    evaluating = path.stem == "evaluate"
    ahead = _which_weights(known.cfg_path, known.options, evaluating)
    options = [*ahead, *as_assignments(known.options)]
    check_config(known.cfg_path, options, evaluating)
    given = (known.cfg_path, f"--cfg-path={known.cfg_path}")
    found = str(find_config(known.cfg_path))
    words = [word.replace(known.cfg_path, found) if word in given else word for word in argv]
    if not ahead:
        return words
    start = words.index("--options") if "--options" in words else len(words)
    return [*words[:start], "--options", *options, *words[start + 1 + len(known.options) :]]


def build_model(cfg_path: str | Path, options: Sequence[str] = ()) -> tuple[Any, Any, Any]:
    """Build the model that a configuration describes, without its data; gives LAVIS's ``Config``, the task and it.

    Raises:
        ConfigError: the file, an option or a name in them is wrong; all such errors at once.
        HostError: LAVIS, or a library that it cannot do without, is missing.
    """
    cfg = _read_config(cfg_path, options)
    from lavis.tasks import setup_task

    task = setup_task(cfg)
    return cfg, task, task.build_model(cfg)


def list_parameters(cfg_path: str | Path, options: Sequence[str] = ()) -> list[Block]:
    """Tabulate the parameters of the model that a configuration describes, by the names that ``trainable`` takes.

    Args:
        cfg_path: the configuration; or a run, as :func:`evaluate_run` takes it, whose own is meant.
        options: overrides.

    Raises:
        ConfigError: the file, an option or a name in them is wrong; all such errors at once.
        HostError: LAVIS, or a library that it cannot do without, is missing.
    """
    if not str(cfg_path).endswith((".yaml", ".yml")):
        from gitllm_plugin.host.export import find_files

        cfg_path = find_files(cfg_path)[1]
    _, _, model = build_model(cfg_path, options)
    from gitllm_plugin.modeling.parameters import describe_parameters, parameter_rows
    from gitllm_plugin.models.image_text import ImageTextModel

    return describe_parameters(parameter_rows(model.model if isinstance(model, ImageTextModel) else model))


def write_features(
    cfg_path: str | Path,
    options: Sequence[str] = (),
    share: tuple[int, int] = (0, 1),
    on_progress=lambda images: None,
) -> str:
    """Encode the images of a configuration's shards with its model's image encoder, for training that reads features.

    Args:
        cfg_path: names a model and the data set m3it_wds.
        options: overrides of the file.
        share: slice k of n of the shards, from 0.
        on_progress: called with the number of images that are done.

    Returns:
        what was done, in a line a split.

    Raises:
        ConfigError: the file, an option or a name in them is wrong, or an image has no one set of features.
        HostError: LAVIS, or a library that it cannot do without, is missing.
    """
    cfg = _read_config(cfg_path, options)
    from lavis.tasks import setup_task

    from gitllm_plugin.common.device import default_device
    from gitllm_plugin.common.lost_processes import lost_processes_explained
    from gitllm_plugin.datasets.builders.m3it_builder import M3ITWdsBuilder
    from gitllm_plugin.datasets.features import encode_shards, features_folder
    from gitllm_plugin.host.encoder_config import fill_from_encoder
    from gitllm_plugin.modeling import ImageEncoder

    fill_from_encoder(cfg.config)
    node = cfg.datasets_cfg.get("m3it_wds")
    if node is None:
        raise ConfigError("features are made of shards: this configuration has no data set m3it_wds")
    folder = features_folder(node.build_info.shards, node.build_info.get("features"))
    node.build_info.features = None  # they are not there yet
    streams = M3ITWdsBuilder(node).build_datasets()
    encoder = getattr(setup_task(cfg).build_model(cfg).model, "image_encoder", None)
    if not isinstance(encoder, ImageEncoder):
        raise ConfigError("this configuration's model takes no features of images; model git_llm does")
    encoder = encoder.to(default_device()).eval()
    num_workers = int(cfg.run_cfg.get("num_workers") or 0)
    with lost_processes_explained(cfg.run_cfg):
        lines = [
            f"{split}: {encode_shards(encoder, stream, folder, num_workers, share, on_progress=on_progress)}"
            for split, stream in streams.items()
        ]
    return "\n".join([*lines, f"in {folder}"])


def _read_config(cfg_path: str | Path, options: Sequence[str], evaluating: bool = False):
    """Read the file and the options as LAVIS's ``Config``, after checking that nothing in them is wrong."""
    gitllm_plugin.register()
    from gitllm_plugin.host.config_check import check_config

    options = [*_which_weights(cfg_path, options, evaluating), *as_assignments(options)]
    check_config(cfg_path, options, evaluating)
    from lavis.common.config import Config

    return Config(argparse.Namespace(cfg_path=str(find_config(cfg_path)), options=list(options)))


def _which_weights(cfg_path: str | Path, options: Sequence[str], evaluating: bool) -> list[str]:
    """Give options, to go before those of the user, that say which weights an evaluation means.

    Those that an option names are meant, and of a run's own configuration the run's (the runner loads them): not those
    that its training started from, which may be gone.
    """
    given = as_assignments(options)
    if not (evaluating or any(option.lower() == "run.evaluate=true" for option in given)):
        return []
    beginning = ["run.resume_ckpt_path=null", "model.load_finetuned=false", "model.finetuned=null"]
    own = beginning if weights_of_own_config(cfg_path, options) else []
    named = any(option.startswith("model.finetuned=") for option in given)
    return [*own, *(["model.load_finetuned=true"] if named else [])]


def _build_runner(cfg: Any, build_model: Callable[[Any, Any], Any] | None = None):
    """Build the runner and all that it needs; ``build_model(task, cfg)`` builds the model in the place of the task."""
    from lavis.common.registry import registry
    from lavis.tasks import setup_task

    from gitllm_plugin.host.distributed import init_distributed_mode
    from gitllm_plugin.host.log import set_up_log

    init_distributed_mode(cfg.run_cfg)
    _set_seeds(read(LaunchSettings, "run", cfg.run_cfg, closed=False).seed)
    set_up_log()
    task = setup_task(cfg)
    datasets = task.build_datasets(cfg)
    model = task.build_model(cfg) if build_model is None else build_model(task, cfg)
    runner_class = registry.mapping["runner_name_mapping"][_runner_name(cfg)]
    return runner_class(cfg=cfg, job_id=_shared_job_id(), task=task, model=model, datasets=datasets)


def _runner_name(cfg: Any) -> str:
    # Null stands for the default in every key of `run`, where LAVIS knows a missing one only.
    return cfg.run_cfg.get("runner") or "runner_base"


def _set_seeds(seed: int) -> None:
    import numpy as np
    import torch
    from lavis.common.dist_utils import get_rank

    seed += get_rank()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def _shared_job_id() -> str:
    """Give LAVIS's job id, the first rank's on every rank: their clocks may differ."""
    import torch.distributed as dist
    from lavis.common.utils import now

    job_id = [now()]
    if dist.is_initialized():
        dist.broadcast_object_list(job_id)
    return job_id[0]


def _leave_process_group() -> None:
    """Leave it, but do not let it be freed.

    The last to refer to a gloo group is the model's DistributedDataParallel. Freeing it, Python's lock held, torch
    waits for threads of gloo that may be waiting for that lock: now and then a rank would never end.
    """
    import torch.distributed as dist

    if dist.is_initialized():
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(dist.group.WORLD))
        dist.destroy_process_group()
