"""Fine-tune on a table of pictures, questions and answers, or on a folder, and export the result:

python examples/finetune_on_csv.py mine.csv my-model --language-model path/or/name --image-encoder path/or/name
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gitllm_plugin.common.files import check_new_folder
from gitllm_plugin.errors import exit_status
from gitllm_plugin.host.export import export_run
from gitllm_plugin.host.launch import train
from gitllm_plugin.host.own_data import write_config


def main(argv: Sequence[str] | None = None) -> int:
    """Table to rows and a configuration, these to a run, the run to a folder."""
    parser = argparse.ArgumentParser(description="Fine-tune on a table of pictures, questions and answers.")
    parser.add_argument(
        "table", help="CSV, TSV, JSONL or parquet with image, answer and, optionally, question; or a folder"
    )
    parser.add_argument("target", help="folder to make")
    parser.add_argument("--language-model", default="tiny:llama", help="default: a random one, to try the script")
    parser.add_argument("--image-encoder", default="tiny:clip")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--work", default="output/finetune", help="folder of rows, configuration and runs")
    args = parser.parse_args(argv)

    check_new_folder(args.target)  # not after the training
    written = write_config(args.table, args.language_model, args.image_encoder, args.work, tell=print)
    train(written.config, [f"run.max_epoch={args.epochs}"])
    export_run(Path(args.work) / "runs" / "latest", args.target)
    print(f"written: {args.target}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
