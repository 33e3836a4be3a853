"""Children that have torch and all else from the start: they are forked from a server that has imported it."""

import os
from functools import cache
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path


@cache
def forking() -> ForkServerContext:
    """Give the context of such children, and start their server.

    It starts in the repository: it looks for modules where it stands, and elsewhere finds other people's `tests`.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.preloaded"])
    before = Path.cwd()
    os.chdir(Path(__file__).parents[2])
    try:
        forkserver.ensure_running()
    finally:
        os.chdir(before)
    return context
