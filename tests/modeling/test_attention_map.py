"""Attention to the image, over the families."""

import pytest
import torch

from gitllm_plugin.modeling import GitLLM
from gitllm_plugin.modeling.families import FAMILIES
from gitllm_plugin.modeling.tiny import tiny_image_encoder, tiny_language_model

IDS = torch.tensor([[5, 9, 17, 30]])


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_each_text_token_divides_its_attention(family):
    model = GitLLM(tiny_image_encoder("clip"), tiny_language_model(family)).eval()
    pixels = torch.rand(1, 3, 32, 32)
    before = model(IDS, None, pixels).logits
    kind = model.language_model.config._attn_implementation
    weights = model.attention_to_image(IDS, pixels)
    layers = model.language_model.config.num_hidden_layers
    assert weights.shape == (layers, 4, 17)
    shares = weights.sum(-1)
    assert (weights > 0).all() and (shares < 1).all()
    assert model.language_model.config._attn_implementation == kind
    assert torch.equal(model(IDS, None, pixels).logits, before)


def test_equal_scores_give_equal_shares():
    model = GitLLM(tiny_image_encoder("clip"), tiny_language_model("llama")).eval()
    layer = model.language_model.model.layers[0].self_attn
    with torch.no_grad():
        layer.q_proj.weight.zero_()
    weights = model.attention_to_image(IDS, torch.rand(1, 3, 32, 32))
    # Equal scores: token t shares its attention among 17 image tokens and t + 1 of the text.
    for t in range(4):
        torch.testing.assert_close(weights[0, t], torch.full((17,), 1 / (17 + t + 1)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("num_images", [1, 3])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_last_tokens_alone_get_what_they_get_among_all(family, num_images):
    model = GitLLM(tiny_image_encoder("clip"), tiny_language_model(family), max_images=num_images).eval()
    pixels = torch.rand(1, *([num_images] if num_images > 1 else []), 3, 32, 32)
    whole = model.attention_to_image(IDS, pixels)
    for last in (1, 2, 3):
        torch.testing.assert_close(model.attention_to_image(IDS, pixels, last), whole[:, -last:], atol=1e-5, rtol=1e-5)


def test_a_long_prompt_costs_no_square_of_weights():
    model = GitLLM(tiny_image_encoder("clip"), tiny_language_model("llama")).eval()
    sizes = []
    attention = model.language_model.model.layers[0].self_attn
    attention.register_forward_hook(lambda *call: sizes.append(0 if call[2][1] is None else call[2][1].numel()))
    weights = model.attention_to_image(torch.full((1, 100), 9), torch.rand(1, 3, 32, 32), last=5)
    assert weights.shape[1:] == (5, 17)
    # Read in two parts: image and prompt without weights, then five rows of them.
    assert sizes == [0, model.language_model.config.num_attention_heads * 5 * (17 + 100)]
