"""GIT's rule, slot by slot, in the attention weights that each family really computes."""

import pytest
import torch

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.modeling.attention import PrefixRule, install, prefix_attention
from gitllm_plugin.modeling.layout import Layout, lay_out
from tests.modeling.batches import FAMILY_NAMES, TEXTS, pixels, tiny_model


def brute_force_mask(is_image, attention_mask, shared=None):
    """GIT's rule written out slot by slot.

    Args:
        is_image: bool ``[S]``, the slots that hold the image.
        attention_mask: bool ``[S]``, the slots that are not padding.
        shared: None, or the text and the image that each slot belongs to, two long ``[S]``.

    Returns:
        bool ``[S, S]``, True where query (row) may see key (column).
    """
    size = is_image.shape[0]
    mask = torch.zeros(size, size, dtype=torch.bool)
    for query in range(size):
        for key in range(size):
            same_text, same_image = (True, True) if shared is None else (ids[query] == ids[key] for ids in shared)
            earlier_text = not is_image[query] and not is_image[key] and key <= query and same_text
            seen = (bool(is_image[key]) and same_image) or earlier_text
            mask[query, key] = seen and bool(attention_mask[key])
    return mask


def expected_masks(layout: Layout) -> torch.Tensor:
    is_image = torch.zeros_like(layout.attention_mask, dtype=torch.bool)
    is_image.view(-1)[layout.image_slots] = True
    return torch.stack(
        [
            brute_force_mask(
                is_image[row],
                layout.attention_mask[row].bool(),
                layout.rule.shared and [ids[row] for ids in layout.rule.shared],
            )
            for row in range(len(is_image))
        ]
    )


@pytest.mark.parametrize("shared", [False, True], ids=["a row a text", "a row an image"])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_attention_weights_are_zero_exactly_where_brute_force_says(family, shared):
    model, text_encoder = tiny_model(family)
    if shared and not model.decoder.shares_rows:
        pytest.skip("positions come from slots: this family never shares rows")
    # Not by set_attn_implementation: Falcon refuses it, though it reads the configuration in each call.
    model.language_model.config._attn_implementation = "eager"
    text = text_encoder.prompts([TEXTS[i][0] for i in (1, 2, 1, 0, 1, 1)])
    image_index = torch.tensor([0, 1, 0, 2, 0, 0])  # the last two images fit into one row
    image_embeds, image_valid = model.encode_images(pixels(3))
    layout = lay_out(image_valid, text.attention_mask, image_index, share_rows=shared)
    if not shared:
        image_embeds = image_embeds[image_index]
    with torch.no_grad():
        out = model.decoder.read(layout, image_embeds, text.input_ids, output_attentions=True)
    expected = expected_masks(layout)
    for weights in out.attentions:
        seen = (weights > 0).any(1)
        real = layout.attention_mask.bool()
        assert torch.equal(seen[real], expected[real])


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("align", ["left", "right", "blocks"])
def test_mask_factories_give_the_rule_for_every_alignment(implementation, align):
    from transformers import LlamaConfig
    from transformers.masking_utils import create_causal_mask

    image_valid = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0]]).bool()
    text_valid = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 1, 0]]).bool()
    layout = lay_out(image_valid, text_valid, align=align)
    config = LlamaConfig(num_hidden_layers=1)
    config._attn_implementation = implementation
    rows = torch.zeros(*layout.attention_mask.shape, 4)
    with prefix_attention(config, layout.rule):
        mask = create_causal_mask(config, rows, layout.attention_mask, past_key_values=None)
    seen = (mask if mask.dtype == torch.bool else mask == 0)[:, 0]
    real = layout.attention_mask.bool()
    assert torch.equal(seen[real], expected_masks(layout)[real])


def test_rule_is_gone_after_the_call_and_after_an_error():
    from transformers import LlamaConfig
    from transformers.masking_utils import create_causal_mask

    install()
    config = LlamaConfig(num_hidden_layers=1)
    config._attn_implementation = "eager"

    def causal():
        return create_causal_mask(config, torch.zeros(1, 3, 4), torch.ones(1, 3), past_key_values=None)

    before = causal()
    with pytest.raises(RuntimeError), prefix_attention(config, PrefixRule(torch.tensor([2]))):
        assert not torch.equal(causal(), before)
        raise RuntimeError
    assert torch.equal(causal(), before)


def test_an_attention_that_the_rule_cannot_reach_is_refused():
    from transformers import LlamaConfig

    config = LlamaConfig(num_hidden_layers=1)
    config._attn_implementation = "flash_attention_2"
    message = "'flash_attention_2' cannot express GIT's mask; use one of gitllm, eager, sdpa"
    with pytest.raises(ConfigError, match=message), prefix_attention(config, PrefixRule(torch.tensor([2]))):
        pass
