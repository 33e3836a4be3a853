"""Fine-tune on a table of pictures, questions and answers, or on a folder, and export the result:

python examples/finetune_on_csv.py mine.csv my-model --language-model path/or/name --image-encoder path/or/name
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from gitllm_plugin.common.files import check_new_folder
from gitllm_plugin.errors import exit_status
from gitllm_plugin.host.export import export_run
from gitllm_plugin.host.launch import train
from gitllm_plugin.m3it.from_table import FromTable, convert_table


def main(argv: Sequence[str] | None = None) -> int:
    """Table to rows, rows to a run, run to a folder."""
    parser = argparse.ArgumentParser(description="Fine-tune on a table of pictures, questions and answers.")
    parser.add_argument(
        "table", help="CSV, TSV, JSONL or parquet with image, answer and, optionally, question; or a folder"
    )
    parser.add_argument("target", help="folder to make")
    parser.add_argument("--language-model", default="tiny:llama", help="default: a random one, to try the script")
    parser.add_argument("--image-encoder", default="tiny:clip")
    parser.add_argument("--image-size", type=int, default=32, help="the encoder's, such as 224")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--work", default="output/finetune", help="folder of rows and runs")
    args = parser.parse_args(argv)

    check_new_folder(args.target)  # not after the training
    work = Path(args.work)
    splits = convert_table(args.table, work / "data", FromTable(val=0.1), tell=print)
    config = OmegaConf.create(
        {
            "model": {
                "arch": "git_llm",
                "model_type": "tiny_llama",
                "language_model": args.language_model,
                "image_encoder": args.image_encoder,
                "trainable": "proj+lora",
                "lora": {"rank": 16, "alpha": 32},
            },
            "datasets": {
                "m3it": {
                    "vis_processor": {kind: {"image_size": args.image_size} for kind in ("train", "eval")},
                    "build_info": {
                        "annotations": {split: {"storage": str(work / "data" / f"{split}.jsonl")} for split in splits}
                    },
                }
            },
            "run": {
                "task": "m3it",
                "runner": "git_llm",
                "output_dir": str(work / "runs"),
                "max_epoch": args.epochs,
                "init_lr": 2e-4,
                "warmup_steps": 20,
                "batch_size_train": 8,
                "train_splits": ["train"],
                "valid_splits": ["val"] if "val" in splits else [],
            },
        }
    )
    path = work / "config.yaml"
    OmegaConf.save(config, path)
    train(path)
    export_run(work / "runs" / "latest", args.target)
    print(f"written: {args.target}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
