"""Pictures of things from beginning to end: ``python -m examples.things``, from the checkout's root."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from examples.easyvqa.commands import exit_status, run_module
from examples.easyvqa.errors import DemoError
from examples.easyvqa.paths import Cache
from examples.easyvqa.runs import newest_run
from examples.things.paths import ENCODER, PROJECTION
from gitllm_plugin.common.run_files import LATEST_RUN

CONFIG = Path("projects/git_llm/train/things.yaml")
OUTPUT = Path("output/things")
LAST = "checkpoint_latest.pth"
ALIGNED = "aligned"
_KEEP_MEMORY = {
    "GLIBC_TUNABLES": f"glibc.malloc.mmap_threshold={2**30}:glibc.malloc.trim_threshold={2**32}:"
    "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"
}
"""For glibc (2.36), which gives large activations back to the system at once (the encoder's training: 27 s of processor
time in the place of 42 for 20 steps), and leaves small pieces between large ones, so that room for the next is searched
for longer and longer (the language model's: 1.55 s a step after 450 steps, with this 1.28)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Fetch, train, score and write the page, each unless it was done.

    Returns:
        Exit status: 0 done, 1 after an error that was printed, 130 interrupted.
    """
    parser = argparse.ArgumentParser(
        prog="python -m examples.things",
        description="Train GIT-LLM on pictures of things, and score it on things it never saw. Finished steps are "
        "skipped; an interrupted training goes on.",
    )
    parser.add_argument("--data-only", action="store_true", help="fetch pictures and make rows, and end there")
    arguments = parser.parse_args(argv)
    return exit_status(lambda: run(Cache.from_environment(), OUTPUT, arguments.data_only))


def run(cache: Cache, output: Path, data_only: bool = False) -> None:
    """Run the steps.

    Args:
        cache: where weights, packages and rows are kept.
        output: the folder of runs, answers and page.
        data_only: whether to end with the rows.

    Raises:
        DemoError: a step cannot be done.
    """
    if not CONFIG.is_file():
        raise DemoError(f"there is no {CONFIG} in {Path.cwd()}; run this from the checkout's root")
    rows = cache.root / "things" / "rows"
    if not rows.is_dir():
        _need_resvg()
        from examples.things.data import make_data

        print("[1/4] Pictures and rows", flush=True)
        make_data(cache.root / "things", rows)
    if data_only:
        print(f"rows: {rows}")
        return
    _need_models(cache)
    aligned = (output / ALIGNED).resolve()  # a run's configuration names it, wherever the run is asked from
    if not aligned.is_dir():
        print("[2/4] Image encoder and projection", flush=True)
        run_module(["examples.things.align", str(CONFIG), str(rows), str(aligned)], cache, _KEEP_MEMORY)
    print("[3/4] Training", flush=True)
    training = _train(cache, output / "train", aligned)
    print("[4/4] Scores", flush=True)
    from examples.things.page import write_page
    from examples.things.scores import score_tests
    from gitllm_plugin.host.open_model import open_pipeline

    pipeline = open_pipeline(training)
    page = output / training.name
    shown = write_page(score_tests(pipeline, rows, page), rows, page, pipeline)
    print(f"\n{shown}\n\npage: {page}\nask it: gitllm demo --model {training}")


def _need_models(cache: Cache) -> None:
    if not (cache.language_model.is_dir() and cache.image_encoder.is_dir()):
        raise DemoError("the models are not on this machine; `make demo` fetches them")


def _train(cache: Cache, folder: Path, aligned: Path) -> Path:
    """Train, go on with a training that was interrupted, or give the one that is finished."""
    done = folder / "done"
    if not done.is_file():
        options = [
            f"model.image_encoder={aligned / ENCODER}",
            "model.load_finetuned=true",
            f"model.finetuned={aligned / PROJECTION}",
        ]
        if any(folder.glob(f"*/{LAST}")):
            options.append("run.resume_ckpt_path=auto")
        run_module(["gitllm_plugin", "train", str(CONFIG), "--options", *options], cache, _KEEP_MEMORY)
        done.write_text(newest_run(folder, LATEST_RUN, LAST).name, encoding="utf-8")
    return folder / done.read_text(encoding="utf-8")


def _need_resvg() -> None:
    try:
        import resvg_py  # noqa: F401 - asked for before anything is fetched
    except ImportError as error:
        raise DemoError("drawings are drawn by resvg: pip install -e '.[things]'") from error


if __name__ == "__main__":
    sys.exit(main())
