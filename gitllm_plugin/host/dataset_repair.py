"""Repairs: LAVIS's builders want every split of a data set, and the address of every file that is already there."""

import functools
from pathlib import Path
from typing import Any


def leave_out_null_splits() -> None:
    """Let `build_info.annotations.train: null` leave out a split: to evaluate, nobody needs what is trained on.

    Calling it again does nothing.
    """
    from lavis.datasets.builders.base_dataset_builder import BaseDatasetBuilder

    original = BaseDatasetBuilder.__init__
    if hasattr(original, "leaves_out_null_splits"):
        return

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        annotations = (self.config.get("build_info") or {}).get("annotations") or {}
        for split in [name for name, node in annotations.items() if node is None]:
            del annotations[split]

    vars(init)["leaves_out_null_splits"] = True
    BaseDatasetBuilder.__init__ = init


def download_only_what_is_missing() -> None:
    """Let annotation files that are there be used without `url`, or with another number of them than of files.

    Calling it again does nothing.
    """
    from lavis.common.utils import get_cache_path
    from lavis.datasets.builders.base_dataset_builder import BaseDatasetBuilder

    original = BaseDatasetBuilder._download_ann
    if hasattr(original, "downloads_only_what_is_missing"):
        return

    @functools.wraps(original)
    def download(self: Any) -> None:
        nodes = self.config.build_info.annotations.values()
        paths = [node.storage for node in nodes]
        files = [path for given in paths for path in ([given] if isinstance(given, str) else given)]
        # What is relative lies in LAVIS's cache; `get_cache_path` leaves absolute paths as they are.
        if not all(Path(get_cache_path(path)).is_file() for path in files):
            original(self)

    vars(download)["downloads_only_what_is_missing"] = True
    BaseDatasetBuilder._download_ann = download
