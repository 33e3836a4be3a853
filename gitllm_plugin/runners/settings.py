"""The ``run`` node as the runner reads it, see :class:`~gitllm_plugin.config.run.RunSettings`."""

from collections.abc import Mapping, MutableMapping
from typing import Any

from gitllm_plugin.config import check
from gitllm_plugin.config.run import RunSettings
from gitllm_plugin.errors import ConfigError


def fill_defaults(run_cfg: MutableMapping[str, Any]) -> None:
    """Write the default of every missing key into ``run_cfg``, so that the saved config says what was run.

    Values that are given are written as their types (``"1e-3"`` as a number). ``batch_size_eval`` is
    ``batch_size_train`` where it is missing.

    Raises:
        ConfigError: values that are wrong; all of them.
    """
    checked = check(RunSettings, "run", run_cfg, closed=False)
    if checked.faults:
        # What a training lacks is no fault of an evaluation, but is said with the others.
        check_training_settings(run_cfg)
    for key, value in checked.values.items():
        if value is not None or key == "resume_ckpt_path":
            run_cfg[key] = list(value) if isinstance(value, tuple) else value
    if run_cfg.get("batch_size_eval") is None:
        run_cfg["batch_size_eval"] = run_cfg["batch_size_train"]


def check_training_settings(run_cfg: Mapping[str, Any]) -> None:
    """Refuse a ``run`` node that cannot be trained with.

    Raises:
        ConfigError: listing every missing key and every value that is not allowed.
    """
    training = run_cfg.get("evaluate") is not True
    checked = check(RunSettings, "run", run_cfg, closed=False, known={"run.training": training})
    if checked.faults:
        raise ConfigError("The run cannot be started:\n  " + "\n  ".join(checked.faults))
