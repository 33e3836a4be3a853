"""Find LAVIS on this machine, make it importable, and register with it."""

import dataclasses
import functools
import importlib
import importlib.metadata
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from gitllm_plugin.errors import HostError
from gitllm_plugin.host import placeholders

INSTALL_COMMAND = "pip install --no-deps salesforce-lavis==1.0.2"

# LAVIS's own hard requirements that no placeholder can stand in for: module -> what to give pip.
REQUIREMENTS = {
    "einops": "einops",
    "ftfy": "ftfy",
    "iopath": "iopath",
    "numpy": "numpy",
    "omegaconf": "omegaconf",
    "pandas": "pandas",
    "PIL": "pillow",
    "regex": "regex",
    "timm": "timm",
    "torch": "torch",
    "torchvision": "torchvision",
    "tqdm": "tqdm",
    "transformers": "transformers",
    "webdataset": "webdataset",
    "yaml": "pyyaml",
}


@dataclasses.dataclass(frozen=True)
class Host:
    """A LAVIS that was found.

    Attributes:
        folder: of the package ``lavis``.
        version: of the distribution that owns it, or None for a checkout on the path.
        variant: "1.0.2" (the release on PyPI) or "git main" (has modules the release lacks).
    """

    folder: Path
    version: str | None
    variant: str


def locate() -> Host:
    """Find LAVIS without importing it.

    Raises:
        HostError: there is none, or the folder that Python would import as ``lavis`` is not LAVIS.
    """
    folder = _package_folder()
    if folder is None:
        raise HostError(
            f"LAVIS is not installed for {sys.executable}. Install it: {INSTALL_COMMAND}\n"
            "(--no-deps, because LAVIS pins libraries of 2023; what it really needs comes with this package: "
            "pip install 'gitllm-plugin[host]')"
        )
    if not (folder / "common" / "registry.py").is_file():
        raise HostError(
            f"'import lavis' would import {folder}, which is not LAVIS. Take that folder off Python's path, "
            f"or install LAVIS: {INSTALL_COMMAND}"
        )
    variant = "git main" if (folder / "models" / "blip_diffusion_models").is_dir() else "1.0.2"
    return Host(folder=folder, version=_version_of(folder), variant=variant)


def _package_folder() -> Path | None:
    spec = importlib.util.find_spec("lavis")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))).resolve()


def _version_of(folder: Path) -> str | None:
    try:
        distribution = importlib.metadata.distribution("salesforce-lavis")
    except importlib.metadata.PackageNotFoundError:
        return None
    owned = Path(str(distribution.locate_file("lavis"))).resolve()
    return distribution.version if owned == folder else None


def prepare_libraries() -> None:
    """Make today's libraries look to LAVIS as it expects; does not import LAVIS itself.

    The order matters: transformers, timm and peft import torchvision, so that is repaired first.

    Raises:
        HostError: A library that LAVIS cannot do without is missing; all that are, in one message.
    """
    _require_libraries()
    from gitllm_plugin.common.torchvision_repair import repair_torchvision
    from gitllm_plugin.host.transformers_compat import supply_missing_names

    repair_torchvision()
    supply_missing_names()
    placeholders.install()


def _require_libraries() -> None:
    missing = [module for module in REQUIREMENTS if importlib.util.find_spec(module) is None]
    if missing:
        packages = " ".join(REQUIREMENTS[module] for module in missing)
        raise HostError(
            f"LAVIS needs {', '.join(missing)}, not installed for {sys.executable}. Install: pip install {packages}"
        )


@functools.cache
def prepare() -> Host:
    """Import LAVIS, with everything it lacks on this machine supplied and its defects on CPU repaired.

    Returns:
        The LAVIS that was imported. Calling it again does nothing and returns the same.

    Raises:
        HostError: no LAVIS, or a library that it cannot do without is missing.
    """
    host = locate()
    prepare_libraries()
    with warnings.catch_warnings():
        # LAVIS is frozen: nobody can act on what timm and torch say about the import paths it uses.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", SyntaxWarning)
        # `import lavis` alone registers no runners and no learning-rate schedules.
        for module in ("lavis", "lavis.runners", "lavis.common.optims"):
            importlib.import_module(module)

    from gitllm_plugin.host.config_repair import (
        give_runs_a_seed,
        honour_dataset_type_option,
        honour_model_type_option,
        print_no_secrets,
    )
    from gitllm_plugin.host.distributed import repair_metric_sync, replace_init_distributed_mode
    from gitllm_plugin.host.encoder_config import take_sizes_of_encoder
    from gitllm_plugin.host.folder_config import take_processors_of_folder
    from gitllm_plugin.host.missing_data import refuse_unasked_downloads
    from gitllm_plugin.host.model_repairs import repair_models
    from gitllm_plugin.host.repairs import repair_runners_and_builders
    from gitllm_plugin.host.single_model_repairs import repair_single_models
    from gitllm_plugin.host.training_repairs import repair_training

    replace_init_distributed_mode()
    repair_metric_sync()
    honour_model_type_option()
    honour_dataset_type_option()
    give_runs_a_seed()
    print_no_secrets()
    take_processors_of_folder()
    repair_runners_and_builders()
    refuse_unasked_downloads()
    take_sizes_of_encoder()
    repair_models()
    repair_single_models()
    repair_training()
    return host


def register_modules(modules: Sequence[str]) -> None:
    """Prepare the host and import modules, each of which registers its class by LAVIS's decorator.

    Args:
        modules: dotted names. A module that was imported before is not imported again.

    Raises:
        HostError: when LAVIS, or a library that it cannot do without, is missing.
    """
    prepare()
    for module in modules:
        importlib.import_module(module)
    _refresh_zoos()


def _refresh_zoos() -> None:
    """Repair: ``model_zoo`` and ``dataset_zoo`` are snapshots taken when LAVIS is imported."""
    from lavis.datasets.builders import dataset_zoo
    from lavis.models import model_zoo

    # In place, because users hold references to them: `from lavis.models import model_zoo`.
    model_zoo.__init__()
    dataset_zoo.__init__()
