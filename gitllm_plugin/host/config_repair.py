"""Repair: LAVIS's Config takes a model's defaults from the type in the file, whatever the options say.

`Config.build_model_config` looks for the key "model.model_type" in a nested mapping, where it never is, so
`--options model.model_type=other` gives the other type's name with this type's defaults.
"""

import functools


def honour_model_type_option() -> None:
    """Make `--options model.model_type=...` choose the defaults too. Calling it again does nothing."""
    from lavis.common.config import Config
    from omegaconf import OmegaConf

    if hasattr(Config.build_model_config, "honours_model_type_option"):
        return
    original = Config.build_model_config

    @functools.wraps(original)
    def build_model_config(config, **options):
        named = {key: options["model"][key] for key in ("arch", "model_type") if key in options.get("model", {})}
        return original(OmegaConf.merge(config, {"model": named}) if named else config, **options)

    vars(build_model_config)["honours_model_type_option"] = True
    Config.build_model_config = staticmethod(build_model_config)
