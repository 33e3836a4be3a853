"""How a command of ``gitllm`` is declared: its name, its words, its arguments, and the function that runs it."""

from __future__ import annotations

import argparse
import difflib
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

Call = Callable[[argparse.Namespace], int | None]
"""Runs a command; gives its exit status, None for 0.

The namespace holds the command's arguments; besides, ``parser`` is the command's own and ``root`` that of ``gitllm``.
"""


@dataclass(frozen=True)
class Argument:
    """What :meth:`argparse.ArgumentParser.add_argument` takes.

    Attributes:
        names: of the argument.
        options: everything else.
    """

    names: tuple[str, ...]
    options: dict[str, Any]

    def add_to(self, parser: Any) -> None:
        """Add it to a parser or a group of one."""
        parser.add_argument(*self.names, **self.options)


@dataclass(frozen=True)
class OneOf:
    """Arguments of which at most one may be given; one has to, where it is required."""

    arguments: tuple[Argument, ...]
    required: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Of all of them."""
        return tuple(name for each in self.arguments for name in each.names)

    def add_to(self, parser: Any) -> None:
        """Add them to a parser."""
        group = parser.add_mutually_exclusive_group(required=self.required)
        for each in self.arguments:
            each.add_to(group)


_ASKS_NOTHING = ', in quotes, behind the picture; "" asks for a description'


class Parser(argparse.ArgumentParser):
    """Asks, of a command or an option that there is none of, whether its neighbour was meant.

    Attributes:
        options: the names of those that there are.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.options: list[str] = []
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        """End the program with what is wrong."""
        # argparse has no other place that all of its errors come by.
        message += _ASKS_NOTHING if message.endswith(": QUESTION") else ""
        choice = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        super().error(message + _meant(choice[1], re.findall(r"'([^']*)'", choice[2])) if choice else message)

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """End the program with arguments that it does not know."""
        named = [name + _meant(name.partition("=")[0], self.options) for name in unknown]
        self.error(f"unrecognized arguments: {' '.join(named)}")


class HelpForm(argparse.HelpFormatter):
    """Wraps descriptions, and prints what is drawn by hand, in lines, as it stands."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:  # argparse's one place for both
        return text if "\n" in text else textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent)


def _meant(given: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(given, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


@dataclass(frozen=True)
class Command:
    """A command, or with ``actions`` a group of them.

    Attributes:
        name: as it is typed.
        help: a line of the list of commands.
        description: the beginning of its own help.
        arguments: in the order of its help.
        call: what it does; not used where it has actions.
        examples: lines for the end of its help; set in by as much as the least of them, they may have any margin.
        actions: the commands below it.
    """

    name: str
    help: str
    description: str
    arguments: Sequence[Argument | OneOf] = ()
    call: Call | None = None
    examples: str = ""
    actions: Sequence[Command] = field(default=())

    def add_to(self, subparsers: Any, root: argparse.ArgumentParser) -> None:
        """Add the command's parser, and those of its actions.

        Args:
            subparsers: of ``root`` or, for an action, of its command.
            root: the parser of ``gitllm``.
        """
        parser = subparsers.add_parser(
            self.name,
            help=self.help,
            description=self.description,
            epilog=epilog(self.examples) if self.examples else None,
            formatter_class=HelpForm,
        )
        for each in self.arguments:
            each.add_to(parser)
            parser.options += [name for name in each.names if name.startswith("-")]
        if self.actions:
            below = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
            for action in self.actions:
                action.add_to(below, root)
        else:
            parser.set_defaults(call=self.call, parser=parser, root=root)


def argument(*names: str, **options: Any) -> Argument:
    """Declare an argument as :meth:`argparse.ArgumentParser.add_argument` does."""
    return Argument(names, options)


JSON = argument("--json", action="store_true", help="print JSON, the tables as header and rows")


def command(
    name: str, help: str, description: str, *arguments: Argument | OneOf, examples: str = ""
) -> Callable[[Call], Command]:
    """Make a function the command that it runs, see :class:`Command`."""
    return lambda call: Command(name, help, description, arguments, call, examples)


def epilog(examples: str) -> str:
    """Set examples under their heading."""
    return "examples:\n" + textwrap.indent(textwrap.dedent(examples).strip("\n"), "  ") + "\n"
