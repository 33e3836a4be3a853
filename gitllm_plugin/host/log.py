"""The log of a training or evaluation as it is shown: short lines, and none that libraries write to themselves."""

import logging

from gitllm_plugin.common import ranks
from gitllm_plugin.secret_values import HideSecrets

_QUIET = ("absl", "datasets", "httpx", "matplotlib", "numexpr", "timm", "urllib3")
"""Libraries that note what no user of this package asked for, such as which tokenizer a metric splits words with."""


def set_up_log() -> None:
    """Let the log go to the standard error: notes on the first rank, warnings on all. Takes the place of LAVIS's own.

    Where a program has set up its log already, that is how it stays, but for secrets.
    """
    for library in _QUIET:
        logging.getLogger(library).setLevel(logging.WARNING)
    # It warns that it makes a cache, once on each machine.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    root = logging.getLogger()
    if not root.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(ShortLines())
        logging.basicConfig(level=logging.INFO if ranks.rank() == 0 else logging.WARNING, handlers=[handler])
    for each in root.handlers:
        each.addFilter(HideSecrets())


class ShortLines(logging.Formatter):
    """The time of day, the date where it is another than the line's before, and the level of all but notes."""

    def __init__(self) -> None:
        super().__init__()
        self.day = ""

    def format(self, record: logging.LogRecord) -> str:
        """Write a line."""
        day, time = self.formatTime(record, "%Y-%m-%d %H:%M:%S").split(" ")
        begin = f"{time} " if day == self.day else f"{day} {time} "
        self.day = day
        kind = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        return begin + kind + super().format(record)
