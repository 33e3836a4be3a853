"""Processes with a program each, as seen from the one that measures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from benchmarks.peers.cases import Case
from benchmarks.peers.setups import Setup
from gitllm_plugin.common.processes import describe_end
from gitllm_plugin.errors import LostProcessError

_ROOT = Path(__file__).parents[2]


class Child:
    """A program that waits for requests: it computes only while it is asked.

    Args:
        process: of ``benchmarks.peers.child``, with pipes for both directions.
        log: what it prints besides.
    """

    def __init__(self, process: subprocess.Popen[str], log: Any) -> None:
        self._process, self._log = process, log

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send one request and wait for its answer.

        Raises:
            LostProcessError: the process ended instead; says how, and what it printed last.
        """
        if isinstance(case := request.get("case"), Case):
            request["case"] = case.as_json()
        with suppress(BrokenPipeError):  # it ended before; how is said below
            print(json.dumps(request), file=self._process.stdin, flush=True)
        line = cast(Any, self._process.stdout).readline()
        if not line:
            self._log.seek(0)
            said = self._log.read().decode(errors="replace")[-4000:]
            raise LostProcessError(f"a peer's process {describe_end(self._process.wait())}\n{said}")
        return json.loads(line)


@contextmanager
def started(
    adapter: str,
    setup: Setup,
    python: Path | None = None,
    source: Path | None = None,
    libraries: Sequence[str] = (),
    measures_memory: bool = False,
) -> Iterator[tuple[Child, dict[str, Any]]]:
    """Start a process; it is ended behind the block.

    Args:
        adapter: ``module:class``.
        setup: of its model.
        python: of its environment; None: this one's.
        source: a folder that its imports find too.
        libraries: whose versions it tells.
        measures_memory: what is freed goes back to the system at once, so that a peak is what was needed and not what
            malloc hoards; that costs time.

    Yields:
        The child, and what it tells of itself: ``ways``, ``other_losses`` and ``libraries``.
    """
    path = [str(_ROOT), *([str(source)] if source else [])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    if measures_memory:
        environment["MALLOC_MMAP_THRESHOLD_"] = str(2**20)
    command = [str(python or sys.executable), "-m", "benchmarks.peers.child"]
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        ) as process,
    ):
        child = Child(process, log)
        try:
            about = child.ask(adapter=adapter, setup=setup.as_json(), libraries=list(libraries))
            yield child, about
        finally:
            process.terminate()
