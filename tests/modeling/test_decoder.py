"""The decoder by itself: images as vectors, and one name a weight."""

import copy

import pytest
import torch

from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.modeling import Decoder
from gitllm_plugin.modeling.layout import lay_out
from gitllm_plugin.modeling.tiny import tiny_language_model
from tests.modeling.batches import FAMILY_NAMES, TEXTS, pixels, tiny_model

IMAGE_INDEX = torch.tensor([0, 1, 0])


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_image_vectors_stand_for_images(family):
    model, text_encoder = tiny_model(family)
    text = text_encoder.prompts_and_answers(*zip(*TEXTS, strict=True))
    images = pixels(2)
    vectors, valid = model.encode_images(images)
    given = {"attention_mask": text.attention_mask, "image_index": IMAGE_INDEX}
    with torch.no_grad():
        out = model.decoder.forward(vectors, valid, text.input_ids, labels=text.labels, **given)
        expected = model(text.input_ids, pixel_values=images, labels=text.labels, **given)
    assert torch.equal(out.logits, expected.logits) and torch.equal(out.loss, expected.loss)
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
    with torch.no_grad():
        tokens = model.decoder.generate(vectors, valid, text.input_ids, **given, **options)
    assert torch.equal(tokens, model.generate(text.input_ids, pixel_values=images, **given, **options))


def test_a_cache_of_images_goes_on_with_any_text():
    """What a serving engine does: images once, then text behind them, a few tokens at a time."""
    model, text_encoder = tiny_model("llama")
    decoder, ids = model.decoder, text_encoder.prompts(["what color is it?"]).input_ids
    with torch.no_grad():
        vectors, valid = model.encode_images(pixels(1))
        cache = decoder.prefill(vectors, valid)
        layout = lay_out(valid, torch.ones_like(ids), align="right")
        rule = layout.rule
        length, logits = valid.shape[1], []
        for start in range(0, ids.shape[1], 3):
            piece = ids[:, start : start + 3]
            order = torch.arange(start, start + piece.shape[1])[None]
            seen = torch.ones(1, length + start + piece.shape[1], dtype=torch.long)
            out = decoder.read_behind(cache, rule, piece, seen, order, before=torch.tensor([length]))
            logits.append(out.logits)
        expected = model(ids, None, pixels(1)).logits
    torch.testing.assert_close(torch.cat(logits, 1), expected, atol=1e-5, rtol=0)


def test_every_weight_has_one_name():
    model, _ = tiny_model("llama")
    assert {name.split(".")[0] for name in model.state_dict()} == {"language_model", "image_encoder", "projection"}
    assert not any(module is model.decoder for module in model.modules())


def test_a_copy_has_a_decoder_of_its_own():
    model, _ = tiny_model("llama")
    copied = copy.deepcopy(model)
    assert copied.decoder.language_model is copied.language_model is not model.language_model


def with_peft(model):
    # PEFT imports torchvision, which works once the package is loaded.
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"]))


WRAPPED = {
    "a copy": copy.deepcopy,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "PEFT's": with_peft,
}


@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_another_language_model_may_be_assigned(family, wrapped):
    model, text_encoder = tiny_model(family, lora=None, trainable="proj")
    ids = text_encoder.prompts(["what color is it?"]).input_ids
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
    with torch.no_grad():
        expected, tokens = model(ids, None, pixels(1)).logits, model.generate(ids, None, pixels(1), **options)
        model.language_model = WRAPPED[wrapped](model.language_model)
        torch.testing.assert_close(model(ids, None, pixels(1)).logits, expected)
        assert torch.equal(model.generate(ids, None, pixels(1), **options), tokens)
        for parameter in model.language_model.parameters():
            parameter.zero_()
        assert not model(ids, None, pixels(1)).logits.any()
    assert not any(value.any() for name, value in model.state_dict().items() if name.startswith("language_model."))


def test_a_language_model_of_no_known_family_is_not_assigned():
    model, _ = tiny_model("llama")
    before, other = model.language_model, copy.deepcopy(model.language_model)
    other.config.model_type = "unheard-of"
    with pytest.raises(ConfigError, match="'unheard-of' is in no family"):
        model.language_model = other
    assert model.language_model is before is model.decoder.language_model


def test_what_is_too_long_says_by_how_much():
    decoder = Decoder(tiny_language_model("llama"))
    layout = lay_out(torch.ones(1, 200, dtype=torch.bool), torch.ones(1, 50))
    decoder.check_fits(layout, new_tokens=6)
    with pytest.raises(DataError, match="take 257 positions, but the language model's context is 256"):
        decoder.check_fits(layout, new_tokens=7)
