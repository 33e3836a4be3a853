"""Repairs of LAVIS's Config. It takes defaults by the types in the file, whatever the options say.

``Config.build_model_config`` looks for the key "model.model_type" in a nested mapping, where it never is, so
``--options model.model_type=other`` gives the other type's name with this type's defaults. ``build_dataset_config`` is
not told the options at all. And it prints what a configuration takes from the environment, tokens too.
"""

import functools
import json
from typing import Any

from gitllm_plugin.host.patching import repair_of

_CONFIG = "lavis.common.config:Config"


@repair_of(f"{_CONFIG}.build_model_config")
def honour_model_type_option(found: Any) -> Any:
    """Make ``--options model.model_type=...`` choose the defaults too. Calling it again does nothing."""
    from omegaconf import OmegaConf

    original = found.__func__  # a static method

    @functools.wraps(original)
    def build_model_config(config, **options):
        named = {key: options["model"][key] for key in ("arch", "model_type") if key in options.get("model", {})}
        return original(OmegaConf.merge(config, {"model": named}) if named else config, **options)

    return staticmethod(build_model_config)


@repair_of(f"{_CONFIG}.build_dataset_config")
def honour_dataset_type_option(found: Any) -> Any:
    """Make ``--options datasets.NAME.type=...`` choose the defaults too, and options alone add a data set.

    Calling it again does nothing.
    """
    from omegaconf import OmegaConf

    original = found.__func__  # a static method

    @functools.wraps(original)
    def build_dataset_config(*given):
        # LAVIS calls it on an instance, which alone knows the options; on the class it stays the function it was.
        *instance, config = given
        if not instance:
            return original(config)
        datasets = instance[0]._build_opt_list(instance[0].args.options).get("datasets") or {}
        named = {name: {"type": node["type"]} if "type" in node else {} for name, node in datasets.items()}
        return original(OmegaConf.merge(config, {"datasets": named}) if named else config)

    return build_dataset_config


@repair_of(f"{_CONFIG}._convert_node_to_json")
def print_no_secrets(found: Any) -> Any:
    """Make ``Config.pretty_print`` leave ``${oc.env:HF_TOKEN}`` as it is. Calling it again does nothing."""

    def convert_node_to_json(self, node):
        from gitllm_plugin.runners.saved_config import without_secrets

        return json.dumps(without_secrets(node), indent=4, sort_keys=True)

    return convert_node_to_json


@repair_of(f"{_CONFIG}.build_runner_config")
def give_runs_a_seed(found: Any) -> Any:
    """LAVIS's scripts ask for ``run.seed``, which has a default of this package's; theirs have none.

    Calling it again does nothing.
    """
    from gitllm_plugin.config.run import LaunchSettings

    original = found.__func__  # a static method

    @functools.wraps(original)
    def build_runner_config(config):
        built = original(config)
        if "seed" not in built["run"]:
            built["run"]["seed"] = LaunchSettings().seed
        return built

    return staticmethod(build_runner_config)
