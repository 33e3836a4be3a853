"""Full and read-only disks: each command says in one line what cannot be written, and loses nothing that was there."""

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.commands import Writing, all_files
from tests.faults.trials import EARLIER, Trial, Trials

PAGE = 4096


@contextmanager
def disk(trials: Trials, command: Writing) -> Iterator[Trial]:
    """A command whose home and output are on a file system of their own; skips where this user may mount none."""
    folder = trials.start(command).out.parent / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("this user may not mount a file system")
    try:
        trial = trials.start(command, folder / "home" / "out")
        trial.fill_with_earlier()
        yield trial
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(trial: Trial, room: int) -> Path:
    """Fill the disk of a trial up to so many bytes, and give the file that does."""
    filler = trial.out.parents[1] / "filler"
    system = os.statvfs(filler.parent)
    with open(filler, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, system.f_bavail * system.f_frsize - room // PAGE * PAGE))
    return filler


def written(trial: Trial) -> dict[str, bytes]:
    """The files that the command writes and not only finds, or gives another name."""
    there = set(all_files(trial.out).values())
    _, files, _ = trial.trials.undisturbed(trial.command)
    return {name: data for name, data in files.items() if data not in there}


def check(trial: Trial, mend) -> None:
    """It is refused, what was there is whole, and when the disk is as it should be all is as if nothing had been."""
    before = all_files(trial.out)
    faults = trial.refusal(trial.run())
    if trial.command.replaces:
        faults += [f"{name} is gone" for name in before if name not in all_files(trial.out)]
    mend()
    faults += [f"run again: {fault}" for fault in trial.run_again()]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("share", [0, 0.5], ids=["no_room", "room_for_half"])
def test_a_disk_that_is_full(trials, command, share):
    with disk(trials, command) as trial:
        filler = fill(trial, int(share * sum(map(len, written(trial).values()))))
        check(trial, filler.unlink)


def test_a_disk_that_has_no_place_for_a_further_file(trials, command):
    with disk(trials, command) as trial:
        folder = str(trial.out.parents[1])
        used = os.statvfs(folder)
        number = used.f_files - used.f_ffree
        subprocess.run(["mount", "-o", f"remount,nr_inodes={number}", folder], check=True)
        check(trial, lambda: subprocess.run(["mount", "-o", "remount,nr_inodes=100000", folder], check=True))


def test_a_disk_that_cannot_be_written_to(trials, command):
    with disk(trials, command) as trial:
        folder = str(trial.out.parents[1])
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        check(trial, lambda: subprocess.run(["mount", "-o", "remount,rw", folder], check=True))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere; the tests of disks are for root")
def test_a_folder_that_cannot_be_written_to(trials, command):
    trial = trials.start(command)
    trial.fill_with_earlier()
    folders = [path for path in (trial.out, *trial.out.rglob("*")) if path.is_dir()]

    def allow(mode: int) -> None:
        for folder in folders:
            folder.chmod(mode)

    allow(0o555)
    try:
        check(trial, lambda: allow(0o755))
    finally:
        allow(0o755)


def test_a_file_that_is_larger_than_one_may_be(trials, command):
    """The variant that needs no rights: a limit of the process's own."""
    trial = trials.start(command)
    trial.fill_with_earlier()
    faults = trial.refusal(trial.run(largest_file=max(map(len, written(trial).values())) // 2))
    faults += [f"run again: {fault}" for fault in trial.run_again()]
    assert not faults, "\n".join(faults)


def test_a_disk_that_fills_up_on_the_way(trials, command):
    """From some moment on, which is drawn, no file takes a further byte."""
    _, _, whole = trials.undisturbed(command)
    for moment in random.Random(command.id).sample(range(1, whole.events + 1), min(whole.events, 3)):
        check_filled_up(trials, command, moment)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_disk_that_fills_up_at_every_moment(trials, command):
    _, _, whole = trials.undisturbed(command)
    for moment in range(1, whole.events + 1, 1 + whole.events // 100):
        check_filled_up(trials, command, moment)


def check_filled_up(trials: Trials, command: Writing, moment: int) -> None:
    """Where all is written before that moment, nothing else must be wrong either."""
    trial = trials.start(command)
    trial.fill_with_earlier()
    ended = trial.run(largest_file=10, limit_from=moment)
    faults = trial.halves() + trial.left_over() if ended.status == command.status else trial.refusal(ended)
    faults += [f"run again: {fault}" for fault in trial.run_again()]
    assert not faults, f"from event {moment} on: " + "\n".join(faults)


def test_a_file_where_the_folder_should_be(trials, command):
    """A part of the path is no folder."""
    trial = trials.start(command)
    trial.out.rename(trial.out.with_name("kept"))
    trial.out.write_bytes(EARLIER)
    ended = trial.run()
    assert ended.status == 2, ended.printed
    assert "Traceback" not in ended.printed and ended.printed.count("error: ") == 1, ended.printed
    assert str(trial.out) in ended.printed
    assert trial.out.read_bytes() == EARLIER and not trial.left_over()
