"""The command that compares an engine with the model that it should compute."""

from __future__ import annotations

import argparse
import json
import sys

from gitllm_plugin.cli.command import argument, command

_DIFFERS = 1


@command(
    "conform",
    "say whether an engine computes a model as it should",
    "Ask an engine questions whose answers are computed by brute force too, in float32, one at a time, without cache, "
    "padding or batch: who sees whom, positions, padding, batches, what is kept of earlier questions, several "
    "pictures, beams. Of engines that give texts alone, greedy answers are compared, to questions whose answers faults "
    "would change. The exit status is 1 where something differs.",
    argument(
        "engine",
        metavar="ENGINE",
        help="torch, transformers, llama.cpp, or the address of an endpoint like OpenAI's, such as `gitllm serve`; a "
        "key that it wants is taken from the environment variable GITLLM_API_KEY",
    ),
    argument("folder", metavar="FOLDER", help="the engine's folder; of an endpoint, the model that it serves"),
    argument(
        "--reference",
        metavar="FOLDER",
        help="for transformers and llama.cpp: the model that the folder was made of, a folder of `gitllm export` or a "
        "run",
    ),
    argument(
        "--dtype",
        default="auto",
        help="torch and transformers: of the weights (default: as they are stored); an endpoint: what it serves, "
        "float32, bfloat16, float16, q8_0 or q4_k_m (default float32)",
    ),
    argument(
        "--tolerance",
        type=float,
        metavar="SHARE",
        help="what logits may differ, as a share of the largest (default: by the weights' numbers, 1e-4 for float32)",
    ),
    argument("--json", action="store_true", help="print JSON"),
    examples="""
        gitllm conform torch my-model
        gitllm conform torch my-model --dtype bfloat16
        gitllm conform transformers my-paligemma --reference my-model
        gitllm conform llama.cpp my-gguf --reference my-model
        gitllm conform http://127.0.0.1:8000 my-model --json
    """,
)
def conform(args: argparse.Namespace) -> int:
    """Check an engine."""
    from gitllm_plugin.conform.engines.opening import check_engine, open_engine

    reference = check_engine(args.engine, args.folder, args.reference)
    from gitllm_plugin.host.open_model import open_pipeline

    original = open_pipeline(reference, dtype="float32")
    engine = open_engine(args.engine, args.folder, args.dtype, open_pipeline)
    from gitllm_plugin.conform.run import check
    from gitllm_plugin.tables import show

    report = check(engine, original, tolerance=args.tolerance, tell=_tell)
    if args.json:
        print(json.dumps(report.as_json(), indent=2))
    else:
        show(report.blocks())
    return 0 if report.conforms else _DIFFERS


def _tell(name: str, finding: object) -> None:
    if sys.stderr.isatty():
        print(f"{name}: {getattr(finding, 'status', '')}", file=sys.stderr)
