"""The ``run`` node as the runner reads it, see :class:`~gitllm_plugin.config.run.RunSettings`."""

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from gitllm_plugin.config import check
from gitllm_plugin.config.run import RunSettings
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.runners.saved_config import secret_keys


def fill_defaults(run_cfg: MutableMapping[str, Any]) -> None:
    """Write the default of every missing key into ``run_cfg``, so that the saved config says what was run.

    Values that are given are written as their types (``"1e-3"`` as a number). ``batch_size_eval`` is
    ``batch_size_train`` where it is missing.

    Raises:
        ConfigError: values that are wrong; all of them.
    """
    checked = check(RunSettings, "run", run_cfg, closed=False)
    if checked.faults:
        message = _listed("The run cannot be started", checked.faults)
        # Said apart: an evaluation that Python starts need not say that it is one.
        if lacking := [fault for fault in _training_faults(run_cfg) if fault not in checked.faults]:
            message += "\n" + _listed("To be trained it needs as well", lacking)
        raise ConfigError(message)
    secret = secret_keys(run_cfg)
    for key, value in checked.values.items():
        if key in secret:
            continue  # what it refers to stays where it is
        if value is not None or key == "resume_ckpt_path":
            run_cfg[key] = list(value) if isinstance(value, tuple) else value
    if run_cfg.get("batch_size_eval") is None:
        run_cfg["batch_size_eval"] = run_cfg["batch_size_train"]


def check_training_settings(run_cfg: Mapping[str, Any]) -> None:
    """Refuse a ``run`` node that cannot be trained with.

    Raises:
        ConfigError: listing every missing key and every value that is not allowed.
    """
    if faults := _training_faults(run_cfg):
        raise ConfigError(_listed("The run cannot be trained", faults))


def _training_faults(run_cfg: Mapping[str, Any]) -> Sequence[str]:
    training = run_cfg.get("evaluate") is not True
    return check(RunSettings, "run", run_cfg, closed=False, known={"run.training": training}).faults


def _listed(title: str, faults: Sequence[str]) -> str:
    return f"{title}:\n  " + "\n  ".join(faults)
