"""Which environment variables hold what nobody else may read, and texts without it."""

import logging
import os
import re
from collections.abc import Mapping

_SECRET = re.compile(r"(TOKEN|KEY|SECRET|PASSWD|PASSWORD|PASSPHRASE|CREDENTIAL)S?(?![A-Z])")
_SHORTEST = 6
"""Characters of a value that is looked for in texts; shorter ones stand in words that have nothing to do with it."""


def is_secret(variable: str) -> bool:
    """Tell by its name whether an environment variable holds a token, key or password."""
    return _SECRET.search(variable.upper()) is not None


def hide_secrets(text: str, environment: Mapping[str, str] | None = None) -> str:
    """Put the names of secret environment variables in the place of their values.

    Args:
        text: a message, which may quote what a configuration took from the environment.
        environment: None: this process's.
    """
    held = {
        value: name
        for name, value in (os.environ if environment is None else environment).items()
        if is_secret(name) and len(value) >= _SHORTEST
    }
    for value in sorted(held, key=len, reverse=True):  # one may be the beginning of another
        text = text.replace(value, f"${{oc.env:{held[value]}}}")
    return text


class HideSecrets(logging.Filter):
    """Lets a handler write every message as :func:`hide_secrets` gives it."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the message; none is held back."""
        record.msg, record.args = hide_secrets(record.getMessage()), ()
        return True
