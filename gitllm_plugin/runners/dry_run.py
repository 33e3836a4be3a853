"""A look at a training before it is started: nothing is trained, nothing but a figure is written."""

from typing import Any

from omegaconf import OmegaConf

from gitllm_plugin.common.loading import move_to_device
from gitllm_plugin.common.progress import peak_memory
from gitllm_plugin.modeling.parameters import describe_parameters, parameter_rows
from gitllm_plugin.runners.estimate import describe_time, estimate_memory, measure_step
from gitllm_plugin.runners.first_batch import describe_texts, draw_images, encoded_texts
from gitllm_plugin.runners.length import Position
from gitllm_plugin.tables import as_text

FIGURE = "first_batch.png"


def dry_run(runner: Any) -> str:
    """Describe the training of a `git_llm` runner: configuration, parameters, first batch, memory and time."""
    model = runner.unwrap_dist_model(runner.model)
    model.train()
    batch = next(iter(runner.data.batches(Position())))
    samples = move_to_device(batch, runner.device)
    samples |= {"epoch": 0, "iters": 0, "num_iters_per_epoch": runner.length.iters_per_epoch}

    def loss_of_batch():
        with runner._autocast():
            return runner.task.train_step(model=model, samples=samples)

    with encoded_texts(model) as encoded:
        activations, seconds = measure_step(model, loss_of_batch)
    tokenizer = model.text_encoder.tokenizer if encoded else None
    figure = runner.output_dir / FIGURE
    images = f"images: {figure}" if draw_images(batch, figure) else "the batch has no images"
    sections = {
        "configuration": OmegaConf.to_yaml(runner.config.config, resolve=True).rstrip(),
        "parameters": as_text(describe_parameters(parameter_rows(getattr(model, "model", model)))),
        "first batch": f"{describe_texts(batch, encoded[0] if encoded else None, tokenizer)}\n{images}",
        "memory": f"{estimate_memory(model, activations)}\n  this process reached {peak_memory() / 2**20:,.1f} MiB",
        "time": describe_time(runner.length, seconds),
    }
    return "\n\n".join(f"== {title}\n{text}" for title, text in sections.items())
