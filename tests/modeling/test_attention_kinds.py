"""What image tokens see: their image, of it what stands before, or image and prompt; slot by slot, for every family."""

from typing import get_args

import pytest
import torch

from gitllm_plugin.config.model import AttentionKind
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.host import launch
from gitllm_plugin.modeling import build_git_llm, load_folder
from gitllm_plugin.modeling.layout import Layout
from gitllm_plugin.modeling.loss import prompt_lengths_of
from gitllm_plugin.modeling.projection import KINDS as PROJECTIONS
from gitllm_plugin.modeling.stock import check_stock
from tests.modeling.batches import FAMILY_NAMES, TEXTS, pixels, tiny_model
from tests.small_run import write_small_run

KINDS = get_args(AttentionKind)
OTHERS = [kind for kind in KINDS if kind != "git"]


def expected_mask(kind: str, layout: Layout, index: torch.Tensor, tokens: int, prompts: torch.Tensor) -> torch.Tensor:
    """Who sees whom, bool ``[R, S, S]``, from which token stands in which slot.

    Args:
        index: which image each text reads.
        tokens: P, of an image.
        prompts: how many tokens of each text are its prompt.
    """
    rows, size = layout.attention_mask.shape
    what: list[list[tuple[str, int, int] | None]] = [[None] * size for _ in range(rows)]
    for slot, place in zip(layout.image_slots.tolist(), layout.image_places.tolist(), strict=True):
        what[slot // size][slot % size] = ("image", place // tokens, place % tokens)
    counted: dict[int, int] = {}
    for slot, place in zip(layout.text_slots.tolist(), layout.text_places.tolist(), strict=True):
        text = place // layout.text_shape[1]
        what[slot // size][slot % size] = ("text", text, counted.get(text, 0))
        counted[text] = counted.get(text, 0) + 1

    def sees(query, key) -> bool:
        if query is None or key is None:
            return False
        (kind_of_query, owner, place), (kind_of_key, key_owner, key_place) = query, key
        if kind_of_query == "text":
            if kind_of_key == "image":
                return key_owner == index[owner]
            in_prompt = kind == "prompt" and place < prompts[owner] and key_place < prompts[owner]
            return key_owner == owner and (key_place <= place or in_prompt)
        if kind_of_key == "image":
            return key_owner == owner and (kind != "causal" or key_place <= place)
        return kind == "prompt" and index[key_owner] == owner and key_place < prompts[key_owner]

    return torch.tensor([[[sees(query, key) for key in row] for query in row] for row in what])


@pytest.mark.parametrize("shared", [False, True], ids=["a row a text", "a row an image"])
@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_attention_weights_are_zero_exactly_where_they_are_to_be(kind, family, shared):
    model, text_encoder = tiny_model(family, attention=kind)
    if shared and not model.decoder.shares_images:
        pytest.skip("each text has its image to itself")
    model.language_model.config._attn_implementation = "eager"
    prompts, answers = zip(*[TEXTS[i] for i in (1, 2, 1, 0)], strict=True)
    text = text_encoder.prompts_and_answers(prompts, answers)
    index = torch.tensor([0, 1, 0, 2])
    lengths = prompt_lengths_of(text.labels, text.attention_mask)
    image_embeds, image_valid = model.encode_images(pixels(3))
    layout = model.decoder.rows(
        image_valid, text.attention_mask, index, share_rows=shared, prompt_lengths=lengths if kind == "prompt" else None
    )
    with torch.no_grad():
        out = model.decoder.read(layout, image_embeds, text.input_ids, output_attentions=True)
    expected = expected_mask(kind, layout, index, image_embeds.shape[1], lengths)
    real = layout.attention_mask.bool()
    assert expected.any() and len(out.attentions) > 1
    for weights in out.attentions:
        assert torch.equal((weights > 0).any(1)[real], expected[real])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("kind", OTHERS)
def test_streams_sharing_and_padding_change_nothing(kind, family, dtype):
    model, text_encoder = tiny_model(family, attention=kind)
    model.language_model.to(dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    prompts, answers = zip(*[TEXTS[i] for i in (1, 2, 1, 0)], strict=True)
    text = text_encoder.prompts_and_answers(prompts, answers)
    index, images = torch.tensor([0, 1, 0, 2]), pixels(3)
    with torch.no_grad():
        together = model(text.input_ids, text.attention_mask, images, text.labels, image_index=index)
        few = model(text.input_ids, text.attention_mask, images, text.labels, image_index=index, logits="none")
        sums, count = 0.0, 0
        for row in range(4):
            length = int(text.attention_mask[row].sum())
            alone = model(
                text.input_ids[row : row + 1, :length],
                None,
                images[index[row]][None],
                text.labels[row : row + 1, :length],
            )
            scale = together.logits[row, :length].abs().max()
            assert (together.logits[row, :length] - alone.logits[0]).abs().max() <= tolerance * scale
            sums, count = sums + alone.loss * alone.num_supervised_tokens, count + alone.num_supervised_tokens
    for output in (together, few):
        assert abs(float(output.loss - sums / count)) <= tolerance * float(sums / count)


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("kind", OTHERS)
def test_generating_and_ranking_are_what_training_says(kind, family):
    model, text_encoder = tiny_model(family, attention=kind)
    asked = [TEXTS[i][0] for i in (1, 2, 0)]
    prompts, index = text_encoder.prompts(asked), torch.tensor([0, 1, 0])
    images, candidates = pixels(2), [["yes", "a red circle", "no"]] * 3
    out = model.generate(
        prompts.input_ids,
        prompts.attention_mask,
        images,
        image_index=index,
        max_new_tokens=4,
        min_new_tokens=4,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    ids = text_encoder.candidates(asked, candidates)
    ranked = model.score_candidates(
        prompts.input_ids, prompts.attention_mask, images, image_index=index, candidates=ids, tokens_at_once=8
    )
    for row in range(3):
        own = prompts.input_ids[row, : int(prompts.attention_mask[row].sum())].tolist()
        image = images[index[row]][None]

        def logits_of(answer: list[int], own=own, image=image) -> torch.Tensor:
            text = torch.tensor([[*own, *answer]])
            labels = torch.tensor([[-100] * len(own) + answer])
            with torch.no_grad():
                return model(text, None, image, labels).logits[0, len(own) - 1 : -1]

        written = logits_of(out.sequences[row].tolist())
        found = torch.stack([step[row] for step in out.logits])
        assert (written - found).abs().max() <= 1e-4 * written.abs().max()
        for place, answer in enumerate(ids[row]):
            wanted = logits_of(answer).log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum()
            assert float(ranked.log_likelihood[row][place]) == pytest.approx(float(wanted), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_change_to_a_pixel_and_a_word_reaches(kind):
    model, _ = tiny_model("llama", attention=kind)
    image, valid = model.encode_images(pixels(1))
    ids = torch.randint(3, 100, (1, 6), generator=torch.Generator().manual_seed(0))

    def states(vectors: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        layout = model.decoder.rows(valid, torch.ones(text.shape))
        with torch.no_grad():
            read = model.decoder.read(layout, vectors, text, output_hidden_states=True).hidden_states[-1]
        return layout.image_of(read)

    changed, others = image.clone(), ids.clone()
    changed[:, -1], others[:, 2] = changed[:, -1].flip(-1), 5
    before = states(image, ids)
    assert torch.allclose(states(changed, ids)[0], before[0], atol=1e-5) == (kind == "causal")
    assert torch.allclose(states(image, others), before, atol=1e-5) == (kind != "prompt")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("projection", PROJECTIONS)
def test_a_folder_keeps_it_beside_every_projection(kind, projection, tmp_path):
    model, tokenizer = build_git_llm(
        "tiny:llama", "tiny:siglip", attention=kind, projection=projection, dtype="float32", trainable="proj"
    )
    model.save_pretrained(tmp_path / "folder", tokenizer=tokenizer)
    loaded = load_folder(tmp_path / "folder", dtype="float32").model
    ids = torch.randint(3, 100, (2, 6), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded(ids, None, pixels(2)).logits, model(ids, None, pixels(2)).logits)
    if kind != "git":
        with pytest.raises(ConfigError, match=rf"attention={kind}|projection is"):
            check_stock(loaded)


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("projection", ["linear_norm", "pixel_shuffle"])
def test_it_is_trained_and_gone_on_with(kind, projection, tmp_path):
    node = {"model_type": "tiny_opt", "attention": kind, "projection": projection}
    config, auto = write_small_run(tmp_path, node, lr_sched="constant"), ["run.resume_ckpt_path=auto"]
    launch.train(config, [*auto, "run.max_epoch=1"])
    resumed = launch.train(config, auto)
    whole = launch.train(config, [f"run.output_dir={tmp_path / 'whole'}"])
    for name, value in whole.model.trainable_state_dict().items():
        assert torch.equal(value, resumed.model.trainable_state_dict()[name]), name


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        (["model.attention=prompt", "model.loss_on=all"], "would be learnt from themselves"),
        (["model.attention=prefix"], "model.attention"),
        (["model.attention=Causal"], "model.attention"),
    ],
)
def test_what_cannot_be_learnt_is_told(said, refused, tmp_path):
    with pytest.raises(ConfigError, match=refused):
        launch.train(write_small_run(tmp_path), said)
