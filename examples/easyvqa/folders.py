"""Folders that exist whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gitllm_plugin.common.files import scratch_folder


@contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """Give an empty folder to fill, which becomes ``target`` at the end of the block; a ``target`` from before goes.

    When the block fails, or the process is killed in it, ``target`` is as before.
    """
    with scratch_folder(target) as partial:
        yield partial
        shutil.rmtree(target, ignore_errors=True)
        os.rename(partial, target)
