"""Preferences: two answers read together are two answers read apart, and the loss is the formula."""

import json
import math
from pathlib import Path

import pytest
import torch

from gitllm_plugin.modeling.beginnings import same_beginnings
from gitllm_plugin.modeling.preference import Pairs, Reference, preference_loss, stop_dropout
from tests.modeling.batches import FAMILY_NAMES, pixels, shift_padding, tiny_model
from tests.modeling.test_stream import STREAMING
from tests.simulated_device import DEVICE, NAME, held, on_device, simulated_device

TRIPLES = [
    ("##Question: is it red? ##Answer:", "no", "yes"),
    ("##Question: what color is the shape in the image? ##Answer:", "a red circle", "a red square there"),
    ("hello ##Answer:", "yes", "yes it is so"),
    ("##Question: what shape is it? ##Answer:", "a cross", "a circle, and another one"),
]
IMAGE_INDEX = torch.tensor([0, 1, 1, 2])
BETA = 0.3


def encoded(text_encoder, triples=TRIPLES):
    """Two answers to each prompt: first all that are chosen, then all that are rejected."""
    prompts = [prompt for prompt, _, _ in triples]
    answers = [chosen for _, chosen, _ in triples] + [rejected for _, _, rejected in triples]
    text = text_encoder.prompts_and_answers(prompts * 2, answers)
    return {"input_ids": text.input_ids, "attention_mask": text.attention_mask, "labels": text.labels}


def together(model, batch, images, index=IMAGE_INDEX):
    like = torch.arange(len(index)).repeat(2)
    return model.log_likelihoods(**batch, pixel_values=images, image_index=index.repeat(2), like=like)


def apart(model, batch, images, index=IMAGE_INDEX):
    """Each text by itself, with all logits, and log-probabilities by hand."""
    sums = []
    for row in range(len(batch["input_ids"])):
        ids, labels = batch["input_ids"][row : row + 1], batch["labels"][row]
        mask = batch["attention_mask"][row : row + 1]
        own = None if images is None else images[index[row % len(index)]][None]
        # Labels too, because by `attention: prompt` they say where the prompt ends.
        logits = model(ids, mask, own, labels=labels[None]).logits[0]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        terms = [logits[t - 1].log_softmax(-1)[labels[t]] for t in range(1, len(labels)) if labels[t] != -100]
        sums.append(torch.stack(terms).sum())
    return torch.stack(sums)


def loss_of(policy, reference, beta=BETA):
    """The formula, written down once more."""
    half = len(policy) // 2
    margin = (policy[:half] - policy[half:]) - (reference[:half] - reference[half:])
    return torch.log1p(torch.exp(-beta * margin)).mean()


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_loss_and_gradients_are_those_of_separate_passes(family, dtype):
    model, text_encoder = tiny_model(family)
    model, images, batch = model.to(dtype), pixels(3).to(dtype), encoded(text_encoder)
    with torch.no_grad():
        reference = apart(model, batch, images) + torch.linspace(-1, 1, 8, dtype=dtype)
    expected = apart(model, batch, images)
    loss = loss_of(expected, reference)
    wanted = gradients(model, loss)
    found = together(model, batch, images)
    pairs = [Pairs(*values.chunk(2)) for values in (found, reference)]
    own, _ = preference_loss(*pairs, BETA)
    got = gradients(model, own)
    # Some families' norms compute in float32 whatever they are given.
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(own, loss, atol=1e-6, rtol=0)
    assert got.keys() == wanted.keys() and got
    scale = max(gradient.abs().max() for gradient in wanted.values())
    for name, gradient in wanted.items():
        assert (got[name] - gradient).abs().max() <= 1e-6 * max(1.0, scale), name


@pytest.mark.parametrize("family", ["opt", "llama", "gemma2", "mpt"])
@pytest.mark.parametrize("attention", ["git", "causal", "prompt"])
@pytest.mark.parametrize("kind", ["frames", "text", "left"])
def test_every_way_to_join_and_every_kind_of_batch(family, attention, kind):
    frames = kind == "frames"
    model, text_encoder = tiny_model(family, attention=attention, max_images=2 if frames else 1)
    batch, images = encoded(text_encoder), pixels(3, frames=2) if frames else pixels(3)
    if kind == "text":
        images = None
    with torch.no_grad():
        expected = apart(model, batch, images)
        if kind == "left":
            lengths = batch["attention_mask"].sum(1)
            batch = {name: shift_padding(value, lengths) for name, value in batch.items()}
        torch.testing.assert_close(together(model, batch, images), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("family", STREAMING)
def test_image_and_prompt_are_computed_once(family):
    """The tokens that go through a layer are counted: an image once, a prompt once, and of each answer what differs."""
    model, text_encoder = tiny_model(family)
    batch, images = encoded(text_encoder), pixels(3)
    blocks, seen, encoder = model.decoder.blocks(), [], []
    blocks[0].register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args[0] if args else kwargs["hidden_states"]).shape[:-1].numel()),
        with_kwargs=True,
    )
    model.image_encoder.register_forward_pre_hook(lambda module, args: encoder.append(len(args[0])))
    image = model.num_image_tokens(32, 32)
    seen.clear(), encoder.clear()
    together(model, batch, images)
    rows = [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    own = 0
    for chosen, rejected in zip(rows[:4], rows[4:], strict=True):
        common = next(n for n, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b)
        own += len(chosen) + len(rejected) - common
    assert seen == [3 * image + own] and encoder == [3]
    seen.clear()
    apart(model, batch, images)
    assert sum(seen) == 8 * image + sum(map(len, rows))


def test_checkpointed_layers_and_bfloat16_agree_with_separate_passes():
    model, text_encoder = tiny_model("llama")
    batch, images = encoded(text_encoder), pixels(3)
    expected = gradients(model, -together(model, batch, images).sum())
    model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    found = gradients(model.train(), -together(model, batch, images).sum())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4, msg=name)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        low, alone = together(model.eval(), batch, images), apart(model, batch, images)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, alone, atol=0.3, rtol=0.02)


@pytest.mark.parametrize(
    ("rows", "common"),
    [
        ([[1, 2, 3], [1, 2, 4]], 2),
        ([[1, 2, 0], [1, 2, 3]], 2),  # the first one is shorter
        ([[5, 2, 3], [1, 2, 3]], 0),
        ([[1, 2, 3], [1, 2, 3]], 3),
    ],
)
def test_what_two_texts_have_in_common(rows, common):
    ids = torch.tensor(rows)
    assert same_beginnings(ids, ids != 0, torch.tensor([0, 0])).tokens.tolist() == [0, common]


# ---------------------------------------------------------------- the formula

STORED = json.loads((Path(__file__).parents[1] / "data" / "dpo_trl.json").read_text())
"""Log-probabilities, and what TRL's own trainer made of them: loss, gradients and what it logs."""


@pytest.mark.parametrize("case", STORED["cases"], ids=lambda case: f"beta {case['beta']}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_loss_gradients_and_numbers_are_those_of_trl(case, dtype):
    policy = torch.tensor(case["policy"], dtype=dtype, requires_grad=True)
    reference = Pairs(*torch.tensor(case["reference"], dtype=dtype))
    loss, numbers = preference_loss(Pairs(*policy), reference, case["beta"])
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], abs=1e-6)
    torch.testing.assert_close(policy.grad, torch.tensor(case["gradient"], dtype=dtype), atol=1e-6, rtol=0)
    assert numbers.keys() == case["logged"].keys()
    for name, value in numbers.items():
        assert value.item() == pytest.approx(case["logged"][name], abs=1e-5, rel=1e-6), name


@pytest.mark.parametrize("smoothing", [0.1, 0.25, 0.4])
def test_smoothing_takes_a_share_of_pairs_the_wrong_way_round(smoothing):
    policy, reference = Pairs(*torch.randn(2, 5)), Pairs(*torch.randn(2, 5))
    turned = [Pairs(pair.rejected, pair.chosen) for pair in (policy, reference)]
    right, wrong = (preference_loss(*pairs, BETA)[0] for pairs in ((policy, reference), turned))
    found, _ = preference_loss(policy, reference, BETA, smoothing)
    assert found.item() == pytest.approx((1 - smoothing) * right.item() + smoothing * wrong.item(), rel=1e-6)


# ---------------------------------------------------------------- the reference


def test_the_reference_is_the_model_at_the_start_whatever_is_trained_since():
    model, text_encoder = tiny_model("llama")
    batch, images = encoded(text_encoder), pixels(3)
    reference, like = Reference(model), torch.arange(4).repeat(2)
    given = {**batch, "pixel_values": images, "image_index": IMAGE_INDEX.repeat(2)}

    class Asked(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self):
            return self.model.log_likelihoods(**given, like=like)

    asked = Asked(model.train())
    reference = Reference(asked)
    before = asked().detach()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    for dtype in (None, torch.bfloat16):
        with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            found, policy = reference.ask(asked), asked()
        torch.testing.assert_close(
            found, before, atol=1e-6 if dtype is None else 0.5, rtol=0 if dtype is None else 0.05
        )
        assert not found.requires_grad and policy.requires_grad and model.training
        # What autocast keeps is of the policy alone.
        assert len(gradients(model, policy.sum())) == sum(p.requires_grad for p in model.parameters())


def test_nothing_is_dropped():
    model, text_encoder = tiny_model("opt", lora=None, trainable="all")
    model.train()
    for module in model.modules():
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.5
    batch, images = encoded(text_encoder), pixels(3)
    noisy = [together(model, batch, images) for _ in range(2)]
    assert not torch.equal(*noisy)
    stop_dropout(model)
    quiet = [together(model, batch, images) for _ in range(2)]
    assert torch.equal(*quiet)


# ---------------------------------------------------------------- the device


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_step_does_not_wait_for_the_device(family, precision):
    model, text_encoder = tiny_model(family)
    batch, images = encoded(text_encoder), pixels(3)
    with torch.no_grad():
        expected = together(model, batch, images)
    on_device(model)
    with simulated_device() as stops:
        sent = images.pin_memory().to(DEVICE, non_blocking=True)
        with torch.autocast(NAME, dtype=torch.bfloat16, enabled=precision == "bf16"):
            found = together(model, batch, sent)
            reference = Pairs(*found.detach().chunk(2))
            loss, _ = preference_loss(Pairs(*found.chunk(2)), reference, BETA)
        loss.backward()
        assert not stops, [str(stop) for stop in stops]
        found, loss = held(found.detach()), held(loss.detach())
    exact = precision == "fp32"
    torch.testing.assert_close(found, expected, atol=1e-4 if exact else 0.5, rtol=1e-4 if exact else 0.05)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)
