"""The commands that ask a model: one question, a description of many pictures, a file of questions.

Wrong files are told before the seconds that torch and a model take to load: hence the order of imports and checks.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gitllm_plugin.cli.command import argument, command
from gitllm_plugin.cli.models import HOST, MODEL
from gitllm_plugin.errors import ConfigError, tell

if TYPE_CHECKING:
    from gitllm_plugin.inference.asking import Decoding

_ANSWERING = (
    MODEL,
    argument("--instruction", metavar="TEXT", help="in the place of the model's usual one"),
    argument("--max-new-tokens", type=int, default=30, metavar="N", help="most tokens of an answer (default 30)"),
    argument("--num-beams", type=int, default=1, metavar="N", help="beams of the search (default 1, greedy)"),
)
_BATCH_SIZE = argument("--batch-size", type=int, default=8, metavar="N", help="questions at a time (default 8)")
_JSON = argument("--json", action="store_true", help="print JSON")
_UNANSWERED = 1
_MAX_TOLD = 10


@command(
    "ask",
    "ask a model about a picture",
    "Ask a model about a picture, or about several together where the model was trained with several.",
    argument("picture", nargs="+", metavar="PICTURE", help="a picture's file; - reads it from standard input"),
    argument("question", metavar="QUESTION", help='in quotes; "" asks for a description'),
    *_ANSWERING,
    _JSON,
    examples="""
        gitllm ask cat.jpg "what color is the cat?"                  the demonstration's model
        gitllm ask cat.jpg "" --model my-model                       describe it
        curl -s https://example.org/cat.jpg | gitllm ask - "what is this?" --model my-model --json
    """,
)
def ask(args: argparse.Namespace) -> None:
    """Answer one question."""
    if Path(args.question).is_file():
        args.parser.error(f"{args.question} is a file, and no question follows it: put the question last, in quotes")
    if folder := next((name for name in args.picture if Path(name).is_dir()), None):
        raise ConfigError(f"{folder} is a folder; `gitllm caption {folder}` describes all pictures in it")
    from gitllm_plugin.m3it.pictures import read_pixels

    pictures = [
        read_pixels(sys.stdin.buffer, "standard input") if name == "-" else read_pixels(name) for name in args.picture
    ]
    from gitllm_plugin.host.open_model import open_answering

    answer = open_answering(args.model).answer(pictures, args.question, args.instruction, _decoding(args))
    record = {"images": args.picture, "question": args.question, "answer": answer}
    print(json.dumps(record, ensure_ascii=False) if args.json else answer)


@command(
    "chat",
    "ask a model several questions about a picture",
    "Ask about a picture, or about several together, as many questions as there are lines: typed, or from a pipe. A "
    "model that was trained on conversations reads each behind those before it and their answers, exactly as in "
    "training; another one is asked each by itself. An empty line ends.",
    argument("picture", nargs="+", metavar="PICTURE", help="a picture's file"),
    *_ANSWERING,
    argument("--json", action="store_true", help="print an object a line: question and answer"),
    examples="""
        gitllm chat cat.jpg --model my-model
        printf 'what is it?\\nwhat color?\\n' | gitllm chat cat.jpg --model my-model --json
    """,
)
def chat(args: argparse.Namespace) -> None:
    """Answer lines of standard input."""
    from gitllm_plugin.m3it.pictures import read_pixels

    pictures = [read_pixels(name) for name in args.picture]
    from gitllm_plugin.host.open_model import open_answering

    engine, decoding, turns = open_answering(args.model), _decoding(args), ()
    if not engine.conversations:
        print("this model was trained on single questions: each is asked by itself", file=sys.stderr)
    while question := _next_question():
        before = turns if engine.conversations else ()
        answer = engine.answer(pictures, question, args.instruction, decoding, before)
        record = {"question": question, "answer": answer}
        print(json.dumps(record, ensure_ascii=False) if args.json else answer, flush=True)
        turns = (*turns, (question, answer))


def _next_question() -> str:
    """Read a line; where it is typed, behind a mark."""
    if sys.stdin.isatty():
        print("> ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip()


@command(
    "caption",
    "describe pictures",
    "Describe pictures, in batches. A picture that cannot be read is told, and the others go on; the exit status is 1 "
    "then. With --out a new start after an interruption goes on where it was.",
    argument("paths", nargs="+", metavar="PATH", help="files, folders or patterns; - reads names from standard input"),
    argument("--out", metavar="FILE", help="write .jsonl or .csv (image, caption or error), whole when all is done"),
    *_ANSWERING,
    _BATCH_SIZE,
    _JSON,
    examples="""
        gitllm caption cat.jpg dog.png --model my-model
        gitllm caption pictures/ --out captions.csv --model my-model
        gitllm caption 'pictures/**/*.jpg' --json --model my-model > captions.jsonl
    """,
)
def caption(args: argparse.Namespace) -> int:
    """Describe pictures."""
    from gitllm_plugin.inference.pictures import list_pictures

    given = [line for path in args.paths for line in (sys.stdin.read().splitlines() if path == "-" else [path])]
    names = list_pictures(given, tell=lambda note: tell(f"note: {note}"))
    return _run(
        args,
        rows=({"image": name} for name in names),
        folder=Path(),
        total=len(names),
        answer="caption",
        output=None if args.out is None else Path(args.out),
        show=_print_json if args.json else _print_caption,
        input={"images": names},
        reads=[Path(name) for name in names],
    )


@command(
    "predict",
    "answer a file of questions",
    'Answer rows of JSON, {"image": "cat.jpg", "question": "what is it?"}, in batches; rows of one picture that follow '
    "each other read it once. What is written has all rows in their order, each with its answer, or an error; the exit "
    "status is 1 where there is one. With a file as output a new start after an interruption goes on where it was.",
    argument(
        "--input",
        required=True,
        metavar="FILE",
        help="JSONL, or - for standard input; pictures' paths are relative to the file's folder",
    ),
    argument("--output", required=True, metavar="FILE", help=".jsonl or .csv, or - for standard output"),
    *_ANSWERING,
    _BATCH_SIZE,
    examples="""
        gitllm predict --input rows.jsonl --output answers.jsonl --model my-model
        cat rows.jsonl | gitllm predict --input - --output - --model my-model
    """,
)
def predict(args: argparse.Namespace) -> int:
    """Answer rows."""
    from gitllm_plugin.common.checksums import sum_of_file
    from gitllm_plugin.common.file_faults import check_readable
    from gitllm_plugin.inference.questions import count_rows, read_rows

    path = Path(args.input).expanduser()
    if args.input != "-" and not path.is_file():
        raise ConfigError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; name a file of JSON lines")
    if args.input != "-":
        check_readable(path)
    with sys.stdin.buffer if args.input == "-" else open(path, "rb") as lines:
        is_file = lines is not sys.stdin.buffer
        return _run(
            args,
            rows=read_rows(lines),
            folder=path.parent if is_file else Path(),
            total=count_rows(path) if is_file else None,
            answer="answer",
            output=None if args.output == "-" else Path(args.output),
            show=_print_json,
            # Of a pipe nobody can say whether the next start is given the same.
            input={"input": path.name, "sum": sum_of_file(path)} if is_file else None,
            reads=[path] if is_file else [],
        )


@command(
    "serve",
    "serve a model to OpenAI's clients",
    "Serve a model at /v1/chat/completions, for OpenAI's clients and what speaks as they do: pictures as data URIs, "
    "streaming, batches of what waits. Requests of pages and names of other hosts are refused. A key that requests have"
    " to bring is taken from the environment variable GITLLM_API_KEY.",
    MODEL,
    HOST,
    argument("--port", default="8000", help="default 8000; 0 for a free one"),
    _BATCH_SIZE,
    argument("--max-new-tokens", type=int, default=256, metavar="N", help="most tokens of an answer (default 256)"),
    argument("--files", metavar="FOLDER", help="let requests name pictures below it, as file:cat.jpg; else none"),
    examples="""
        gitllm serve --model my-model
        gitllm serve --model my-gguf --files pictures          a folder of `gitllm export --to llama.cpp`
        GITLLM_API_KEY=secret gitllm serve --model my-model --host 0.0.0.0 --port 8080
    """,
)
def serve(args: argparse.Namespace) -> None:
    """Serve the endpoint."""
    for option, value in (("--batch-size", args.batch_size), ("--max-new-tokens", args.max_new_tokens)):
        if value < 1:
            raise ConfigError(f"{option} is {value}; at least 1")
    files = None if args.files is None else Path(args.files).expanduser()
    if files is not None and not files.is_dir():
        raise ConfigError(f"--files is {files}, which is no folder")
    from gitllm_plugin.common.listening import bind
    from gitllm_plugin.serving.server import check_installed

    check_installed()
    taken = bind(args.host, args.port)
    from gitllm_plugin.host.open_model import open_answering

    engine = open_answering(args.model)
    from gitllm_plugin.serving.messages import Limits
    from gitllm_plugin.serving.server import serve

    limits = Limits(batch_size=args.batch_size, new_tokens=args.max_new_tokens, files=files)
    serve(engine, args.model, args.host, taken, os.environ.get("GITLLM_API_KEY") or None, limits)


def _run(args: argparse.Namespace, **job: Any) -> int:
    from gitllm_plugin.host.open_model import open_answering
    from gitllm_plugin.inference.job import Job, run_job

    outcome = run_job(Job(**job), args.model, open_answering, args.instruction, _decoding(args), args.batch_size)
    for error in outcome.errors[:_MAX_TOLD]:
        tell(f"not answered: {error}")
    failed = f'; {len(outcome.errors):,} could not be, see "error" in what was written' if outcome.errors else ""
    written = f"written: {job['output']}: " if job["output"] else ""
    print(f"{written}{outcome.answered:,} answered{failed}", file=sys.stderr)
    return _UNANSWERED if outcome.errors else 0


def _decoding(args: argparse.Namespace) -> Decoding:
    from gitllm_plugin.inference.asking import Decoding

    return Decoding(max_new_tokens=args.max_new_tokens, num_beams=args.num_beams)


def _print_json(record: dict[str, Any]) -> None:
    print(json.dumps(record, ensure_ascii=False), flush=True)


def _print_caption(record: dict[str, Any]) -> None:
    if "caption" in record:
        print(f"{record['image']}: {record['caption']}", flush=True)
