"""The commands about a model: what it consists of, its folders, and what it answers.

A wrong path is told before the seconds that torch and a model take to load: hence the order of imports and checks.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from gitllm_plugin.cli.command import JSON, argument, command
from gitllm_plugin.cli.runs import CONFIG

if TYPE_CHECKING:
    from gitllm_plugin.tables import Block

_DEMO_MODEL = "output/demo/train/latest"
MODEL = argument(
    "--model",
    default=_DEMO_MODEL,
    metavar="FOLDER",
    help=f"a folder of `gitllm export`, or of a training run (default {_DEMO_MODEL}, which `make demo` makes)",
)
HOST = argument("--host", default="127.0.0.1", metavar="ADDRESS", help="default 127.0.0.1: this machine alone")


@command(
    "parameters",
    "list a model's parameters: shape, count, what is trained",
    "Build the model of a configuration, or of a run's folder, and list its parameters, layers of one shape together.",
    *CONFIG,
    JSON,
    examples="""
        gitllm parameters --cfg-path projects/git_llm/train/demo_easyvqa.yaml
        gitllm parameters my.yaml --options model.trainable=proj+lora+vit
        gitllm parameters output/demo/train/latest
    """,
)
def parameters(args: argparse.Namespace) -> None:
    """List parameters."""
    from gitllm_plugin.host.launch import list_parameters
    from gitllm_plugin.tables import show

    show(list_parameters(args.cfg_path, args.options), args.json)


@command(
    "export",
    "write a training run's model as a folder that GitLLM.from_pretrained reads",
    "Write a training run's model as a folder that GitLLM.from_pretrained reads, or as transformers' own class.",
    argument("run", help="a run's folder (its best weights) or one of its checkpoints"),
    argument("target", help="folder to make"),
    argument("--merge", action="store_true", help="add LoRA to the language model's weights"),
    argument("--without-base", action="store_true", help="name the frozen parts instead of writing them"),
    argument(
        "--to",
        choices=("gitllm", "transformers", "llama.cpp"),
        default="gitllm",
        help="who is to open it: this package (default); transformers alone, which takes models of "
        "model.projection=linear; or llama.cpp, for answers without torch",
    ),
    argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of frozen weights, and of those that LoRA is merged into; else as the run held them",
    ),
    argument("--quantize", choices=("q8_0", "q4_k_m"), help="with --to llama.cpp: weights in 8 or 4 bits"),
    argument("--push", metavar="USER/NAME", help="upload the folder to the model hub too; a new repository is private"),
    examples="""
        gitllm export output/demo/train/latest my-model                  loads offline: weights, tokenizer, processor
        gitllm export output/demo/train/latest my-adapter --without-base  a few megabytes: projection and LoRA
        gitllm export output/demo/train/latest my-model --merge           LoRA added to the weights
        gitllm export output/my-run my-paligemma --to transformers        a class of transformers' own
        gitllm export output/my-run my-paligemma --to transformers --dtype float32      its LoRA merged without rounding
        gitllm export output/demo/train/latest my-gguf --to llama.cpp --quantize q8_0
    """,
)
def export(args: argparse.Namespace) -> None:
    """Export a run's model."""
    if args.to == "llama.cpp":
        _export_to_llama_cpp(args)
        return
    if args.quantize is not None:
        args.parser.error("--quantize goes with --to llama.cpp")
    from gitllm_plugin.host.export import export_run
    from gitllm_plugin.host.push import check_repository, push_folder

    if args.push:
        check_repository(args.push)
    export_run(args.run, args.target, merge=args.merge, with_base=not args.without_base, to=args.to, dtype=args.dtype)
    print(f"written: {args.target}")
    if args.push:
        print(f"uploaded: {push_folder(args.target, args.push)}")


def _export_to_llama_cpp(args: argparse.Namespace) -> None:
    if args.without_base:
        args.parser.error("--without-base does not go with --to llama.cpp, which has no other place for the base")
    if args.dtype:
        args.parser.error("--dtype does not go with --to llama.cpp; give --quantize, or neither for float32")
    if args.push:
        args.parser.error("--push does not go with --to llama.cpp: the hub's files of this package are others")
    from gitllm_plugin.common.files import check_new_folder

    check_new_folder(args.target)
    from gitllm_plugin.llama_cpp.folder import check_packages

    check_packages()
    from gitllm_plugin.host.open_model import open_pipeline
    from gitllm_plugin.llama_cpp.export import write_llama_folder

    write_llama_folder(open_pipeline(args.run, dtype="float32"), args.target, args.quantize)
    print(f"written: {args.target}")


@command(
    "merge",
    "add a folder's LoRA adapter to its language model",
    "Add a folder's LoRA adapter to its language model: a plain model with the same answers, faster. The model must "
    "fit into memory: as it is stored, or in float32 where --dtype is another or weights of several dtypes are stored.",
    argument("source", help="folder with an adapter, or a training run"),
    argument("target", help="folder to make"),
    argument("--dtype", help="of what is written: float32, bfloat16 or float16; else as it was"),
    examples="""
        gitllm merge exported-folder merged-folder
        gitllm merge output/my-run merged-folder      as `gitllm export output/my-run merged-folder --merge`
    """,
)
def merge(args: argparse.Namespace) -> None:
    """Merge LoRA."""
    from gitllm_plugin.common.files import check_new_folder

    check_new_folder(args.target)
    from gitllm_plugin.host.export import export_run, is_run

    if is_run(args.source):
        export_run(args.source, args.target, merge=True, dtype=args.dtype)
    else:
        from gitllm_plugin.modeling.build import merge_folder

        merge_folder(args.source, args.target, args.dtype)
    print(f"written: {args.target}")


@command(
    "convert-checkpoint",
    "turn a checkpoint of the published GIT-LLM implementation into a folder of this one",
    "Turn a checkpoint of the published GIT-LLM implementation (config.json with safetensors or .bin shards) "
    "into a folder that GitLLM.from_pretrained reads. LoRA is merged.",
    argument("source", help="folder of the published checkpoint"),
    argument("target", help="folder to make"),
    argument("--lora-alpha", type=float, help="of unmerged LoRA, where the configuration does not say it"),
    argument("--template", help="of its prompts: article (default); heron for heron's, questions without instruction"),
    examples="""
        gitllm convert-checkpoint heron-chat-git-Llama-2-7b-v0 my-folder --template heron
        gitllm convert-checkpoint run-with-unmerged-lora my-folder --lora-alpha 32
    """,
)
def convert_checkpoint(args: argparse.Namespace) -> None:
    """Convert a published checkpoint."""
    from gitllm_plugin.common.files import check_new_folder

    check_new_folder(args.target)
    from gitllm_plugin.m3it.prompts import settings_of_template

    settings = settings_of_template(args.template or "article")
    from gitllm_plugin.modeling.published import convert_published

    convert_published(args.source, args.target, args.lora_alpha, settings)
    print(f"written: {args.target}")


@command(
    "demo",
    "serve a page on this machine to try a model on pictures",
    "Serve a page on 127.0.0.1: drop a picture, ask, see the answer and where it looks.",
    MODEL,
    HOST,
    argument("--port", help="default: the first free one from 7860 on; 0: any free one"),
    argument("--open", action="store_true", help="open the page in the browser"),
    examples="""
        gitllm demo                            the demonstration's model
        gitllm demo --model my-model --port 8000 --open
    """,
)
def demo(args: argparse.Namespace) -> None:
    """Serve the page."""
    from gitllm_plugin.web.server import check_installed, serve, take_address

    check_installed()
    taken = take_address(args.host, args.port)
    from gitllm_plugin.host.examples import examples_of
    from gitllm_plugin.host.open_model import open_answering

    serve(open_answering(args.model), args.model, args.host, taken, examples_of(args.model), args.open)


@command(
    "words",
    "show which words a model's image vectors are nearest to",
    "Compare the projected image vectors of a picture with the language model's token embeddings, by cosine "
    "similarity and by dot product; or, over many pictures, say whether they land on words of the captions.",
    argument("image", nargs="?", metavar="IMAGE", help="a picture's file"),
    argument(
        "--images", metavar="PATH", help="statistics: JSONL of M3IT rows, or a folder of pictures with .txt beside them"
    ),
    MODEL,
    argument("--before-training", action="store_true", help="the run's model as it was before training"),
    argument("--top-k", type=int, default=5, metavar="K", help="words a patch (default 5)"),
    argument("--limit", type=int, default=200, metavar="N", help="most pictures of --images (default 200)"),
    argument("--out", default="output/words", metavar="FOLDER", help="where to write (default output/words)"),
    JSON,
    examples="""
        gitllm words cat.jpg                                          the demonstration's model
        gitllm words cat.jpg --model my-model --top-k 10
        gitllm words --images 'data/test/*.jsonl' --model my-model    statistics over many pictures
        gitllm words --images pictures/ --model output/my-run/latest --before-training
    """,
)
def words(args: argparse.Namespace) -> None:
    """Explain one picture, or many."""
    if (args.image is None) == (args.images is None):
        args.parser.error("give either IMAGE or --images")
    from gitllm_plugin.common.files import check_writable

    check_writable(args.out)
    blocks, files = _explain_one(args) if args.images is None else _explain_many(args)
    from gitllm_plugin.tables import show

    show([*blocks, "\n".join(f"written: {file}" for file in files)], args.json)


def _explain_one(args: argparse.Namespace) -> tuple[list[Block], list[Path]]:
    from gitllm_plugin.host.open_model import open_pipeline
    from gitllm_plugin.m3it.pictures import open_picture

    picture = open_picture(args.image)
    pipeline = open_pipeline(args.model, trained=not args.before_training)
    from gitllm_plugin.words.run import explain_picture

    nearest, files = explain_picture(pipeline, picture, Path(args.image).stem, Path(args.out), args.top_k)
    counts = {measure: nearest.counts(measure)[:10] for measure in ("cosine", "dot")}
    told = [f"nearest by {name}: " + ", ".join(f"{t.strip()} {n}" for t, n in each) for name, each in counts.items()]
    return ["\n".join(told)], files


def _explain_many(args: argparse.Namespace) -> tuple[list[Block], list[Path]]:
    from gitllm_plugin.host.open_model import open_pipeline
    from gitllm_plugin.words.collection import check_collection

    check_collection(args.images)
    pipeline = open_pipeline(args.model, trained=not args.before_training)
    from gitllm_plugin.words.run import explain_pictures

    return explain_pictures(pipeline, args.images, Path(args.out), args.limit)
