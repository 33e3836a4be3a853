"""The arguments of LAVIS's own scripts, shared by `gitllm train` and `gitllm evaluate`."""

import argparse


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--cfg-path` and `--options`."""
    parser.add_argument("--cfg-path", required=True, metavar="FILE", help="YAML file")
    parser.add_argument(
        "--options",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="override settings of the file, such as run.max_epoch=2 model.model_type=tiny_opt",
    )
