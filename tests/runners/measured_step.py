"""The memory of a training step of a model of ten million weights, measured and computed, in a process of its own.

`python measured_step.py FAMILY PRECISION TRAINABLE [checkpointed]` prints both numbers of bytes.
"""

import sys
from functools import partial
from typing import Any, cast

import torch
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile

from gitllm_plugin.host.locate import prepare

prepare()

from transformers import AutoConfig, AutoModelForCausalLM, CLIPVisionConfig, CLIPVisionModel  # noqa: E402

from gitllm_plugin.config.model import BuildSettings, LoraSettings  # noqa: E402
from gitllm_plugin.modeling import GitLLM, ImageEncoder, make_text_encoder  # noqa: E402
from gitllm_plugin.modeling.build import prepare as prepare_model  # noqa: E402
from gitllm_plugin.modeling.tiny import tiny_tokenizer  # noqa: E402
from gitllm_plugin.models.git_llm import GitLLMForLavis  # noqa: E402
from gitllm_plugin.runners import precision  # noqa: E402
from gitllm_plugin.runners.memory import Step, ddp_peaks  # noqa: E402
from gitllm_plugin.runners.optimizer import build_optimizer  # noqa: E402

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SIZES = {"hidden_size": 256, "num_hidden_layers": 7, "num_attention_heads": 8, "vocab_size": 4000}
FAMILIES = {
    "opt": {"word_embed_proj_dim": 128, "ffn_dim": 1024, "do_layer_norm_before": False},  # OPT-350M's form
    "llama": {"intermediate_size": 688, "num_key_value_heads": 4},
    "mpt": {"d_model": 256, "n_layers": 7, "n_heads": 8, "vocab_size": 4000},
}
VISION: dict[str, Any] = {
    "patch_size": 16,
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
}


def build(family: str, dtype: torch.dtype, trainable: str, checkpointed: bool) -> GitLLMForLavis:
    """A model of random weights, as a run has it."""
    sizes: dict[str, Any] = {**({} if family == "mpt" else SIZES), **FAMILIES[family]}
    config = AutoConfig.for_model(family, **sizes)
    decoder = AutoModelForCausalLM.from_config(config, dtype=dtype)
    tower = CLIPVisionModel._from_config(CLIPVisionConfig(**VISION), dtype=dtype)
    settings = BuildSettings(
        trainable=trainable,
        lora=LoraSettings(rank=16) if "lora" in trainable else None,
        gradient_checkpointing=checkpointed,
    )
    model = prepare_model(GitLLM(ImageEncoder(tower), decoder), settings)
    return cast(Any, GitLLMForLavis)(model, make_text_encoder(decoder, tiny_tokenizer())).train()


def step_of(model: GitLLMForLavis, dtype: torch.dtype) -> Step:
    """Four pictures, each with a text of its own length."""
    samples = {
        "image": torch.randn(4, 3, 224, 224),
        "text_input": ["##Question: what color is the shape? " * count for count in (4, 6, 8, 9)],
        "text_output": ["a red circle, a green square"] * 4,
    }
    return Step(
        model,
        samples,
        lambda model, samples: model(samples)["loss"] * 50.0,
        partial(precision.autocast, torch.device("cpu"), dtype),
    )


def measure(step: Step) -> int:
    """The most bytes that torch's allocator held at once in a step, by its own records."""
    model, optimizer = step.model, build_optimizer(step.model, 1e-4, 0.01, 0.999)
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def one() -> None:
        with step.autocast():
            loss = step.loss(model, dict(step.samples))
        loss.backward()
        del loss
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    one()
    held = [*model.parameters(), *model.buffers(), step.samples["image"]]
    held += [value for state in optimizer.state.values() for value in state.values()]
    here = [value.to_local() if isinstance(value, DTensor) else value for value in held]
    storages = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in here}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as records:
        one()
    now = most = sum(storages.values())
    events = [event for event in cast(Any, records.profiler).kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def main(family: str, dtype: str, trainable: str, checkpointed: str = "") -> None:
    """Print bytes measured and computed."""
    torch.set_num_threads(1)
    step = step_of(build(family, DTYPES[dtype], trainable, bool(checkpointed)), DTYPES[dtype])
    print(measure(step), ddp_peaks(step)[0][1])


if __name__ == "__main__":
    main(*sys.argv[1:])
