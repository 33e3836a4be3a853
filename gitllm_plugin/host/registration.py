"""Import the modules that register something with LAVIS, and let LAVIS's overviews know."""

import importlib
from collections.abc import Sequence

from gitllm_plugin.host.locate import prepare


def register_modules(modules: Sequence[str]) -> None:
    """Prepare the host and import `modules`, each of which registers its class by LAVIS's decorator.

    Args:
        modules: Dotted names. A module that was imported before is not imported again.

    Raises:
        HostError: LAVIS, or a library that it cannot do without, is missing.
    """
    prepare()
    for module in modules:
        importlib.import_module(module)
    _refresh_zoos()


def _refresh_zoos() -> None:
    """Repair: `model_zoo` and `dataset_zoo` are snapshots taken when LAVIS is imported."""
    from lavis.datasets.builders import dataset_zoo
    from lavis.models import model_zoo

    # In place, because users hold references to them: `from lavis.models import model_zoo`.
    model_zoo.__init__()
    dataset_zoo.__init__()
