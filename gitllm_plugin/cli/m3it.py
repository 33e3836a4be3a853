"""The commands about M3IT: what there is, what was downloaded, shards, features, and one's own pictures in its form."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from gitllm_plugin.cli.command import JSON, Command, OneOf, argument, command
from gitllm_plugin.cli.runs import CONFIG, OPTIONS
from gitllm_plugin.common.processes import usable_cpus
from gitllm_plugin.errors import tell

_SPLITS = ("train", "val", "test")
_TREE = (
    argument("root", metavar="ROOT", help="folder that M3IT was downloaded to, or that from-csv made"),
    OneOf(
        (
            argument(
                "--preset",
                help="a mixture of `gitllm m3it list` (default: own rows that are there, else core, the paper's 40)",
            ),
            argument("--configs", nargs="+", metavar="NAME", help="configurations, of the catalog or your own"),
        )
    ),
    argument("--splits", nargs="+", choices=_SPLITS, default=_SPLITS, metavar="SPLIT", help="default: all"),
    argument("--allow-text-only", action="store_true", help="rows without an image are examples"),
    argument("--workers", type=int, metavar="N", help="processes (default: one per CPU)"),
)
"""Which files of a tree are read, and by how many processes."""


@command(
    "list",
    "the catalog: rows, metrics, forms, licences; and the presets",
    "List the configurations of M3IT: rows, metrics, forms, licences; and the presets.",
    argument("--preset", help="only what belongs to it"),
    JSON,
)
def list_catalog(args: argparse.Namespace) -> None:
    """List the catalog."""
    from gitllm_plugin.m3it.report import describe_catalog
    from gitllm_plugin.tables import show

    show(describe_catalog(args.preset), args.json)


@command(
    "check",
    "read every row of a tree: what is missing, what is broken, counts against the catalog",
    "Read every row of a tree. The exit status is 1 if anything is missing or broken. What was found "
    "is kept for training from the tree, which then need not read it all again.",
    *_TREE,
    argument(
        "--decode", action="store_true", help="decode images to the last pixel (default: read their headers only)"
    ),
    argument("--report", metavar="FILE", help="write a JSON report with every problem's file and line"),
    argument(
        "--cfg-path", metavar="FILE", help="of a training: also name texts that do not fit into its model's context"
    ),
    OPTIONS,
    JSON,
    examples="""
        gitllm m3it check ~/M3IT --preset article_exp3 --workers 8 --report check.json
        gitllm m3it check ~/M3IT --configs coco vqa-v2 --cfg-path my.yaml
    """,
)
def check(args: argparse.Namespace) -> int:
    """Check a tree."""
    from gitllm_plugin.common.files import check_writable
    from gitllm_plugin.m3it.check import check_tree, tree_bytes
    from gitllm_plugin.m3it.report import describe_report, write_report
    from gitllm_plugin.m3it.scan import default_index_folder
    from gitllm_plugin.tables import show

    if args.report:
        check_writable(Path(args.report).expanduser().parent)
    tree = _find_tree(args, seed=0)
    with _bar("checking") as bar:
        bar.reset(tree_bytes(tree))
        report = check_tree(
            tree,
            look="pixel" if args.decode else "header",
            workers=_workers(args),
            index_folder=default_index_folder(),
            on_progress=bar.update,
        )
    if args.cfg_path is not None:
        from gitllm_plugin.host.long_texts import find_long_texts

        report.add(find_long_texts(tree, args.cfg_path, args.options, default_index_folder()))
    # First, so that a report that cannot be written costs nobody what was found in hours.
    show(describe_report(report), args.json)
    if args.report:
        write_report(report, Path(args.report).expanduser())
    return 0 if report.is_good else 1


@command(
    "shard",
    "make webdataset shards of a tree",
    "Make webdataset shards of a tree. Killed, the same command goes on where it was; the shards have "
    "the same bytes whatever the number of processes and machines.",
    *_TREE,
    argument("out", metavar="OUT", help="folder of the shards"),
    argument("--max-size", default="512MB", help="of a shard (default 512MB)"),
    argument(
        "--resize-short-side", type=int, metavar="PIXELS", help="make larger images smaller, as JPEG of quality 95"
    ),
    argument("--seed", type=int, default=0, help="of the instruction that each text gets (default 0)"),
    argument("--allow-missing", action="store_true", help="go on without files that are not there"),
    argument("--part", metavar="I/N", help="make one of N shares; `gitllm m3it merge` joins them"),
    JSON,
)
def shard(args: argparse.Namespace) -> None:
    """Make shards, or one share of them."""
    from gitllm_plugin.errors import DataError
    from gitllm_plugin.m3it.report import describe_shards
    from gitllm_plugin.m3it.shards.make import make_shards
    from gitllm_plugin.m3it.shards.plan import Settings, parse_share, parse_size
    from gitllm_plugin.tables import show

    settings = Settings(parse_size(args.max_size), args.resize_short_side)
    share = parse_share(args.part) if args.part else (0, 1)
    tree = _find_tree(args, args.seed)
    if tree.missing and not args.allow_missing:
        raise DataError(
            "missing:\n  " + "\n  ".join(tree.missing) + "\n"
            "Download them, choose with --configs and --splits, or go on without them with --allow-missing."
        )
    out = Path(args.out).expanduser()
    with _bar("sharding") as bar:
        finished = make_shards(
            tree, out, settings, workers=_workers(args), share=share, on_start=bar.reset, on_progress=bar.update
        )
    is_part = f"part {args.part} is done; when all are: gitllm m3it merge {args.out}"
    found = [is_part] if share[1] > 1 else describe_shards(finished, out)
    show([*(f"without {missing}" for missing in tree.missing), *found], args.json)


@command(
    "merge",
    "finish shards that were made with --part",
    "Finish shards that were made with --part, once all parts are there.",
    argument("out", metavar="OUT", help="folder of the shards"),
    JSON,
)
def merge(args: argparse.Namespace) -> None:
    """Join shares."""
    from gitllm_plugin.m3it.report import describe_shards
    from gitllm_plugin.m3it.shards.make import merge
    from gitllm_plugin.tables import show

    out = Path(args.out).expanduser()
    show(describe_shards(merge(out), out), args.json)


@command(
    "features",
    "encode the images of shards once, for training with a frozen image encoder",
    "Encode the images of a configuration's shards (datasets.m3it_wds) with its model's image encoder "
    "and write bfloat16 features to build_info.features, or beside the shards. Killed, the same command goes on "
    "where it was. run.num_workers processes decode.",
    *CONFIG,
    argument("--part", metavar="I/N", help="encode one of N shares of the shards, here or on another machine"),
)
def features(args: argparse.Namespace) -> None:
    """Encode images."""
    from tqdm import tqdm

    from gitllm_plugin.host.launch import write_features
    from gitllm_plugin.m3it.shards.plan import parse_share

    share = parse_share(args.part) if args.part else (0, 1)
    with tqdm(unit=" images", desc="encoding", disable=not sys.stderr.isatty(), dynamic_ncols=True) as bar:
        print(write_features(args.cfg_path, args.options, share, on_progress=bar.update))


_OUT = argument("out", metavar="OUT", help="folder of train.jsonl, val.jsonl and test.jsonl")
_TEXT_ONLY = argument("--allow-text-only", action="store_true", help="conversations without an image are rows too")
_PLACES = argument(
    "--image-places",
    choices=("front", "text"),
    default="front",
    help="text: <image> stays where it stands, in any of the user's turns, for a model of image_places: text (front)",
)
_COLUMNS = argument(
    "--columns", nargs="+", default=[], metavar="COLUMN=NAME", help="the table's own names, as in answer=caption"
)
_HOW = (
    argument("--images", metavar="FOLDER", help="that files are relative to (default: the table's)"),
    argument("--val", type=float, default=0.0, metavar="SHARE", help="of pictures, for validation (0)"),
    argument("--test", type=float, default=0.0, metavar="SHARE", help="of pictures, for the test (0)"),
    argument("--resize-short-side", type=int, metavar="PIXELS", help="make larger pictures smaller"),
    argument("--encoding", metavar="NAME", help="of the text, such as cp1252 (default: UTF-8, or its mark's)"),
)


@command(
    "from-csv",
    "turn a table of picture files, questions and answers, or a folder of pictures, into rows",
    "Turn a table, or a folder of pictures, into M3IT's rows. Columns: image (a file) and answer; optionally "
    "question, rejected (a worse answer, beside which answer may be called chosen), instruction, id and split (train, "
    "val or test). Several files or answers in a cell: a|b, or a list in "
    "JSON and parquet. Of a folder, the answers are the .txt files beside the pictures or, if there are none, the "
    "names of the folders that the pictures lie in.",
    argument(
        "table",
        nargs="+",
        metavar="TABLE",
        help="a file that ends in .csv, .tsv, .jsonl, .json or .parquet, or a folder; several files are one table, and "
        "go into the splits that their names say",
    ),
    _OUT,
    _COLUMNS,
    *_HOW,
    examples="""
        gitllm m3it from-csv mine.csv my-data --val 0.1 --test 0.1
        gitllm m3it from-csv train.csv val.csv my-data
        gitllm m3it from-csv captions.tsv my-data --images ~/Pictures --columns image=file answer=caption
        gitllm m3it from-csv ~/Pictures/animals my-data --val 0.1
    """,
)
def from_csv(args: argparse.Namespace) -> None:
    """Convert a table."""
    from gitllm_plugin.m3it.from_table import parse_columns

    _convert(args, parse_columns(args.columns))


@command(
    "from-coco",
    "turn COCO's files of captions, or of VQA's questions and answers, into rows",
    "Turn files in COCO's form into M3IT's rows: captions (images, annotations), VQA's questions and annotations, "
    "joined by question_id, or LAVIS's lists (image, caption; image, question, answer). Files whose names say train, "
    "val or test go into these splits. In training each caption is a row; elsewhere those of a picture are the "
    "accepted answers of one.",
    argument("table", nargs="+", metavar="FILE", help="a .json; of VQA the questions and the answers, both"),
    _OUT,
    argument("--columns", nargs="+", default=[], metavar="answer=KEY", help="what `caption` is called in the files"),
    argument(
        "--images",
        metavar="FOLDER",
        help="in or below which pictures lie (default: that of the files, or the one above a folder `annotations`)",
    ),
    *_HOW[1:],
    examples="""
        gitllm m3it from-coco coco/annotations/captions_*2017.json my-data --resize-short-side 256
        gitllm m3it from-coco v2_*_questions.json v2_*_annotations.json my-vqa --images ~/coco
        gitllm m3it from-coco coco_karpathy_train.json coco_karpathy_val.json my-data --images ~/coco/images
    """,
)
def from_coco(args: argparse.Namespace) -> None:
    """Convert files in COCO's form."""
    from gitllm_plugin.m3it.from_table import parse_columns

    if others := [name for name in args.table if not name.endswith(".json")]:
        args.parser.error(f"{others[0]} does not end in .json; tables and folders are for from-csv")
    _convert(args, parse_columns(args.columns))


@command(
    "from-messages",
    "turn conversations about pictures, in JSON, into rows",
    "Turn conversations about pictures into M3IT's rows, as LLaVA's and ShareGPT's files have them (conversations, "
    "from, value) or chat endpoints (messages, role, content). Each of the assistant's turns is learnt behind those "
    "before it. Rows with two ends (prompt, chosen, rejected) are for preferences, about their last answer alone.",
    argument("table", metavar="FILE", help="a file that ends in .json or .jsonl"),
    _OUT,
    _TEXT_ONLY,
    _PLACES,
    *_HOW,
    examples="""
        gitllm m3it from-messages llava_instruct_80k.json my-data --images ~/coco/train2017 --val 0.01
        gitllm m3it from-messages chats.jsonl my-data
    """,
)
def from_messages(args: argparse.Namespace) -> None:
    """Convert conversations."""
    if not args.table.endswith((".json", ".jsonl")):
        args.parser.error(f"{args.table} does not end in .json or .jsonl; tables and folders are for from-csv")
    _convert(args, {})


@command(
    "from-dataset",
    "turn a data set of the hub, by its files or its name, into rows",
    "Turn a data set as the hub has it into M3IT's rows: parquet files, a folder that the library datasets saved, or "
    "a name, which is streamed (pip install datasets). Columns as for from-csv, or conversations as for from-messages "
    "(conversations, messages, or texts of user and assistant); images are files in the data itself. Texts are kept in "
    "memory, pictures are not.",
    argument("table", metavar="DATASET", help="a parquet file, a folder, or a name of the hub"),
    _OUT,
    argument("--split", metavar="NAME", help="read this one and deal it anew (default: each as it is called)"),
    argument("--subset", metavar="NAME", help="of a data set that has several configurations"),
    _COLUMNS,
    _TEXT_ONLY,
    _PLACES,
    *(each for each in _HOW if "--encoding" not in each.names),
    examples="""
        gitllm m3it from-dataset saved/ my-data --columns answer=caption
        gitllm m3it from-dataset HuggingFaceM4/the_cauldron my-data --subset ai2d --split train --val 0.05
    """,
)
def from_dataset(args: argparse.Namespace) -> None:
    """Convert a data set."""
    from gitllm_plugin.m3it.from_table import parse_columns

    _convert(args, parse_columns(args.columns))


def _convert(args: argparse.Namespace, columns: dict[str, str]) -> None:
    from gitllm_plugin.m3it.from_table import FromTable, convert_dataset, convert_table

    settings = FromTable(
        images=Path(args.images).expanduser() if args.images else None,
        columns=columns,
        val=args.val,
        test=args.test,
        short_side=args.resize_short_side,
        encoding=vars(args).get("encoding"),
        text_only=vars(args).get("allow_text_only", False),
        keeps_marks=vars(args).get("image_places") == "text",
        split=vars(args).get("split"),
        subset=vars(args).get("subset"),
    )
    out = Path(args.out).expanduser()
    convert = convert_dataset if "split" in args else convert_table
    counts = convert(args.table, out, settings, tell=lambda note: tell(f"note: {note}"))
    for split, rows in counts.items():
        print(f"{split}: {rows:,} rows in {out / f'{split}.jsonl'}")
    if len(counts) > 1:
        print(f"all: {sum(counts.values()):,} rows")


def _find_tree(args: argparse.Namespace, seed: int):
    from gitllm_plugin.m3it.catalog import get_preset
    from gitllm_plugin.m3it.tree import find_tree, holds_rows, own_configurations

    names, asked = args.configs, bool(args.configs or args.preset)
    if not asked:
        names = None if holds_rows(args.root) else own_configurations(args.root)
    own = not asked and names != []
    if names == [] or args.preset:
        names = [entry.name for entry in get_preset(args.preset or "core")]
    tree = find_tree(args.root, names, args.splits, seed=seed, allow_text_only=args.allow_text_only)
    # Of one's own rows, under whatever name, nobody but the owner knows what there should be.
    return replace(tree, missing=()) if own else tree


def _bar(description: str):
    from tqdm import tqdm

    hidden = not sys.stderr.isatty()
    return tqdm(total=0, unit="B", unit_scale=True, desc=description, disable=hidden, dynamic_ncols=True)


def _workers(args: argparse.Namespace) -> int:
    return usable_cpus() if args.workers is None else args.workers


m3it = Command(
    "m3it",
    "list, check and shard the M3IT data set; turn one's own pictures into its form",
    "List M3IT's configurations, check files that were downloaded, make webdataset shards of them; "
    "turn one's own pictures into M3IT's form.",
    actions=(list_catalog, check, shard, merge, features, from_csv, from_coco, from_messages, from_dataset),
    examples="""
        gitllm m3it list --preset article_exp3
        gitllm m3it check ~/M3IT --preset article_exp3 --workers 8 --report check.json
        gitllm m3it shard ~/M3IT shards --preset article_exp3 --max-size 512MB --resize-short-side 256 --workers 8
        gitllm m3it shard ~/M3IT shards --configs coco vqa-v2 --part 3/16     on each of 16 machines, then
        gitllm m3it merge shards
        gitllm m3it from-csv mine.csv my-data --val 0.1 --test 0.1
        gitllm m3it from-coco captions_train2017.json captions_val2017.json my-data --images ~/coco
        gitllm m3it from-messages chats.json my-data
    """,
)
