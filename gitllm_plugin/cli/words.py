"""`gitllm words`."""

import argparse
from pathlib import Path

from gitllm_plugin.cli.model_argument import add_model_argument

_EXAMPLES = """\
examples:
  gitllm words cat.jpg                                          the demonstration's model
  gitllm words cat.jpg --model my-model --top-k 10
  gitllm words --images 'data/test/*.jsonl' --model my-model    statistics over many pictures
  gitllm words --images pictures/ --model output/my-run/latest --before-training
"""


def add_parser(subparsers) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "words",
        help="show which words a model's image vectors are nearest to",
        description=(
            "Compare the projected image vectors of a picture with the language model's token embeddings, by cosine "
            "similarity and by dot product; or, over many pictures, say whether they land on words of the captions."
        ),
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("image", nargs="?", metavar="IMAGE", help="a picture's file")
    parser.add_argument(
        "--images", metavar="PATH", help="statistics: JSONL of M3IT rows, or a folder of pictures with .txt beside them"
    )
    add_model_argument(parser)
    parser.add_argument("--before-training", action="store_true", help="the run's model as it was before training")
    parser.add_argument("--top-k", type=int, default=5, metavar="K", help="words a patch (default 5)")
    parser.add_argument("--limit", type=int, default=200, metavar="N", help="most pictures of --images (default 200)")
    parser.add_argument("--out", default="output/words", metavar="FOLDER", help="where to write (default output/words)")
    parser.set_defaults(call=_call, parser=parser)


def _call(args: argparse.Namespace) -> int:
    if (args.image is None) == (args.images is None):
        args.parser.error("give either IMAGE or --images")
    files = _explain_one(args) if args.images is None else _explain_many(args)
    print("\n".join(f"written: {file}" for file in files))
    return 0


# A wrong name is told before the seconds that torch and the model take.


def _explain_one(args: argparse.Namespace) -> list[Path]:
    from gitllm_plugin.host.open_model import open_pipeline
    from gitllm_plugin.inference.pictures import open_picture

    picture = open_picture(args.image)
    pipeline = open_pipeline(args.model, trained=not args.before_training)
    from gitllm_plugin.words.run import explain_picture

    words, files = explain_picture(pipeline, picture, Path(args.image).stem, Path(args.out), args.top_k)
    for measure in ("cosine", "dot"):
        print(f"nearest by {measure}: " + ", ".join(f"{t.strip()} {n}" for t, n in words.counts(measure)[:10]))
    return files


def _explain_many(args: argparse.Namespace) -> list[Path]:
    from gitllm_plugin.host.open_model import open_pipeline
    from gitllm_plugin.words.collection import check_collection

    check_collection(args.images)
    pipeline = open_pipeline(args.model, trained=not args.before_training)
    from gitllm_plugin.tables import show
    from gitllm_plugin.words.run import explain_pictures

    blocks, files = explain_pictures(pipeline, args.images, Path(args.out), args.limit)
    show(blocks)
    return files
