"""What GIT-LLM promises, for every family of the table: a new family is tested by being listed."""

import importlib
import pkgutil

import pytest
import torch

from gitllm_plugin.modeling import families
from gitllm_plugin.modeling.families import FAMILIES
from gitllm_plugin.modeling.layout import lay_out
from gitllm_plugin.modeling.model import GitLLM
from gitllm_plugin.modeling.self_test import PROPERTIES, make_probe
from gitllm_plugin.modeling.tiny import sharpen, tiny_image_encoder, tiny_language_model
from tests.modeling.batches import FAMILY_NAMES, MEMBERS, TEXTS, pixels, tiny_model

TOLERANCE = {"atol": 1e-5, "rtol": 0}
PROMPTS, ANSWERS = zip(*TEXTS, strict=True)


@pytest.fixture(scope="module", params=FAMILY_NAMES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def setup(family):
    model, text_encoder = tiny_model(family)
    return model, text_encoder, text_encoder.prompts_and_answers(list(PROMPTS), list(ANSWERS))


@pytest.fixture(scope="module", params=MEMBERS, ids=lambda member: "-".join(filter(None, member)))
def probe(request):
    decoder = sharpen(tiny_language_model(*request.param))
    return make_probe(GitLLM(tiny_image_encoder("clip"), decoder).eval())


@pytest.mark.parametrize("has_property", PROPERTIES, ids=lambda check: check.__name__)
@torch.no_grad()
def test_every_family_and_variant(probe, has_property):
    has_property(probe)


@torch.no_grad()
def logits(model, text, images=None, **kwargs):
    return model(text.input_ids, text.attention_mask, images, **kwargs).logits


def test_loss_is_the_mean_cross_entropy_of_answer_tokens(setup):
    model, _, text = setup
    out = model(text.input_ids, text.attention_mask, pixels(3), text.labels)
    shifted = text.labels[:, 1:]
    expected = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), shifted.flatten())
    torch.testing.assert_close(out.loss, expected, atol=1e-6, rtol=0)
    assert out.num_supervised_tokens == int((shifted != -100).sum())
    cheap = model(text.input_ids, text.attention_mask, pixels(3), text.labels, logits="none")
    torch.testing.assert_close(cheap.loss, out.loss, atol=1e-6, rtol=0)
    assert cheap.logits is None


def test_texts_of_one_image_share_it_exactly(setup):
    """Also where images that have few texts share a row."""
    model, text_encoder, _ = setup
    prompts, answers = zip(*[TEXTS[i] for i in (1, 2, 1, 0, 1, 1)], strict=True)
    text = text_encoder.prompts_and_answers(list(prompts), list(answers))
    image_index = torch.tensor([0, 1, 0, 2, 0, 0])
    image_valid = torch.ones(3, 17).bool()
    assert lay_out(image_valid, text.attention_mask, image_index, share_rows=True).attention_mask.shape[0] < 3
    grads = []
    for kwargs in ({"pixel_values": pixels(3), "image_index": image_index}, {"pixel_values": pixels(3)[image_index]}):
        model.zero_grad()
        out = model(text.input_ids, text.attention_mask, labels=text.labels, **kwargs)
        out.loss.backward()
        grads.append((out, {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}))
    (shared, shared_grads), (separate, separate_grads) = grads
    torch.testing.assert_close(shared.logits, separate.logits, **TOLERANCE)
    torch.testing.assert_close(shared.loss, separate.loss, atol=1e-6, rtol=0)
    for name, grad in separate_grads.items():
        torch.testing.assert_close(shared_grads[name], grad, atol=1e-6, rtol=1e-5, msg=name)


def test_gradients_reach_exactly_what_is_declared_trained(setup):
    model, _, text = setup
    model.zero_grad()
    model(text.input_ids, text.attention_mask, pixels(3), text.labels).loss.backward()
    for name, parameter in model.named_parameters():
        declared = name.startswith("projection.") or ".lora_" in name
        assert parameter.requires_grad == declared, name
        assert (parameter.grad is not None and bool(parameter.grad.any())) == declared, name


def greedy_without_cache(model, ids, image, steps):
    """Token by token through `forward`, each time from the start: the reference for cached decoding."""
    for _ in range(steps):
        with torch.no_grad():
            step = model(ids, None, image).logits[:, -1]
        ids = torch.cat([ids, step.argmax(-1, keepdim=True)], 1)
    return ids[:, -steps:]


@pytest.mark.parametrize("images", ["separate", "shared", "none"])
def test_cached_batched_decoding_equals_uncached_single_decoding(setup, images):
    model, text_encoder, _ = setup
    text = text_encoder.prompts(list(PROMPTS))
    image_index = torch.tensor([0, 1, 0])
    given = {
        "separate": {"pixel_values": pixels(2)[image_index]},
        "shared": {"pixel_values": pixels(2), "image_index": image_index},
        "none": {},
    }[images]
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    batch = model.generate(text.input_ids, text.attention_mask, **given, **options)
    for i, length in enumerate(text.attention_mask.sum(1)):
        image = None if images == "none" else pixels(2)[image_index[i : i + 1]]
        expected = greedy_without_cache(model, text.input_ids[i : i + 1, :length], image, 5)
        assert torch.equal(batch[i : i + 1], expected)


@pytest.mark.parametrize("family", ["opt", "llama", "gemma3_text"])
def test_a_static_cache_gives_the_same_tokens(family):
    """Also where texts share an image: each is then prefilled with it."""
    model, text_encoder = tiny_model(family)
    text = text_encoder.prompts(list(PROMPTS))
    given = {"pixel_values": pixels(2), "image_index": torch.tensor([0, 1, 0])}
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    expected = model.generate(text.input_ids, text.attention_mask, **given, **options)
    static = {**options, "cache_implementation": "static"}
    assert torch.equal(model.generate(text.input_ids, text.attention_mask, **given, **static), expected)
    model.language_model.generation_config.cache_implementation = "static"
    assert torch.equal(model.generate(text.input_ids, text.attention_mask, **given, **options), expected)


def test_beam_search_in_a_batch_equals_single_rows(setup):
    model, text_encoder, _ = setup
    text = text_encoder.prompts(list(PROMPTS))
    image_index = torch.tensor([1, 0, 1])
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "num_beams": 3, "do_sample": False, "eos_token_id": None}
    batch = model.generate(text.input_ids, text.attention_mask, pixels(2), image_index=image_index, **options)
    for i, length in enumerate(text.attention_mask.sum(1)):
        alone = model.generate(text.input_ids[i : i + 1, :length], None, pixels(2)[image_index[i : i + 1]], **options)
        assert torch.equal(batch[i : i + 1], alone)


def test_several_returned_sequences_stand_beside_their_prompt(setup):
    model, text_encoder, _ = setup
    text = text_encoder.prompts(list(PROMPTS))
    image_index = torch.tensor([1, 0, 1])
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "num_beams": 3, "num_return_sequences": 2, "do_sample": False}
    several = model.generate(text.input_ids, text.attention_mask, pixels(2), image_index=image_index, **options)
    best = model.generate(
        text.input_ids, text.attention_mask, pixels(2)[image_index], **{**options, "num_return_sequences": 1}
    )
    assert several.shape[0] == 6
    assert torch.equal(several[::2, :3], best[:, :3])


def test_rows_with_and_without_images_and_with_several_mix(family):
    model, text_encoder = tiny_model(family, max_images=2)
    with torch.no_grad():
        model.temporal_embedding.normal_()
    text = text_encoder.prompts(list(PROMPTS))
    images = pixels(3, frames=2)
    mixed = model(text.input_ids, text.attention_mask, images, num_images=torch.tensor([2, 0, 1])).logits
    for i, (length, given) in enumerate(
        zip(text.attention_mask.sum(1), (images[:1], None, images[2:, :1]), strict=True)
    ):
        alone = model(text.input_ids[i : i + 1, :length], None, given).logits
        torch.testing.assert_close(alone[0], mixed[i, :length], **TOLERANCE)


@pytest.mark.parametrize("shared", [True, False])
def test_context_counts_positions_and_not_slots(setup, shared):
    """Texts behind one image restart their positions: together they may be longer than the context."""
    model, text_encoder, _ = setup
    text = text_encoder.prompts(["word " * 30] * 8)
    image_index = torch.zeros(8, dtype=torch.long) if shared else None
    images = pixels(1) if shared else pixels(8)
    limit = model.decoder.context_length
    assert limit is None or text.attention_mask.sum() > limit, "tiny_config: give max_position_embeddings, such as 128"
    assert torch.isfinite(logits(model, text, images, image_index=image_index)).all()


def test_text_only_use_of_the_language_model_is_untouched(setup):
    model, _, text = setup
    ids = text.input_ids[:1, :8]
    with torch.no_grad():
        before = model.language_model(input_ids=ids).logits
        logits(model, text, pixels(3))
        torch.testing.assert_close(model.language_model(input_ids=ids).logits, before, **TOLERANCE)
        torch.testing.assert_close(model(ids).logits, before, **TOLERANCE)


def test_sdpa_equals_eager(setup):
    model, _, text = setup
    if not model.language_model._supports_sdpa:
        pytest.skip("transformers has eager attention alone for it")
    answers = []
    for implementation in ("eager", "sdpa"):
        model.language_model.set_attn_implementation(implementation)
        answers.append(logits(model, text, pixels(3)))
    torch.testing.assert_close(*answers, **TOLERANCE)


def test_every_family_that_a_file_holds_is_in_the_table():
    """Else the tests of this file pass it by without a word."""
    names = [each.name for each in pkgutil.iter_modules(families.__path__)]
    modules = [importlib.import_module(f"{families.__name__}.{name}") for name in names]
    written = {held.name for module in modules for held in vars(module).values() if isinstance(held, families.Family)}
    assert written == {family.name for family in FAMILIES.values()}
