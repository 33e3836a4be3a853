"""A command, disturbed in one way or another and then run again, and what must be true before and after."""

import random
import re
from functools import partial
from pathlib import Path

from tests.faults.children import Child, Ended, Orders
from tests.faults.commands import Files, Inputs, Writing, all_files

EARLIER = b"of an earlier command\n"
"""In files that a command writes over."""


class Trials:
    """Runs commands below a folder; what an undisturbed one writes is found out once.

    Args:
        folder: an empty one.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "inputs").mkdir()
        self.inputs = Inputs(folder / "inputs")
        self._undisturbed: dict[Writing, tuple[Files, Files, Ended]] = {}
        self._number = 0

    def undisturbed(self, command: Writing) -> tuple[Files, Files, Ended]:
        """Give what a command computes, all files that it writes, and how it ends."""
        if command not in self._undisturbed:
            trial = self.start(command)
            ended = trial.run()
            assert ended.status == command.status, ended.printed
            self._undisturbed[command] = command.outputs(trial.out), all_files(trial.out), ended
        return self._undisturbed[command]

    def start(self, command: Writing, out: Path | None = None) -> "Trial":
        """Prepare a command in a folder of its own, or in ``out``."""
        self._number += 1
        out = out or self.folder / str(self._number) / "out"
        return Trial(self, command, out)

    def kill(self, command: Writing, generator: random.Random, kills: int = 1) -> tuple[int, list[str]]:
        """Kill a command at moments that are drawn, until it is done before; then run it undisturbed.

        Every second moment, or so, is one of those at which it does something to files, the others are of the clock.

        Returns:
            How often it was killed, and what is wrong.
        """
        _, _, whole = self.undisturbed(command)
        trial = self.start(command)
        trial.fill_with_earlier()
        killed, faults = 0, []
        for _ in range(kills):
            if generator.random() < 0.5:
                place = generator.randint(1, whole.events)
                ended = trial.run(kill_before=place)
                where = f"killed before event {place} of {whole.events}"
            else:
                place = generator.uniform(0.03, 0.03 + whole.seconds)
                ended = trial.run(kill_after=place)
                where = f"killed after {place:.3f} s of {whole.seconds:.3f}"
            if not ended.was_killed:
                break
            killed += 1
            faults += [f"{command.name}, {where}: {fault}" for fault in trial.halves()]
        faults += [f"{command.name}, run again: {fault}" for fault in trial.run_again()]
        return killed, faults


class Trial:
    """A command in a folder.

    Args:
        trials: that it belongs to.
        command: which.
        out: where it writes; its parent is made, and is its home.
    """

    def __init__(self, trials: Trials, command: Writing, out: Path):
        self.trials, self.command, self.out = trials, command, out
        out.mkdir(parents=True)
        command.prepare(trials.inputs, out)
        self.argv = command.argv(trials.inputs, out)

    def run(self, kill_after: float | None = None, **orders) -> Ended:
        """Run it, with ``orders`` as in :class:`Orders`."""
        before = partial(self.command.before, self.out) if self.command.before else None
        child = Child(self.argv, Orders(self.out.parent, before=before, **orders))
        if kill_after is not None:
            child.kill_after(kill_after)
        return child.end()

    def fill_with_earlier(self) -> None:
        """Put other files where the command will put its own, if it is one that replaces them."""
        if self.command.replaces:
            for name in self.trials.undisturbed(self.command)[1]:
                (self.out / name).parent.mkdir(parents=True, exist_ok=True)
                (self.out / name).write_bytes(EARLIER)

    def halves(self) -> list[str]:
        """List files that have their final names and are neither what was there before nor what is to be there."""
        if self.command.outputs is not all_files:
            return []
        whole = self.trials.undisturbed(self.command)[1]
        shown = {name: data for name, data in all_files(self.out).items() if not re.search(r"(^|/)\.", name)}
        known = {name for name in shown if re.fullmatch(self.command.grows, name)}
        return [
            f"{name} is half written"
            for name, data in shown.items()
            if name not in known and data not in (whole.get(name), EARLIER if self.command.replaces else None)
        ]

    def refusal(self, ended: Ended) -> list[str]:
        """List what is wrong with how it ended where it cannot write."""
        lines = [line for line in ended.printed.splitlines() if line.startswith("error: ")]
        faults = []
        if ended.status != 2:
            faults.append(f"ended with {ended.status}")
        if len(lines) != 1 or "Traceback" in ended.printed or str(self.out) not in lines[0]:
            faults.append(f"does not say in one line what cannot be written:\n{ended.printed[-3000:]}")
        faults += self.halves()
        return faults + self.left_over()

    def left_over(self) -> list[str]:
        """List hidden files and folders of something that was not written to its end."""
        return [f"{path} is left" for path in self.out.parent.rglob(".*") if ".partial" in path.name]

    def run_again(self) -> list[str]:
        """Run it undisturbed and list what is wrong then."""
        expected, _, _ = self.trials.undisturbed(self.command)
        ended = self.run()
        if ended.status != self.command.status and not re.search(self.command.done, ended.printed):
            return [f"ended with {ended.status}:\n{ended.printed[-3000:]}"]
        found = self.command.outputs(self.out)
        differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        return [f"{name} differs" for name in differing] + self.left_over()
