"""Pictures in tiles: several images of a text, each where it belongs; by every mask, projection and family."""

from typing import get_args

import pytest
import torch

from gitllm_plugin.config.model import AttentionKind
from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.modeling import build_git_llm, load_folder
from gitllm_plugin.modeling.loss import prompt_lengths_of
from gitllm_plugin.modeling.places import counts_of, places_of, stack_images, whole_pictures
from gitllm_plugin.modeling.projection import KINDS as PROJECTIONS
from gitllm_plugin.modeling.stock import check_stock
from tests.modeling.batches import FAMILY_NAMES, TEXTS, pixels, tiny_model
from tests.modeling.test_attention_kinds import expected_mask
from tests.simulated_device import DEVICE, on_device, simulated_device

KINDS = get_args(AttentionKind)
TWO_BY_TWO = [[0, 1, 1], [0, 1, 2], [0, 2, 1], [0, 2, 2], [0, 0, 0]]
ENTRIES = [TWO_BY_TWO, [[0, 0, 0]], [[0, 1, 1], [0, 1, 2], [0, 1, 3]]]
"""Places of a picture of four tiles and a thumbnail, of one that is no larger than a tile, and of three tiles alone."""
NONE = [-1, -1, -1]


def batch_of(entries):
    """Images and places, as a batch has them."""
    images = [pixels(10)[number : number + len(entry)] if entry else None for number, entry in enumerate(entries)]
    stacked, places = stack_images(images, [torch.tensor(entry) if entry else None for entry in entries])
    assert stacked is not None and places is not None
    return stacked, places


def model_with_marks(family="llama", **settings):
    model, text_encoder = tiny_model(family, tile_marks=True, **settings)
    with torch.no_grad():
        torch.nn.init.normal_(model.tile_embedding)
        if model.temporal_embedding is not None:
            torch.nn.init.normal_(model.temporal_embedding)
    return model, text_encoder


def alone(model, image, place):
    """The tokens of one image by its own: encoded, marked and projected one step after another."""
    features = model.image_encoder(image[None])[0]
    picture, row, column = place
    if model.tile_embedding is not None:
        features = features + model.tile_embedding[0, row] + model.tile_embedding[1, column]
    if model.temporal_embedding is not None:
        features = features + model.temporal_embedding[picture]
    rows, columns = model.image_encoder.grid_shape(*image.shape[-2:])
    return model.projection(features, (rows, columns))


def test_places_and_counts():
    assert whole_pictures(2).tolist() == [[0, 0, 0], [1, 0, 0]]
    assert places_of(None, 2, 1).tolist() == [[[0, 0, 0]]] * 2
    assert places_of(torch.tensor([1, 0]), 2, 2).tolist() == [[[0, 0, 0], NONE], [NONE, NONE]]
    _, places = batch_of(ENTRIES)
    assert places_of(places, 3, 5) is places
    assert places[1].tolist() == [[0, 0, 0], *[NONE] * 4]
    assert counts_of(places).tolist() == [5, 1, 3] and counts_of(torch.tensor([2, 0])).tolist() == [2, 0]


def test_entries_with_and_without_places_share_a_batch():
    tiles, one = pixels(5), pixels(1)[0]
    stacked, places = stack_images([tiles, None, one], [torch.tensor(TWO_BY_TWO), None, None])
    assert stacked.shape == (3, 5, 3, 32, 32) and torch.equal(stacked[2, 0], one) and not stacked[2, 1:].any()
    assert places.tolist() == [TWO_BY_TWO, [NONE] * 5, [[0, 0, 0], *[NONE] * 4]]
    assert stack_images([None, None]) == (None, None)
    stacked, counts = stack_images([one, None])
    assert stacked.shape == (2, 1, 3, 32, 32) and counts.tolist() == [1, 0]


@pytest.mark.parametrize("marks", [True, False])
@pytest.mark.parametrize("encoder", ["clip", "dinov2", "siglip"])
@pytest.mark.parametrize("projection", PROJECTIONS)
def test_each_image_is_marked_by_its_place(projection, encoder, marks):
    model, _ = (model_with_marks if marks else tiny_model)(
        "llama", projection=projection, encoder=encoder, max_images=3
    )
    entries = [[*TWO_BY_TWO, [1, 0, 0], [2, 1, 1], [2, 2, 1]], [[0, 0, 0]], []]
    images, places = batch_of(entries)
    with torch.no_grad():
        embeds, valid = model.encode_images(images, places)
        embeds, valid = embeds.unflatten(1, (8, -1)), valid.unflatten(1, (8, -1))
        for number, entry in enumerate(entries):
            assert valid[number].all(1).tolist() == [True] * len(entry) + [False] * (8 - len(entry))
            assert not valid[number, len(entry) :].any()
            for frame, place in enumerate(entry):
                wanted = alone(model, images[number, frame], place)
                torch.testing.assert_close(embeds[number, frame], wanted, atol=1e-5, rtol=1e-4)


def test_what_fills_a_batch_up_is_not_encoded(monkeypatch):
    model, _ = model_with_marks()
    images, places = batch_of(ENTRIES)
    seen = []
    model.image_encoder.register_forward_hook(lambda module, given, out: seen.append(len(given[0])))
    with torch.no_grad():
        model.encode_images(images, places)
        model.encode_images(images[:, :1], torch.tensor([1, 0, 1]))
        model.encode_images(images[:, 0])
    assert seen == [9, 2, 3]


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_attention_weights_are_zero_exactly_where_they_are_to_be(kind, family):
    """All tiles of a text are one image to the rule, however many they are."""
    model, text_encoder = model_with_marks(family, attention=kind)
    model.language_model.config._attn_implementation = "eager"
    text = text_encoder.prompts_and_answers(*zip(*[TEXTS[i] for i in (1, 2, 0)], strict=True))
    images, places = batch_of(ENTRIES)
    index, lengths = torch.arange(3), prompt_lengths_of(text.labels, text.attention_mask)
    embeds, valid = model.encode_images(images, places)
    prompts = lengths if kind == "prompt" else None
    layout = model.decoder.rows(valid, text.attention_mask, index, prompt_lengths=prompts)
    with torch.no_grad():
        out = model.decoder.read(layout, embeds, text.input_ids, output_attentions=True)
    expected = expected_mask(kind, layout, index, embeds.shape[1], lengths)
    real = layout.attention_mask.bool()
    for weights in out.attentions:
        assert torch.equal((weights > 0).any(1)[real], expected[real])


@pytest.mark.parametrize("projection", ["linear_norm", "mlp", "pixel_shuffle"])
@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_what_each_text_is_alone(kind, family, projection):
    """Streams, shared images and padding, in front of a text that has its picture as images without any of them."""
    model, text_encoder = model_with_marks(family, attention=kind, projection=projection)
    chosen, index = (1, 2, 1, 0), torch.tensor([0, 1, 0, 2])
    text = text_encoder.prompts_and_answers(*zip(*[TEXTS[i] for i in chosen], strict=True))
    images, places = batch_of(ENTRIES)
    given = {"image_index": index, "num_images": places}
    with torch.no_grad():
        together = model(text.input_ids, text.attention_mask, images, text.labels, **given)
        few = model(text.input_ids, text.attention_mask, images, text.labels, **given, logits="none")
        sums, count = 0.0, 0
        for row in range(4):
            entry, length = ENTRIES[index[row]], int(text.attention_mask[row].sum())
            tokens = [alone(model, images[index[row], frame], place) for frame, place in enumerate(entry)]
            embeds = torch.cat(tokens)[None]
            ids, labels = text.input_ids[row : row + 1, :length], text.labels[row : row + 1, :length]
            own = model.decoder.forward(embeds, torch.ones(embeds.shape[:2]), ids, None, labels)
            scale = together.logits[row, :length].abs().max()
            assert (together.logits[row, :length] - own.logits[0]).abs().max() <= 1e-5 * scale
            sums, count = sums + own.loss * own.num_supervised_tokens, count + own.num_supervised_tokens
    for output in (together, few):
        assert float(output.loss) == pytest.approx(float(sums / count), rel=1e-5)


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_generating_and_ranking_are_what_training_says(kind, family):
    model, text_encoder = model_with_marks(family, attention=kind)
    asked, index = [TEXTS[i][0] for i in (1, 2, 0)], torch.tensor([0, 1, 0])
    prompts, candidates = text_encoder.prompts(asked), [["yes", "a red circle", "no"]] * 3
    images, places = batch_of(ENTRIES[:2])
    given = {"image_index": index, "num_images": places}
    out = model.generate(
        prompts.input_ids, prompts.attention_mask, images, **given, max_new_tokens=3, do_sample=False,
        eos_token_id=None, pad_token_id=0, return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    ids = text_encoder.candidates(asked, candidates)
    ranked = model.score_candidates(prompts.input_ids, prompts.attention_mask, images, **given, candidates=ids)
    for row in range(3):
        own = prompts.input_ids[row, : int(prompts.attention_mask[row].sum())].tolist()
        entry = ENTRIES[index[row]]
        its = images[index[row], : len(entry)][None], torch.tensor([entry])

        def logits_of(answer, own=own, its=its):
            text, labels = torch.tensor([[*own, *answer]]), torch.tensor([[-100] * len(own) + answer])
            with torch.no_grad():
                return model(text, None, its[0], labels, num_images=its[1]).logits[0, len(own) - 1 : -1]

        written = logits_of(out.sequences[row].tolist())
        assert (written - torch.stack([step[row] for step in out.logits])).abs().max() <= 1e-4 * written.abs().max()
        for place, answer in enumerate(ids[row]):
            wanted = logits_of(answer).log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum()
            assert float(ranked.log_likelihood[row][place]) == pytest.approx(float(wanted), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_marks_and_encoders_are_trained_as_by_separate_images(dtype):
    model, _ = model_with_marks(trainable="proj+vit")
    model.image_encoder.to(dtype)
    images, places = batch_of(ENTRIES)
    weights = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))

    def gradients(embeds):
        model.zero_grad()
        sum((image @ weights.T[: image.shape[-1]]).float().square().sum() for image in embeds).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    embeds, valid = model.encode_images(images, places)
    together = gradients([embeds[valid]])
    apart = gradients(
        [alone(model, images[n, frame], place) for n, entry in enumerate(ENTRIES) for frame, place in enumerate(entry)]
    )
    assert together.keys() == apart.keys() and "tile_embedding" in together
    for name, value in apart.items():
        if name.endswith("k_proj.bias"):  # which changes no attention: its gradient is 0, and what is found rounding
            continue
        tolerance = (1e-4 if dtype == torch.float32 else 0.1) * float(value.abs().max())
        assert (together[name] - value).abs().max() <= tolerance, name
    marks = together["tile_embedding"].abs().sum((2, 3))
    assert (marks[0] > 0).nonzero()[:, 0].tolist() == [0, 1, 2] and (marks[1] > 0).nonzero()[:, 0].tolist() == [
        0,
        1,
        2,
        3,
    ]


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_step_does_not_wait(family):
    model, text_encoder = model_with_marks(family)
    model.train()
    text = text_encoder.prompts_and_answers(*zip(*TEXTS, strict=True))
    batch = {name: getattr(text, name) for name in ("input_ids", "attention_mask", "labels")}
    images, batch["num_images"] = batch_of(ENTRIES)
    on_device(model)
    with simulated_device() as stops:
        model(**batch, pixel_values=images.pin_memory().to(DEVICE, non_blocking=True), logits="none").loss.backward()
        assert not stops, [str(stop) for stop in stops]


@pytest.mark.parametrize("entry", [[[0, 0, 0], [1, 0, 0]], [[0, 1, 1], [0, 1, 2], [2, 0, 0]], [[1, 0, 0]]])
def test_more_pictures_than_the_model_takes_are_refused_and_tiles_are_not(entry):
    model, _ = tiny_model("llama")
    images, places = batch_of([entry])
    with pytest.raises(DataError, match=f"{entry[-1][0] + 1} images .* set model.max_images to {entry[-1][0] + 1}"):
        model.encode_images(images, places)
    model.encode_images(*batch_of([TWO_BY_TWO]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("marks", [True, False])
def test_a_folder_keeps_it(marks, projection, kind, tmp_path):
    settings = {"tile_marks": marks, "attention": kind, "projection": projection, "dtype": "float32"}
    model, tokenizer = build_git_llm("tiny:llama", "tiny:siglip", trainable="proj", **settings)
    if marks:
        torch.nn.init.normal_(model.tile_embedding)
    model.save_pretrained(tmp_path / "folder", tokenizer=tokenizer)
    loaded = load_folder(tmp_path / "folder", dtype="float32").model
    assert loaded.tile_marks == marks
    images, places = batch_of(ENTRIES)
    with torch.no_grad():
        assert torch.equal(loaded.encode_images(images, places)[0], model.encode_images(images, places)[0])
    if marks and kind == "git" and projection == "linear":
        with pytest.raises(ConfigError, match="marks of tiles"):
            check_stock(loaded)
