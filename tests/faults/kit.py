"""Damaged files for whatever reads files of others: made from a seed, read in processes that are watched.

A format is listed once, in ``formats.py``; here is what is alike for all: how a file is damaged, and that nothing but
an error of the project or a counted problem comes of it. ``python -m tests.faults.fuzz`` runs any number of inputs.
"""

from __future__ import annotations

import json
import logging
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gitllm_plugin.errors import GitLLMError
from tests.faults.server import forking

SECONDS = 20  # for one input of a few kilobytes on a machine with other work
MORE_MEMORY = 500 * 2**20
FINDINGS = ("traceback", "crash", "hang", "execution", "silent loss")
_WATCHED = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.startfile",
    "pty.spawn",
    "pickle.find_class",
)


@dataclass(frozen=True)
class Format:
    """A kind of file that others write.

    Attributes:
        make: writes a whole sample into an empty folder.
        damaged: which files of the sample are damaged, as a pattern of :meth:`pathlib.Path.glob`.
        read: reads the sample by the project's own entry; gives what was read, of values that can be compared, and how
            many things are told to be missing.
        exact: whether damage that is not told has to leave what is read as it was; else every value is a right one.
        units: where each thing is either read or told: how many there are.
        refused: how many things of the whole sample are told, because they are of no kind that is read.
    """

    make: Callable[[Path], object]
    damaged: str
    read: Callable[[Path], tuple[Any, int]]
    exact: bool = False
    units: int | None = None
    refused: int = 0


def damage(data: bytes, rng: random.Random) -> bytes:
    """Damage a file as disks, copies and editors do, and as one does who looks for a hole."""
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at, size = rng.randrange(len(data) + 1), rng.choice((1, 2, 4, 8, 64, 512))
        kind = rng.randrange(9)
        if kind == 0:
            data = data[:at]
        elif kind == 1:
            data = data[:at] + bytes(size) + data[at + size :]
        elif kind == 2:
            data = data[:at] + data[at + size :]
        elif kind == 3:
            data = data[:at] + data[at : at + size] + data[at:]
        elif kind == 4:
            data = data[:at] + rng.randbytes(size) + data[at + size :]
        elif kind == 5:
            number = rng.choice((-1, 0, 2**31 - 1, 2**31, 2**32 - 1, 2**62)) % 2**64
            data = data[:at] + number.to_bytes(8, rng.choice(("little", "big"))) + data[at + 8 :]
        elif kind == 6:
            text = rng.choice(
                (b"null", b"-1", b"1e999", b"NaN", b"[]", b"{}", b'""', b'"../../x"', b"99999999999999999999")
            )
            data = data[:at] + text + data[at + len(text) :]
        elif kind == 7:
            data = _with_other_number(data, rng)
        elif data:
            place = min(at, len(data) - 1)
            data = data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
    return data


def _with_other_number(data: bytes, rng: random.Random) -> bytes:
    """Change digits that stand somewhere, so that text stays text."""
    digits = [place for place, byte in enumerate(data[:4096]) if 48 <= byte <= 57]
    if not digits:
        return data
    place = rng.choice(digits)
    return data[:place] + rng.choice((b"9", b"0", b"-1", b"1e9", b"77777777")) + data[place + 1 :]


def sample(form: Format, folder: Path, seed: int) -> bool:
    """Write the input of a seed; says whether anything in it is damaged."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(folder.with_name("whole"), folder)
    rng = random.Random(seed)
    path = rng.choice(sorted(path for path in folder.glob(form.damaged) if path.is_file()))
    before = path.read_bytes()
    if rng.random() < 0.02:
        path.unlink()
        return True
    path.write_bytes(after := damage(before, rng))
    return after != before


def read_one(form: Format, folder: Path, expected: Any) -> tuple[str, str]:
    """Read an input; gives what became of it and, of a finding, more."""
    try:
        found, told = form.read(folder)
    except GitLLMError as error:
        return ("refused", "") if str(error).strip() else ("traceback", f"{type(error).__name__} without a word")
    except Exception as error:  # noqa: BLE001 - what is looked for
        return "traceback", "".join(traceback.format_exception(error)[-6:])
    if form.units is not None and len(found) + told < form.units:
        return "silent loss", f"{len(found)} read and {told} told of {form.units}"
    if form.exact and not told and found != expected:
        return "silent loss", f"{found!r:.300} in the place of {expected!r:.300}"
    return ("told", "") if told > form.refused else ("read", "")


def child(name: str, first: int, count: int, folder: Path) -> None:
    """Read inputs in this process, a line of output each: it may crash, and it is watched from outside for time."""
    from tests.faults.formats import FORMATS

    form, ran = FORMATS[name], []
    logging.disable(logging.WARNING)  # of every damaged row, thousands of times
    sys.addaudithook(lambda event, args: ran.append(f"{event} {args!r:.200}") if event in _WATCHED else None)
    expected, told = form.read(folder / "whole")
    assert told == form.refused, f"the whole sample of {name} has {told} problems"
    ran.clear()
    # Of this process as it is with all libraries loaded: what a small file may take more.
    used = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (used + MORE_MEMORY, used + MORE_MEMORY))
    for seed in range(first, first + count):
        print(json.dumps([seed, "begun", ""]), flush=True)
        sample(form, folder / "damaged", seed)
        kind, more = read_one(form, folder / "damaged", expected)
        if ran:
            kind, more = "execution", "; ".join(ran)
            ran.clear()
        print(json.dumps([seed, kind, more]), flush=True)


def run(name: str, inputs: int, seed: int = 0) -> tuple[dict[str, int], list[tuple[int, str, str]]]:
    """Read so many inputs of a format.

    Returns:
        How many ended how, and what was found: seed, kind and more of each finding.
    """
    from tests.faults.formats import FORMATS

    counts: dict[str, int] = {}
    findings = []
    with tempfile.TemporaryDirectory() as name_of_folder:
        folder = Path(name_of_folder)
        (folder / "whole").mkdir()
        FORMATS[name].make(folder / "whole")
        done = 0
        while done < inputs:
            for place, kind, more in _watch(name, seed + done, inputs - done, folder):
                counts[kind] = counts.get(kind, 0) + 1
                if kind in FINDINGS:
                    findings.append((place, kind, more))
                done = place + 1 - seed
    return counts, findings


def _watch(name: str, first: int, count: int, folder: Path) -> list[tuple[int, str, str]]:
    """Run a child until it ends; where it crashed or hung, the input that it had begun is the finding."""
    log, errors = folder / "log", folder / "errors"
    log.write_bytes(b"")
    process = forking().Process(target=_child, args=(name, first, count, folder, log, errors))
    process.start()
    size, since = 0, time.monotonic()
    while process.exitcode is None:
        process.join(0.05)
        if (now := log.stat().st_size) != size:
            size, since = now, time.monotonic()
        # The first line comes when torch and all else is loaded.
        elif time.monotonic() - since > (SECONDS if size else 120):
            process.kill()
            process.join()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    if not lines:  # the next one would not, either
        raise RuntimeError(f"the child of {name} did not begin: {errors.read_text()[-3000:]}")
    if process.exitcode == 1 and "Traceback" in (said := errors.read_text()):  # its own: what is read raises nothing
        raise RuntimeError(f"the child of {name} failed in the kit: {said[-3000:]}")
    ended = [(seed, kind, more) for seed, kind, more in lines if kind != "begun"]
    if lines[-1][1] == "begun":
        kind = "hang" if process.exitcode == -signal.SIGKILL else "crash"
        ended.append((lines[-1][0], kind, f"exit status {process.exitcode}: {errors.read_text()[-1000:]}"))
    return ended


def _child(name: str, first: int, count: int, folder: Path, log: Path, errors: Path) -> None:
    for stream, path in ((1, log), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    warnings.simplefilter("ignore")
    child(name, first, count, folder)
