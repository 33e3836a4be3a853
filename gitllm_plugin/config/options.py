"""Overrides of a configuration, as the command line takes them."""

from collections.abc import Sequence


def as_assignments(options: Sequence[str]) -> list[str]:
    """``--options`` in one form: LAVIS also takes pairs, as in ``--options run.seed 1 run.device cpu``.

    Args:
        options: each ``key.subkey=value``, or keys and values in turn.

    Returns:
        Each as ``key.subkey=value``; what is neither form is given back as it is.
    """
    options = list(options)
    if len(options) % 2 == 0 and not any("=" in option for option in options):
        return [f"{key}={value}" for key, value in zip(options[::2], options[1::2], strict=True)]
    return options
