"""LAVIS's main sequence, as in its `train.py` and `evaluate.py`, and its scripts run unmodified."""

import argparse
import random
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import gitllm_plugin
from gitllm_plugin.errors import ConfigError


def train(cfg_path: str | Path, options: Sequence[str] = ()):
    """Train as the configuration says.

    Args:
        cfg_path: YAML file with the sections `model`, `datasets` and `run`.
        options: Overrides, each `key.subkey=value`.

    Returns:
        The runner, after training.

    Raises:
        ConfigError: The file, an option or a name in them is wrong; all such errors at once.
        HostError: LAVIS, or a library that it cannot do without, is missing.
    """
    runner = _build_runner(cfg_path, options)
    runner.train()
    _leave_process_group()
    return runner


def evaluate(cfg_path: str | Path, options: Sequence[str] = ()):
    """Evaluate the model that the configuration describes on `run.test_splits`; see `train`.

    Unlike LAVIS's `evaluate.py`, it uses the runner named by `run.runner`.

    Returns:
        The runner, after evaluation.
    """
    runner = _build_runner(cfg_path, options)
    runner.evaluate(skip_reload=True)
    _leave_process_group()
    return runner


def run_script(path: str | Path, argv: Sequence[str] = ()) -> None:
    """Run a script of LAVIS's, such as its `train.py`, unmodified, with the plugin registered before.

    Args:
        path: The script.
        argv: Its arguments. A configuration given by `--cfg-path` is checked before the script starts.

    Raises:
        ConfigError: No such script, or its configuration is wrong.
        HostError: LAVIS, or a library that it cannot do without, is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"there is no script '{path}'; give the path of a file such as LAVIS's train.py")
    gitllm_plugin.register()
    _check_script_config(argv)
    sys.argv = [str(path), *argv]
    # Python puts a script's folder first on the path; `runpy` does not.
    sys.path.insert(0, str(path.resolve().parent))
    runpy.run_path(str(path), run_name="__main__")


def _check_script_config(argv: Sequence[str]) -> None:
    from gitllm_plugin.host.config_check import check_config

    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--cfg-path")
    parser.add_argument("--options", nargs="+", default=[])
    try:
        known, _ = parser.parse_known_args(list(argv))
    except argparse.ArgumentError:
        return  # the script parses its own arguments and says what is wrong with them
    if known.cfg_path is not None:
        check_config(known.cfg_path, known.options)


def _build_runner(cfg_path: str | Path, options: Sequence[str]):
    gitllm_plugin.register()
    from gitllm_plugin.host.config_check import check_config

    check_config(cfg_path, options)

    from lavis.common.config import Config
    from lavis.common.logger import setup_logger
    from lavis.common.registry import registry
    from lavis.tasks import setup_task

    from gitllm_plugin.host.distributed import init_distributed_mode

    cfg = Config(argparse.Namespace(cfg_path=str(cfg_path), options=list(options)))
    init_distributed_mode(cfg.run_cfg)
    _set_seeds(cfg.run_cfg.get("seed", 42))
    setup_logger()
    cfg.pretty_print()
    task = setup_task(cfg)
    datasets = task.build_datasets(cfg)
    model = task.build_model(cfg)
    runner_class = registry.mapping["runner_name_mapping"][cfg.run_cfg.get("runner", "runner_base")]
    return runner_class(cfg=cfg, job_id=_shared_job_id(), task=task, model=model, datasets=datasets)


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
    """LAVIS's job id, the first rank's on every rank: their clocks may differ."""
    import torch.distributed as dist
    from lavis.common.utils import now

    job_id = [now()]
    if dist.is_initialized():
        dist.broadcast_object_list(job_id)
    return job_id[0]


def _leave_process_group() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
