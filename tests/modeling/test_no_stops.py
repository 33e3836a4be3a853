"""A step of training never waits for the device: for all families, on a simulated one."""

import contextlib

import pytest
import torch

from gitllm_plugin.modeling import GitLLM, LoraSettings, set_trainable
from gitllm_plugin.modeling.families import FAMILIES
from gitllm_plugin.modeling.lora import inject_lora
from gitllm_plugin.modeling.tiny import tiny_language_model
from tests.modeling.batches import FAMILY_NAMES, MEMBERS, TEXTS, pixels, tiny_model
from tests.simulated_device import DEVICE, NAME, held, on_device, simulated_device

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}
BATCHES = ("one", "several", "frames", "between", "text", "features")
"""One text an image; several; videos of unlike length, one of them empty; pictures between words; no image; features in
the place of pixels."""


def model_of(family, lora=True, variant=None, precision="fp32", frames=False):
    settings = {} if lora else {"lora": None, "trainable": "proj+llm"}
    model, text_encoder = tiny_model(family, max_images=2 if frames else 1, **settings)
    if variant is not None:
        language_model = tiny_language_model(family, variant)
        if lora:
            inject_lora(language_model, LoraSettings(dropout=0.1), FAMILIES[family].lora_targets)
        model = GitLLM(model.image_encoder, language_model, max_images=2 if frames else 1)
        set_trainable(model, "proj+lora" if lora else "proj+llm")
    if precision == "bf16":
        for parameter in model.parameters():
            parameter.data = parameter.data if parameter.requires_grad else parameter.data.bfloat16()
    return model.train(), text_encoder


def batch_of(kind, model, text_encoder):
    """What is on the host, and what the loader has in pinned memory."""
    numbers = (0, 1, 2, 1) if kind == "several" else (0, 1, 2)
    text = text_encoder.prompts_and_answers([TEXTS[n][0] for n in numbers], [TEXTS[n][1] for n in numbers])
    batch = {name: getattr(text, name) for name in ("input_ids", "attention_mask", "labels")}
    batch["weights"] = torch.tensor([1.0, 0.5, 2.0, 1.0][: len(numbers)])
    if kind == "several":
        batch["image_index"] = torch.tensor([1, 0, 1, 1])
        return batch, pixels(2)
    if kind in ("frames", "between"):
        batch["num_images"] = torch.tensor([2, 0, 1])
        if kind == "between":
            batch["image_marks"] = torch.tensor([[1, 3], [-1, -1], [2, -1]])
        return batch, pixels(3, frames=2)
    if kind == "features":
        with torch.no_grad():
            return batch, model.image_encoder(pixels(3))[:, None].float()
    return batch, pixels(3) if kind == "one" else None


def check_step(model, batch, images, precision="fp32"):
    """Train one step on the device; the loss is that of the CPU."""
    dtype = PRECISIONS[precision]

    def autocast(kind):
        return contextlib.nullcontext() if dtype is None else torch.autocast(kind, dtype=dtype)

    with autocast("cpu"), torch.no_grad():
        expected = model(**batch, pixel_values=images, logits="none").loss
    on_device(model)
    with simulated_device() as stops:
        sent = None if images is None else images.pin_memory().to(DEVICE, non_blocking=True)
        with autocast(NAME):
            out = model(**batch, pixel_values=sent, logits="none")
        assert not stops, f"forward: {[str(stop) for stop in stops]}"
        out.loss.backward()
        assert not stops, f"backward: {[str(stop) for stop in stops]}"
        found = held(out.loss.detach())
    assert out.loss.device.type == NAME and isinstance(out.supervised_weight, float)
    assert any(p.grad is not None for p in model.parameters())
    torch.testing.assert_close(found, expected, atol=1e-5 if dtype is None else 5e-2, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_step_does_not_wait(family):
    model, text_encoder = model_of(family, frames=True)
    check_step(model, *batch_of("frames", model, text_encoder))


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_step_in_bf16_without_lora_does_not_wait(family):
    model, text_encoder = model_of(family, lora=False, precision="bf16")
    check_step(model, *batch_of("several", model, text_encoder), "bf16")


@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("family", ["opt", "llama", "mpt"])
def test_a_step_of_every_kind_of_batch_does_not_wait(family, kind):
    model, text_encoder = model_of(family, frames=kind in ("frames", "between"))
    check_step(model, *batch_of(kind, model, text_encoder))


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("family", ["opt", "llama", "mpt"])
def test_generation_waits_in_transformers_own_code_alone(family, beams):
    """Which looks at every token whether all texts have ended; shared images are prefilled without a stop."""
    model, text_encoder = model_of(family)
    text = text_encoder.prompts([prompt for prompt, _ in TEXTS])
    settings = {"max_new_tokens": 3, "min_new_tokens": 3, "num_beams": beams, **text_encoder.special_tokens}
    index, images = torch.tensor([1, 0, 1]), pixels(2)
    model.eval()
    expected = model.generate(text.input_ids, text.attention_mask, images, image_index=index, **settings)
    on_device(model)
    with simulated_device() as stops:
        sent = images.pin_memory().to(DEVICE, non_blocking=True)
        found = model.generate(text.input_ids, text.attention_mask, sent, image_index=index, **settings)
    assert torch.equal(held(found), expected)
    assert stops and {stop.file.partition("/")[0] for stop in stops} == {"transformers"}


@pytest.mark.parametrize("family", ["opt", "llama", "mpt"])
def test_what_is_given_on_the_device_is_read_in_one_transfer(family):
    model, text_encoder = model_of(family, frames=True)
    batch, images = batch_of("frames", model, text_encoder)
    batch["image_index"] = torch.tensor([0, 1, 2])
    on_device(model)
    with simulated_device() as stops:
        there = {name: value.pin_memory().to(DEVICE, non_blocking=True) for name, value in batch.items()}
        model(**there, pixel_values=images.pin_memory().to(DEVICE, non_blocking=True)).loss.backward()
    assert [str(stop).rpartition("/")[2].partition(":")[0] for stop in stops] == ["transfer.py"]


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize(("family", "variant"), MEMBERS)
def test_a_step_of_everything_does_not_wait(family, variant, kind, lora, precision):
    model, text_encoder = model_of(family, lora, variant, precision, frames=kind in ("frames", "between"))
    check_step(model, *batch_of(kind, model, text_encoder), precision)
