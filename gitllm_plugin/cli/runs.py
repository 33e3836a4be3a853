"""The commands that train, evaluate and compare."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path

from gitllm_plugin.cli.command import JSON, OneOf, argument, command
from gitllm_plugin.errors import tell

OPTIONS = argument(
    "--options",
    nargs="+",
    default=[],
    metavar="KEY=VALUE",
    help="override settings of the file, such as run.max_epoch=2 model.model_type=tiny_opt",
)
_FILE = (
    argument("cfg_path", nargs="?", default=argparse.SUPPRESS, metavar="FILE", help="YAML file"),
    argument("--cfg-path", metavar="FILE", help="the same, as LAVIS's own scripts take it"),
)
CONFIG = (OneOf(_FILE, required=True), OPTIONS)
"""A configuration, with or without the name that it has for LAVIS's own scripts."""


_DATA = argument(
    "--data",
    nargs="+",
    metavar="PICTURES",
    help="instead of a file: a folder of folders named after what their pictures show, one with a .txt beside each "
    "picture, a table, or COCO's files, as `gitllm m3it from-csv` and `from-coco` take them",
)


@command(
    "train",
    "train as a configuration file says, or on a table of pictures",
    "Train as a configuration file says: LAVIS's train.py with the plugin in it. With --data the file is written "
    "first: rows of the pictures, one in ten to choose the best epoch by, one in ten to test it on, and settings by "
    "what the models say; given again, it goes on with an interrupted run.",
    OneOf((*_FILE, _DATA), required=True),
    argument(
        "--images", metavar="FOLDER", help="with --data: that its pictures are relative to (default: the table's)"
    ),
    argument("--language-model", metavar="NAME", help="with --data: hub name or folder (default: the demonstration's)"),
    argument("--image-encoder", metavar="NAME", help="the same"),
    argument("--output", metavar="FOLDER", help="with --data: of rows, file and runs (default: output/NAME of --data)"),
    OPTIONS,
    argument(
        "--dry-run",
        action="store_true",
        help="train nothing: print the resolved configuration, the parameters, the first batch, memory and time",
    ),
    examples="""
        gitllm train projects/git_llm/train/demo_easyvqa.yaml
        gitllm train my.yaml --options run.device=cpu run.batch_size_train=8
        gitllm train my.yaml --dry-run
        gitllm train --data mine.csv
        gitllm train --data captions_train2017.json captions_val2017.json --images ~/coco
        gitllm train --data pictures/ --language-model Qwen/Qwen3-0.6B --image-encoder google/siglip2-base-patch16-224
        torchrun --nproc_per_node=2 -m gitllm_plugin train --cfg-path my.yaml
    """,
)
def train(args: argparse.Namespace) -> None:
    """Train, or say what would be trained."""
    path = args.cfg_path if args.data is None else _write_config(args)
    if args.data is None and (args.images or args.language_model or args.image_encoder or args.output):
        args.parser.error(
            "--images, --language-model, --image-encoder and --output go with --data; a file is changed by --options"
        )
    from gitllm_plugin.host import launch

    if args.dry_run:
        if described := launch.dry_run(path, args.options):
            print(described)
    else:
        launch.train(path, args.options)


def _write_config(args: argparse.Namespace) -> Path:
    """Write the configuration of --data, show it, and give its path."""
    if "RANK" in os.environ:
        args.parser.error("--data writes files: give it to one process, and what it writes to torchrun")
    from gitllm_plugin.host.own_data import DEMO, write_config

    models = (args.language_model or DEMO, args.image_encoder or DEMO)
    written = write_config(
        args.data,
        *models,
        args.output,
        tell=lambda note: tell(f"note: {note}"),
        images=Path(args.images).expanduser() if args.images else None,
    )
    rows = ", ".join(f"{count:,} rows to {split}" for split, count in written.rows.items())
    print("\n".join([f"written: {written.config}", *(f"  {line}" for line in written.choices), rows]), flush=True)
    return written.config


@command(
    "evaluate",
    "evaluate a run, or as a configuration file says",
    "Evaluate a run's trained weights (the best, else the newest), or as a configuration file says, with the runner it "
    "names. Weights that nothing has trained are an error, but with run.allow_untrained=true.",
    argument(
        "run",
        nargs="?",
        metavar="RUN",
        help="a run's folder, the folder above for its latest run, one of its checkpoints, or a YAML file",
    ),
    argument("--cfg-path", metavar="FILE", help="the YAML file; a run's own config.yaml means the run's weights"),
    OPTIONS,
    examples="""
        gitllm evaluate output/demo/train
        gitllm evaluate output/demo/train/latest --options run.test_splits=[val] run.batch_size_eval=64
        gitllm evaluate projects/git_llm/eval/demo_easyvqa.yaml
        gitllm evaluate my.yaml --options model.load_finetuned=true model.finetuned=weights.pth
    """,
)
def evaluate(args: argparse.Namespace) -> None:
    """Evaluate."""
    from gitllm_plugin.host import launch

    if (args.run is None) == (args.cfg_path is None):
        args.parser.error("give a run's folder, or a YAML file, with or without --cfg-path: one of them")
    if args.run is not None and not args.run.endswith((".yaml", ".yml")):
        launch.evaluate_run(args.run, args.options)
    else:
        launch.evaluate(args.run or args.cfg_path, args.options)


@command(
    "keys",
    "say what a key of a configuration means and may hold",
    "List the keys of configurations, with defaults, what they may hold, and what they mean.",
    argument("word", nargs="?", metavar="WORD", help="section, registered name or part of a key; without it, all"),
    JSON,
    examples="""
        gitllm keys warmup          the keys that have it in their names
        gitllm keys run             what the runner and the tasks read
        gitllm keys m3it_wds        what a data set reads
    """,
)
def keys(args: argparse.Namespace) -> None:
    """Show declarations."""
    from gitllm_plugin.host.declarations import default_of, find_keys, meaning_of
    from gitllm_plugin.tables import Table, show

    blocks = []
    for declaration, found in find_keys(args.word):
        rows = [(path, default_of(key), key.allowed, meaning_of(key)) for path, key in found]
        blocks += [declaration.title, Table(("key", "default", "allowed", "meaning"), rows)]
    show(blocks, args.json)


@command(
    "run",
    "run a script of LAVIS's, unmodified, with the plugin registered",
    "Run a script of LAVIS's, such as its train.py, unmodified, with the plugin registered.",
    argument("script", help="path of the script"),
    argument("script_args", nargs=argparse.REMAINDER, metavar="...", help="its arguments"),
    examples="""
        gitllm run ../LAVIS/train.py --cfg-path my.yaml
        gitllm run ../LAVIS/evaluate.py --cfg-path my.yaml --options run.device=cpu
        torchrun --nproc_per_node=2 -m gitllm_plugin run ../LAVIS/train.py --cfg-path my.yaml
    """,
)
def run_script(args: argparse.Namespace) -> None:
    """Run a script of LAVIS's."""
    from gitllm_plugin.host import launch

    launch.run_script(args.script, args.script_args)


@command(
    "experiment",
    "run a list of trainings, those that are missing, and compare them",
    "Run a list of trainings one after another, those that are missing, and write a table and figures.",
    argument("plan", help="YAML file with title, output_dir and runs"),
    argument("--only", nargs="+", default=[], metavar="NAME", help="runs to start (default: all)"),
    argument("--fresh", action="store_true", help="run again what is finished"),
    argument("--dry-run", action="store_true", help="print the commands, run nothing"),
    argument(
        "--processes", type=int, metavar="N", help="how many train each run, one a GPU (default: the plan's, or 1)"
    ),
    argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="overrides for every run"),
    JSON,
    examples="""
        gitllm experiment projects/git_llm/experiments/demo_exp1.yaml
        gitllm experiment projects/git_llm/experiments/exp1.yaml --only proj proj_lora
        gitllm experiment projects/git_llm/experiments/exp2.yaml --processes 4 --options run.accum_grad_iters=4
        gitllm experiment my.yaml --options run.max_iters=20 run.device=cpu
    """,
)
def experiment(args: argparse.Namespace) -> None:
    """Run an experiment, or print its commands."""
    from gitllm_plugin.common.processes import show_command
    from gitllm_plugin.experiments.commands import train_command
    from gitllm_plugin.experiments.plan import choose_runs, read_plan
    from gitllm_plugin.experiments.run import run_experiment
    from gitllm_plugin.tables import show

    plan = read_plan(args.plan, args.options, args.processes)
    if args.dry_run:
        for run in choose_runs(plan, args.only):
            print(show_command(train_command(plan, run)))
    else:
        with _all_to_stderr() if args.json else nullcontext():
            table = run_experiment(plan, args.only, args.fresh)
        show(["", table, f"report: {plan.output_dir / 'README.md'}"], args.json)


@contextmanager
def _all_to_stderr() -> Iterator[None]:
    """Let what this process and those that it starts print go to standard error, inside the block."""
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@command(
    "plot",
    "draw the losses of runs beside each other",
    "Draw the losses of runs beside each other, over optimizer steps, as PNG files.",
    argument("runs", nargs="+", metavar="RUN", help="a run's folder, or the folder above for its latest run"),
    argument("--output", type=Path, default=Path(), metavar="FOLDER", help="default: where you stand"),
    examples="""
        gitllm plot output/demo/train
        gitllm plot output/a/latest output/b/latest --output figures
    """,
)
def plot(args: argparse.Namespace) -> None:
    """Draw losses."""
    from gitllm_plugin.curves.draw import draw_runs
    from gitllm_plugin.curves.read import read_run

    for path in draw_runs([read_run(run) for run in args.runs], args.output):
        print(path)
