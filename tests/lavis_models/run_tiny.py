"""Runs a script of the host's with LAVIS's sizes made tiny: ``python -m tests.lavis_models.run_tiny SCRIPT ...``."""

import runpy
import sys

import gitllm_plugin


def main() -> None:
    """Run the script that is named, with the arguments after it."""
    gitllm_plugin.register()
    from tests.lavis_models import sizes

    sys.argv = sys.argv[1:]
    with sizes.tiny():
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
