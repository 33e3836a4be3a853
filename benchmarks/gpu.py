"""Training and decoding on one GPU, from the card's own peaks down, in less than nine minutes.

``python -m benchmarks gpu``; with ``--dry-run`` on tiny shapes, on a CPU too; with ``--predict`` nothing is measured,
and the page has what an H100 and an H200 reach at most, beside columns to fill.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from benchmarks import bounds, decoding, results
from benchmarks.batches import Batch, random_batch
from benchmarks.equality import assert_equal, differences_to_the_first, largest_differences
from benchmarks.shapes import build
from benchmarks.timing import in_turns, ratio, synchronize
from benchmarks.ways import ABLATION, OURS, WAYS, Loss, training_step
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.modeling import GitLLM
from gitllm_plugin.modeling.build import use_fused_kernels

SHAPES = ("opt-350m-vit-l", "llama-2-7b", "opt-6.7b", "mpt-7b")
TINY = ("tiny-opt", "tiny-llama", "tiny-mpt")
COMPARED = ("article, padded to 128", OURS)
MFU_FORMULA = "useful MFU = 4 N * real tokens per second / measured matmul peak"
"""N: weights of the decoder's layers. 2 N forward and 2 N for the gradient of activations; frozen weights need none."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``python -m benchmarks gpu``."""
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, on whatever device there is")
    parser.add_argument(
        "--predict", action="store_true", help="measure nothing: bounds by published peaks, any machine"
    )
    parser.add_argument("--minutes", type=float, default=7, help="no part begins later; what is left out is said")
    parser.add_argument("--images", type=int, default=16, help="images of a batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=results.FOLDER)


def run(arguments: argparse.Namespace, device: str | None = None) -> None:
    """Measure, write both files after each part, print the page.

    Args:
        arguments: of the command.
        device: where to compute; None: on a GPU, or else the CPU.

    Raises:
        SystemExit: no GPU, and not a dry run.
    """
    if arguments.predict:
        path = results.write("gpu-predicted", *predicted(arguments), arguments.output)
        print(path.read_text())
        return
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cpu" and not arguments.dry_run:
        raise SystemExit("benchmarks gpu: torch finds no GPU; --dry-run goes through all steps on tiny shapes")
    ends = time.monotonic() + 60 * arguments.minutes
    name = f"gpu-{'dry-run' if arguments.dry_run else torch.cuda.get_device_name().replace(' ', '-').lower()}"
    found: dict[str, Any] = {"where": results.surroundings(), "formula": MFU_FORMULA, "left_out": []}
    found["peaks"] = peaks(device, 512 if arguments.dry_run else 8192)
    for part, measure in _parts(arguments, device, found):
        if time.monotonic() > ends:
            found["left_out"].append(part)
            continue
        found[part] = measure()
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
        path = results.write(name, found, page(found), arguments.output)
    print(path.read_text())


def _parts(
    arguments: argparse.Namespace, device: str, found: dict[str, Any]
) -> Iterable[tuple[str, Callable[[], Any]]]:
    """Say what is measured, in order of what one would miss most."""
    shapes = TINY if arguments.dry_run else SHAPES
    ablated = shapes[1]
    peak = found["peaks"]["matmul_tflops"]
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    yield "equality", lambda: [equality(name, device) for name in TINY]
    for shape in shapes:
        yield f"training {shape}", lambda shape=shape: training(shape, device, dtype, arguments, peak)
        if shape == ablated:
            yield f"ablation {shape}", lambda shape=shape: ablation(shape, device, dtype, arguments)
            yield f"decoding {shape}", lambda shape=shape: decode(shape, device, dtype, arguments)
            yield f"fused kernels {shape}", lambda shape=shape: fused(shape, device, dtype, arguments, peak)


def peaks(device: str, size: int) -> dict[str, float]:
    """Say what the device reaches: a square bf16 matrix product, and a copy (bytes read and written)."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    source = torch.empty(size * size * 4, device=device, dtype=torch.uint8)
    product = in_turns({"product": lambda: [left @ right for _ in range(10)]}, 5)["product"]
    copy = in_turns({"copy": lambda: [source.clone() for _ in range(10)]}, 5)["copy"]
    return {
        "matmul_tflops": 10 * 2 * size**3 / min(product.wall) / 1e12,
        "copy_gb_per_second": 10 * 2 * source.numel() / min(copy.wall) / 1e9,
    }


def equality(shape: str, device: str) -> dict[str, Any]:
    """Give all ways on a tiny shape in float64: equal, or nothing is timed."""
    model = build(shape, device)
    differences = largest_differences(model, {**WAYS, **ABLATION}, random_batch(model, 3, 3))
    assert_equal(differences)
    return {"shape": shape, "ways": differences}


def training(
    shape: str, device: str, dtype: torch.dtype, arguments: argparse.Namespace, peak_tflops: float
) -> dict[str, Any]:
    """One and five texts an image: the article's way and ours in turns; then the largest batch of ours."""
    model = build(shape, device, dtype)
    cases = _one_and_five_texts(model, COMPARED, arguments, peak_tflops)
    return {"cases": cases, "largest_batch": largest_batch(model, arguments)}


def fused(
    shape: str, device: str, dtype: torch.dtype, arguments: argparse.Namespace, peak_tflops: float
) -> dict[str, Any]:
    """Ours with Liger's kernels, which stay in all later models of this kind; without them, why."""
    model = build(shape, device, dtype)
    try:
        use_fused_kernels(model.language_model)
    except ConfigError as error:
        return {"cases": [], "why_not": str(error)}
    return {"cases": _one_and_five_texts(model, (OURS,), arguments, peak_tflops)}


def _one_and_five_texts(
    model: GitLLM, ways: Iterable[str], arguments: argparse.Namespace, peak_tflops: float
) -> list[dict[str, Any]]:
    cases = []
    for texts in (1, 5):
        case = compare(model, ways, max(1, arguments.images // texts), texts, arguments.rounds)
        for way in case["ways"].values():
            way["useful_mfu"] = 4 * case["decoder_weights"] * way["real_tokens_per_second"] / (peak_tflops * 1e12)
        cases.append(case)
    return cases


def compare(model: GitLLM, ways: Iterable[str], images: int, texts_per_image: int, rounds: int) -> dict[str, Any]:
    """Time ways on one batch; a way that runs out of memory is named with no times."""
    batch = random_batch(model, images, texts_per_image)
    image_tokens = model.image_encoder.num_tokens(*batch.pixel_values.shape[-2:])
    real_tokens = batch.num_real_tokens(image_tokens)
    all_ways = {**WAYS, **ABLATION}
    # Each way's memory is measured while nothing of another is there.
    peaks = {name: _peak_gib(_step(model, all_ways[name](model), batch)) for name in ways}
    fitting = {name: all_ways[name](model) for name, peak in peaks.items() if peak is not None}
    with _autocast(model):
        measured: dict[str, dict[str, Any]] = differences_to_the_first(model, fitting, batch)
    times = in_turns({name: _step(model, loss, batch) for name, loss in fitting.items()}, rounds)
    for name, taken in times.items():
        seconds = statistics.median(taken.wall)
        measured[name] |= {
            "peak_gib": peaks[name],
            "seconds": list(taken.wall),
            "images_per_second": images / seconds,
            "samples_per_second": batch.num_texts / seconds,
            "real_tokens_per_second": real_tokens / seconds,
            "ours_is_faster": str(ratio(taken.wall, times[OURS].wall)) if OURS in times else "-",
        }
    return {
        "images": images,
        "texts_per_image": texts_per_image,
        "real_tokens": real_tokens,
        "bounds": bounds.cells(bounds.training_work(model, batch), images),
        "decoder_weights": bounds.decoder_weights(model),
        "attention_path": model.decoder.attention_path,
        "ways": measured,
        "out_of_memory": [name for name, peak in peaks.items() if peak is None],
    }


def _step(model: GitLLM, loss: Loss, batch: Batch) -> Callable[[], object]:
    def in_bf16(batch: Batch) -> Any:
        with _autocast(model):
            return loss(batch)

    step = training_step(model, in_bf16)
    return lambda: step(batch)


def _autocast(model: GitLLM) -> torch.autocast:
    device = model.projection.weight.device.type
    return torch.autocast(device, dtype=torch.bfloat16, enabled=device != "cpu")


def _peak_gib(step: Callable[[], object]) -> float | None:
    """Peak memory of the device in a step but the first, with weights; None where it is too little; 0 on a CPU."""
    if not torch.cuda.is_available():
        step()
        return 0.0
    gc.collect()
    torch.cuda.empty_cache()
    try:
        step()  # makes what stays: the optimizer's state, features
        torch.cuda.reset_peak_memory_stats()
        step()
        synchronize()
    except torch.cuda.OutOfMemoryError:
        gc.collect()
        return None
    return torch.cuda.max_memory_allocated() / 2**30


def largest_batch(model: GitLLM, arguments: argparse.Namespace) -> int:
    """Images with one text each that a step of ours has room for, by doubling; a dry run doubles once."""
    images, limit = arguments.images, arguments.images * 2 if arguments.dry_run else 4096
    while images < limit:
        if _peak_gib(_step(model, WAYS[OURS](model), random_batch(model, 2 * images, 1))) is None:
            break
        images *= 2
    return images


def ablation(shape: str, device: str, dtype: torch.dtype, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Ours with one thing undone at a time."""
    model = build(shape, device, dtype)
    return [
        compare(model, (*ABLATION, OURS), max(1, arguments.images // texts), texts, arguments.rounds)
        for texts in (1, 5)
    ]


def decode(shape: str, device: str, dtype: torch.dtype, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Batches of 1 and 32: eager, static cache, compiled."""
    model = build(shape, device, dtype).to(dtype).eval()
    tokens, ways = (2, list(decoding.WAYS)[:-1]) if arguments.dry_run else (64, list(decoding.WAYS))
    sizes = (1, 2) if arguments.dry_run else (1, 32)
    found = [decoding.measure(model, size, tokens, max(1, arguments.rounds // 2), ways) for size in sizes]
    return [{**case, "bounds": _decoding_bounds(model, case["batch"], tokens)} for case in found]


def _decoding_bounds(model: GitLLM, texts: int, new_tokens: int) -> list[str]:
    # The middle of what is written, behind an image and a prompt.
    length = model.image_encoder.num_tokens(*[model.image_encoder.image_size or 224] * 2) + 35 + new_tokens // 2
    return bounds.cells(bounds.decoding_work(model, texts, length), texts)


def predicted(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Give what all that is measured may reach at most, and the page of it, with columns to fill."""
    training, written = [], []
    for shape in TINY if arguments.dry_run else SHAPES:
        model = build(shape, "meta", torch.bfloat16)
        for texts in (1, 5):
            images = max(1, arguments.images // texts)
            work = bounds.training_work(model, random_batch(model, images, texts, device="cpu"))
            training.append([shape, str(images), str(texts), *bounds.cells(work, images), "", "", ""])
        for size in (1, 32):
            written.append([shape, str(size), *_decoding_bounds(model, size, 64), ""])
    measured = ["images/s", "useful MFU", "peak GiB"]
    page = "\n".join(
        [
            "# One GPU, predicted\n",
            "Bounds from published peaks, of the larger of operations and bytes: "
            + ", ".join(
                f"{name} {card.tflops:g} TFLOP/s (dense bfloat16), {card.tb_per_second:g} TB/s, {card.gb:g} GB"
                for name, card in bounds.CARDS.items()
            )
            + ". `python -m benchmarks gpu` fills the empty columns. TFLOP and GB are those of a step, or of one new "
            "token for each text.\n",
            "## Training\n",
            results.table(["shape", "images", "texts each", *bounds.header("images/s"), *measured], training),
            "\n## Decoding\n",
            results.table(["shape", "batch", *bounds.header("tokens/s"), "tokens/s"], written),
        ]
    )
    return {"training": training, "decoding": written}, page + "\n"


def page(found: dict[str, Any]) -> str:
    """Give the results as Markdown."""
    peaks = found["peaks"]
    parts = [
        results.heading("One GPU", found["where"]),
        f"Peaks: {peaks['matmul_tflops']:.1f} TFLOP/s (matrix product), {peaks['copy_gb_per_second']:.0f} GB/s (copy). "
        f"{found['formula']}; N are the decoder's matrices without embeddings and head. Frozen weights are bf16, "
        "trained ones float32 under autocast, and the article's image encoder float32; ratios are of the same round: "
        "median (least to most). In float64 all ways are equal; loss and gradient differ by rounding.\n",
    ]
    for part, content in found.items():
        kind, shape = part.split(" ")[0], part.split(" ")[-1]
        if kind in ("training", "fused"):
            parts.append(f"## {part.capitalize()}\n")
            parts += [_training_table(case) for case in content["cases"]]
            parts += [f"Not measured: {content['why_not']}.\n"] if "why_not" in content else []
        if kind == "training":
            parts.append(f"Largest batch of ours, by doubling: {content['largest_batch']} images.\n")
        elif kind == "ablation":
            parts.append(f"## One thing undone, {shape}\n")
            parts += [_training_table(case) for case in content]
        elif kind == "decoding":
            parts.append(f"## Decoding, {shape}\n")
            for case in content:
                table = results.table(list(bounds.header("tokens/s")), [case["bounds"]])
                parts += [decoding.case_table(case).replace("## ", "### "), f"{table}\n"]
    if found["left_out"]:
        parts.append(f"Not measured, since time was up: {', '.join(found['left_out'])}.\n")
    return "\n".join(parts)


def _training_table(case: dict[str, Any]) -> str:
    rows = [
        [
            name,
            f"{way['images_per_second']:.2f}",
            f"{way['samples_per_second']:.2f}",
            f"{way['real_tokens_per_second']:.0f}",
            f"{way['useful_mfu']:.1%}" if "useful_mfu" in way else "-",
            f"{way['peak_gib']:.1f}",
            way["ours_is_faster"],
            f"{way['loss_difference']:.0e}",
            f"{way['gradient_difference']:.0e}",
        ]
        for name, way in case["ways"].items()
    ]
    header = [
        "way", "images/s", "texts/s", "real tokens/s", "useful MFU", "peak GiB", "ours is faster by", "loss differs",
        "gradient differs",
    ]  # fmt: skip
    title = (
        f"{case['images']} images with {case['texts_per_image']} each, {case['real_tokens']} real tokens, attention: "
        f"{case['attention_path']}"
    )
    if case["out_of_memory"]:
        title += f"; out of memory: {', '.join(case['out_of_memory'])}"
    predicted = results.table(list(bounds.header("images/s")), [case["bounds"]])
    return f"{title}\n\n{results.table(header, rows)}\n\n{predicted}\n"
