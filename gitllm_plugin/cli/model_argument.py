"""The argument of commands that use a trained model."""

import argparse

DEFAULT = "output/demo/train/latest"


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--model`."""
    parser.add_argument(
        "--model",
        default=DEFAULT,
        metavar="FOLDER",
        help=f"a folder of `gitllm export`, or of a training run (default {DEFAULT}, which `make demo` makes)",
    )
