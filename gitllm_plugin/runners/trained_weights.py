"""Which weights an evaluation without a training evaluates: a run's own, or those named, but no random ones."""

import logging
from typing import Any

from torch import nn

from gitllm_plugin.common.run_files import weights_of_own_config
from gitllm_plugin.common.weights import read_checkpoint
from gitllm_plugin.config.model import WAYS_TO_NAME_WEIGHTS
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.protocols import DrawnModel, offers
from gitllm_plugin.runners.state import load_trainable_state


def given_config(config: Any) -> tuple[str, list[str]]:
    """Give the configuration file and the options that a run was started with, as far as LAVIS's ``Config`` knows."""
    args = getattr(config, "args", None)
    return str(getattr(args, "cfg_path", "CONFIG.yaml")), list(getattr(args, "options", None) or [])


def trained_weights(model: nn.Module, config: Any) -> None:
    """Give a model the weights of the run whose own configuration this is; refuse to go on with random ones.

    Args:
        model: changed in place, where the configuration is the one in a run's folder and no option names other weights.
        config: LAVIS's ``Config``, in which the checkpoint is noted.

    Raises:
        ConfigError: a :class:`~gitllm_plugin.protocols.DrawnModel` is random still, and ``run.allow_untrained`` does
            not say that it may be.
    """
    path = weights_of_own_config(*given_config(config))
    if path is not None:
        load_trainable_state(model, read_checkpoint(path)["model"], str(path))
        config.config.model.update(load_finetuned=True, finetuned=str(path))
        logging.info("Evaluating the weights of %s.", path)
    random = model.untrained() if offers(model, DrawnModel) else []
    if not random:
        return
    what = f"the model's {' and '.join(random)} {'was' if len(random) == 1 else 'were'} drawn at random"
    if not config.run_cfg.get("allow_untrained"):
        raise ConfigError(
            f"UNTRAINED weights would be evaluated: {what}, and neither loaded nor trained. {WAYS_TO_NAME_WEIGHTS}"
        )
    logging.warning("UNTRAINED weights are evaluated, as run.allow_untrained says: %s.", what)
