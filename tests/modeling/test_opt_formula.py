"""OPT against the article's formula, written with the decoder's own layers."""

import torch

from tests.modeling.batches import pixels, tiny_model


@torch.no_grad()
def test_image_enters_behind_project_in_and_positions_count_text_alone():
    model, text_encoder = tiny_model("opt")
    decoder = model.language_model.model.decoder
    assert decoder.project_in is not None
    text = text_encoder.prompts(["what color is the shape?"])
    image, _ = model.encode_images(pixels(1))
    tokens, size = text.input_ids.shape[1], image.shape[1] + text.input_ids.shape[1]

    embedded = decoder.project_in(decoder.embed_tokens(text.input_ids))
    positions = decoder.embed_positions.weight[2 : 2 + tokens]  # the table's offset is 2
    hidden = torch.cat([image, embedded + positions], 1)
    mask = torch.full((size, size), torch.finfo(torch.float32).min).triu(1)
    mask[:, : image.shape[1]] = 0
    for layer in decoder.layers:
        hidden = layer(hidden, attention_mask=mask[None, None])
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
    if decoder.final_layer_norm is not None:
        hidden = decoder.final_layer_norm(hidden)
    expected = model.language_model.lm_head(decoder.project_out(hidden))[:, image.shape[1] :]

    torch.testing.assert_close(model(text.input_ids, None, pixels(1)).logits, expected, atol=1e-5, rtol=0)
