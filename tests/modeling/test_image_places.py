"""Pictures between the words of a text: who sees whom, training, generation and ranking, against masks by hand."""

from typing import get_args

import pytest
import torch

from gitllm_plugin.config.model import AttentionKind
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.m3it.prompts import Prompt
from gitllm_plugin.modeling import TextEncoder
from gitllm_plugin.modeling.fitting import TooLongError
from gitllm_plugin.modeling.marks import MarksError, marks_of, place_pictures
from gitllm_plugin.modeling.places import stack_images
from tests.modeling.batches import FAMILY_NAMES, TEXTS, pixels, tiny_model
from tests.modeling.test_turns import CHATML
from tests.modeling.tokenizers_of_all_kinds import KINDS as TOKENIZERS
from tests.modeling.tokenizers_of_all_kinds import make_tokenizer

KINDS = get_args(AttentionKind)
ASKED = [
    ("compare <image> with <image> in size ##Answer:", "the first one"),
    ("is it red? ##Answer:", "no"),
    ("here: <image><image> how many? ##Answer:", "two"),
    ("where was this? <image>", "here"),
    ("nothing to see ##Answer:", "right"),
]
PICTURES = [2, 2, 2, 1, 0]


def batch_of(model, tokenizer, answers=True, rows=(0, 1, 2, 3, 4)):
    """A batch of all of them, and the arguments about pictures."""
    encoder = TextEncoder(tokenizer, image_places="text")
    prompts, said = zip(*[ASKED[row] for row in rows], strict=True)
    text = encoder.prompts_and_answers(prompts, said) if answers else encoder.prompts(prompts)
    counts = [PICTURES[row] for row in rows]
    where = {
        "pixel_values": pixels(len(ASKED), 2)[list(rows)],
        "num_images": torch.tensor(counts),
        "image_marks": place_pictures(text.marks, counts, [None] * len(counts)),
    }
    return encoder, text, where


def slots_of(text, where, row: int) -> list[tuple[str, int]]:
    """What stands in a row, in order, by hand: images by the number of their picture, tokens by their place."""
    marks, count = where["image_marks"][row].tolist(), int(where["num_images"][row])
    found: list[tuple[str, int]] = []
    for token in range(int(text.attention_mask[row].sum()) + 1):
        found += [("image", n) for n in range(count) if marks[n] == token]
        found += [("text", token)]
    return found[:-1]


def expanded(slots: list[tuple[str, int]], tokens: int) -> list[tuple[str, int, int]]:
    """The same with all tokens of each image: kind, number, and which token of its image it is."""
    return [(kind, n, part) for kind, n in slots for part in range(tokens if kind == "image" else 1)]


def seen_by_hand(kind: str, slots: list[tuple[str, int, int]], prompt: int) -> torch.Tensor:
    """Who sees whom, bool ``[S, S]``; pictures side by side are one block; ``prompt``: tokens of the prompt."""
    block, blocks = 0, []
    for place, slot in enumerate(slots):
        block += place > 0 and (slot[0] == "text" or slots[place - 1][0] == "text")
        blocks.append(block)
    in_prompt = [what == "image" or n < prompt for what, n, _ in slots]

    def sees(query: int, key: int) -> bool:
        if key <= query:
            return True
        if kind == "git":
            return blocks[query] == blocks[key] and slots[query][0] == "image"
        return kind == "prompt" and in_prompt[query] and in_prompt[key]

    return torch.tensor([[sees(query, key) for key in range(len(slots))] for query in range(len(slots))])


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_attention_weights_are_zero_exactly_where_they_are_to_be(kind, family):
    model, encoder = tiny_model(family, attention=kind, max_images=2)
    model.language_model.config._attn_implementation = "eager"
    _, text, where = batch_of(model, encoder.tokenizer)
    embeds, valid = model.encode_images(where["pixel_values"], where["num_images"])
    marks = marks_of(where["image_marks"], where["num_images"], where["pixel_values"], valid)
    prompts = (text.labels == -100).logical_and(text.attention_mask.bool()).sum(1)
    layout = model.decoder.lay_out(valid, text.attention_mask, None, prompts, marks=marks)
    with torch.no_grad():
        out = model.decoder.read(layout, embeds, text.input_ids, output_attentions=True)
    for row in range(len(ASKED)):
        slots = expanded(slots_of(text, where, row), embeds.shape[1] // 2)
        expected = seen_by_hand(kind, slots, int(prompts[row]))
        for weights in out.attentions:
            size = len(slots)
            assert torch.equal((weights[row, :, :size, :size] > 0).any(0), expected), row
            assert not weights[row, :, :size, size:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "qwen3", "gemma"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_language_model_that_is_given_all_by_hand_says_the_same(kind, family, dtype):
    model, encoder = tiny_model(family, attention=kind, max_images=2)
    _, text, where = batch_of(model, encoder.tokenizer)
    model.language_model.to(dtype)
    with torch.no_grad():
        found = model(text.input_ids, text.attention_mask, labels=text.labels, **where)
        few = model(text.input_ids, text.attention_mask, labels=text.labels, logits="none", **where)
        embeds, _ = model.encode_images(where["pixel_values"], where["num_images"])
    by_hand = model.language_model
    by_hand.set_attn_implementation("eager")
    losses = []
    for row in range(len(ASKED)):
        slots = expanded(slots_of(text, where, row), embeds.shape[1] // 2)
        prompt = int(((text.labels[row] == -100) & text.attention_mask[row].bool()).sum())
        words = by_hand.get_input_embeddings()(text.input_ids[row])
        vectors = [
            words[n] if what == "text" else embeds[row, n * (embeds.shape[1] // 2) + part].to(words.dtype)
            for what, n, part in slots
        ]
        mask = seen_by_hand(kind, slots, prompt)
        with torch.no_grad():
            logits = by_hand(
                inputs_embeds=torch.stack(vectors)[None],
                attention_mask=torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(dtype).min).to(dtype)[None, None],
                position_ids=torch.arange(len(slots))[None],
            ).logits[0]
        at = {slot[1]: place for place, slot in enumerate(slots) if slot[0] == "text"}
        for token in range(1, len(at)):
            own = found.logits[row, token - 1].float()
            # Whatever stands in front of a token, a word or a picture, predicts it.
            wanted = logits[at[token] - 1].float()
            assert (own - wanted).abs().max() <= (1e-5 if dtype == torch.float32 else 0.06) * wanted.abs().max()
            if text.labels[row, token] != -100:
                losses.append(-wanted.log_softmax(-1)[text.labels[row, token]])
    for output in (found, few):
        assert float(output.loss) == pytest.approx(
            float(torch.stack(losses).mean()), rel=1e-5 if dtype == torch.float32 else 0.03
        )


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_padding_generating_and_ranking_change_nothing(kind, family):
    model, encoder = tiny_model(family, attention=kind, max_images=2)
    encoder, text, where = batch_of(model, encoder.tokenizer)
    with torch.no_grad():
        together = model(text.input_ids, text.attention_mask, labels=text.labels, **where)
    _, prompts, of_prompts = batch_of(model, encoder.tokenizer, answers=False)
    out = model.generate(
        prompts.input_ids,
        prompts.attention_mask,
        **of_prompts,
        max_new_tokens=3,
        min_new_tokens=3,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    candidates = encoder.candidates([asked for asked, _ in ASKED], [["yes", "a red circle", "no"]] * len(ASKED))
    ranked = model.score_candidates(
        prompts.input_ids, prompts.attention_mask, candidates=candidates, tokens_at_once=8, **of_prompts
    )
    for row in range(len(ASKED)):
        own = prompts.input_ids[row, : int(prompts.attention_mask[row].sum())].tolist()
        own_where = {name: value[row : row + 1] for name, value in where.items()}

        def logits_of(answer: list[int], own=own, own_where=own_where) -> torch.Tensor:
            labels = torch.tensor([[-100] * len(own) + answer])
            with torch.no_grad():
                return model(torch.tensor([[*own, *answer]]), labels=labels, **own_where).logits[0, len(own) - 1 : -1]

        alone = logits_of(text.input_ids[row, len(own) : int(text.attention_mask[row].sum())].tolist())
        both = together.logits[row, len(own) - 1 :][: len(alone)]
        assert (alone - both).abs().max() <= 1e-4 * alone.abs().max()
        written = logits_of(out.sequences[row].tolist())
        found = torch.stack([step[row] for step in out.logits])
        assert (written - found).abs().max() <= 1e-4 * written.abs().max(), row
        for place, answer in enumerate(candidates[row]):
            wanted = logits_of(answer).log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum()
            assert float(ranked.log_likelihood[row][place]) == pytest.approx(float(wanted), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_two_answers_to_a_question_are_two_texts(kind):
    model, encoder = tiny_model("llama", attention=kind, max_images=2)
    encoder = TextEncoder(encoder.tokenizer, image_places="text")
    asked = [ASKED[row][0] for row in (0, 2, 0, 2)]
    text = encoder.prompts_and_answers(asked, ["the first one", "two", "the second of both", "three or so"])
    ids, labels, index = text.input_ids, text.labels, torch.tensor([0, 1, 0, 1])
    where = {"image_marks": place_pictures(text.marks, [2] * 4)}
    with torch.no_grad():
        both = model.log_likelihoods(
            ids,
            text.attention_mask,
            pixels(2, 2),
            labels=labels,
            image_index=index,
            like=torch.tensor([0, 1, 0, 1]),
            **where,
        )
        for row in range(4):
            own = {"image_marks": where["image_marks"][row : row + 1], "pixel_values": pixels(2, 2)[index[row]][None]}
            scores = model(ids[row : row + 1], text.attention_mask[row : row + 1], labels=labels[row : row + 1], **own)
            wanted = scores.logits[0, :-1].log_softmax(-1).gather(1, labels[row, 1:].clamp(min=0)[:, None])[:, 0]
            assert float(both[row]) == pytest.approx(float(wanted[labels[row, 1:] != -100].sum()), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "opt", "mpt"])
def test_pictures_in_front_by_marks_are_pictures_in_front(kind, family):
    model, encoder = tiny_model(family, attention=kind, max_images=2)
    text = encoder.prompts_and_answers(*zip(*TEXTS, strict=True))
    images, index = pixels(3, 2), torch.tensor([0, 1, 1])
    arguments = {"pixel_values": images, "labels": text.labels, "image_index": index}
    with torch.no_grad():
        usual = model(text.input_ids, text.attention_mask, **arguments)
        marked = model(
            text.input_ids, text.attention_mask, image_marks=torch.zeros(3, 2, dtype=torch.long), **arguments
        )
    assert (usual.logits - marked.logits).abs().max() <= 1e-5 * usual.logits.abs().max()
    assert float(usual.loss) == pytest.approx(float(marked.loss), rel=1e-5)


def test_all_tiles_of_a_picture_stand_at_its_mark():
    model, encoder = tiny_model("llama", max_images=2, tile_marks=True)
    encoder = TextEncoder(encoder.tokenizer, image_places="text")
    tiles = torch.tensor([[0, 1, 1], [0, 1, 2], [0, 0, 0], [1, 0, 0]])
    images, places = stack_images([pixels(4)], [tiles])
    text = encoder.prompts_and_answers(["see <image> beside <image> here ##Answer:"], ["so"])
    marks = place_pictures(text.marks, [2])
    embeds, valid = model.encode_images(images, places)
    standing = marks_of(marks, places, images, valid)
    layout = model.decoder.rows(valid, text.attention_mask, marks=standing)
    tokens = embeds.shape[1] // 4
    slots = layout.image_slots.tolist()
    first, second = text.marks[0]
    assert slots == [*range(first, first + 3 * tokens), *range(second + 3 * tokens, second + 4 * tokens)]
    ends = layout.rule.prefix_end[0, slots].tolist()
    assert ends == [first + 3 * tokens] * 3 * tokens + [second + 4 * tokens] * tokens


@pytest.mark.parametrize("beams", [2, 3])
def test_beams_see_the_same(beams):
    model, encoder = tiny_model("opt", max_images=2)
    _, prompts, where = batch_of(model, encoder.tokenizer, answers=False, rows=[0, 3])
    settings = {"num_beams": beams, "max_new_tokens": 3, "min_new_tokens": 3, "eos_token_id": None, "pad_token_id": 0}
    both = model.generate(prompts.input_ids, prompts.attention_mask, **where, **settings)
    for row in range(2):
        length = int(prompts.attention_mask[row].sum())
        own = {name: value[row : row + 1] for name, value in where.items()}
        assert torch.equal(model.generate(prompts.input_ids[row : row + 1, :length], **own, **settings)[0], both[row])


MARKED = [
    "look at <image> and tell",
    "<image> what is it?",
    "what is it? <image>",
    "<image><image>",
    "1.<image>\n2.<image>\nwhich?",
]


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("prompt", MARKED)
def test_ids_are_those_of_a_tokenizer_that_knows_the_mark(kind, prompt):
    own, knows = make_tokenizer(kind), make_tokenizer(kind)
    knows.add_special_tokens({"additional_special_tokens": ["<image>"]})
    mark = knows.convert_tokens_to_ids("<image>")
    front, text = TextEncoder(own), TextEncoder(own, image_places="text")
    found = text.prompts_and_answers([prompt, "no picture"], ["yes it is", "no"])
    length = int(found.attention_mask[0].sum())
    ids = found.input_ids[0, :length].tolist()
    for place in reversed(found.marks[0]):
        ids.insert(place, mark)
    wanted = knows(f"{prompt} yes it is", add_special_tokens=False)["input_ids"]
    assert ids[:-1][-len(wanted) :] == wanted and len(ids) - 1 - len(wanted) <= 1  # what begins every text
    assert ids.count(mark) == prompt.count("<image>") and found.marks[1] == ()
    # Without a mark nothing is another; and where pictures are in front, the mark is a word.
    usual = front.prompts_and_answers(["no picture"], ["no"])
    width = usual.input_ids.shape[1]
    assert torch.equal(found.input_ids[1, :width], usual.input_ids[0])
    assert front.prompts([prompt]).marks == ()


def test_turns_of_a_conversation_have_their_pictures():
    _, encoder = tiny_model("llama")
    encoder.tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    talk = [("<image>\nwhat is it?", "a <image>, so to say"), ("no", "oh")]
    for template in (CHATML, None):
        own = TextEncoder(encoder.tokenizer, chat_template=template, image_places="text")
        text = own.prompts([Prompt("and <image>?", turns=talk)])
        first, second = text.marks[0]
        before = [own.tokenizer.decode(text.input_ids[0, :place]) for place in (first, second)]
        assert before[0].removeprefix("<s>").strip() == ("<|im_start|>user" if template else "")
        assert before[1].endswith("and ") or before[1].endswith("and")
        assert "a <image>, so to say" in before[1]  # what was answered is text


@pytest.mark.parametrize(
    ("prompt", "pictures", "said"),
    [
        ("one <image>", 2, "1 times <image>, and there are 2 pictures"),
        ("<image> <image> <image>", 2, "3 times <image>, and there are 2 pictures"),
        ("what? <image>", 0, "1 times <image>, and there are 0 pictures"),
        ("<image> or <image>", 1, "2 times <image>, and there is 1 picture"),
    ],
)
def test_another_number_of_marks_than_of_pictures_is_told(prompt, pictures, said):
    _, encoder = tiny_model("llama")
    text = TextEncoder(encoder.tokenizer, image_places="text").prompts(["plain", prompt])
    with pytest.raises(MarksError, match=said) as error:
        place_pictures(text.marks, [1, pictures])
    assert error.value.row == 1 and "not at all" in str(error.value)


def test_a_question_that_is_too_long_loses_no_picture():
    _, encoder = tiny_model("llama")
    encoder = TextEncoder(encoder.tokenizer, image_places="text")
    question = "here <image> and there <image> which of them has more of what was said to be in it"
    prompt = f"##Question: {question} ##Answer:"
    whole = encoder.prompts([prompt]).input_ids.shape[1]
    for most in (whole - 1, whole - 9):
        cut = encoder.prompts([prompt], [question], most)
        assert cut.input_ids.shape[1] <= most and len(cut.marks[0]) == 2 and cut.truncated == (0,)
    with pytest.raises(TooLongError):
        encoder.prompts([prompt], [question], 8)


def test_a_place_that_nobody_knows_is_told():
    _, encoder = tiny_model("llama")
    with pytest.raises(ConfigError, match="image_places is 'middle'"):
        TextEncoder(encoder.tokenizer, image_places="middle")
    model, _ = tiny_model("llama", max_images=2)
    with pytest.raises(ConfigError, match="1 columns, and there are 2 pictures"):
        model(torch.ones(1, 3, dtype=torch.long), None, pixels(1, 2), image_marks=torch.ones(1, 1, dtype=torch.long))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["eager", "sdpa", "flex_attention"])
def test_every_attention_computes_the_same(kind, way):
    model, encoder = tiny_model("llama", attention=kind, max_images=2)
    _, text, where = batch_of(model, encoder.tokenizer)
    with torch.no_grad():
        usual = model(text.input_ids, text.attention_mask, labels=text.labels, **where)
        model.language_model.set_attn_implementation(way)
        other = model(text.input_ids, text.attention_mask, labels=text.labels, **where)
    assert (usual.logits - other.logits).abs().max() <= 1e-4 * usual.logits.abs().max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_a_cache_of_a_fixed_size_sees_the_same(kind, family):
    model, encoder = tiny_model(family, attention=kind, max_images=2)
    _, prompts, where = batch_of(model, encoder.tokenizer, answers=False)
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "eos_token_id": None, "pad_token_id": 0, "do_sample": False}
    usual = model.generate(prompts.input_ids, prompts.attention_mask, **where, **settings)
    fixed = model.generate(
        prompts.input_ids, prompts.attention_mask, **where, **settings, cache_implementation="static"
    )
    assert torch.equal(usual, fixed)


@pytest.mark.parametrize("family", ["llama", "opt", "mpt"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_a_batch_are_those_of_each_text(kind, family):
    model, encoder = tiny_model(family, attention=kind, max_images=2)
    _, text, where = batch_of(model, encoder.tokenizer)
    model(text.input_ids, text.attention_mask, labels=text.labels, logits="none", **where).loss.backward()
    trained = {name: weight for name, weight in model.named_parameters() if weight.grad is not None}
    found = {name: weight.grad.clone() for name, weight in trained.items()}
    model.zero_grad()
    count = int((text.labels != -100).sum())
    for row in range(len(ASKED)):
        size = int(text.attention_mask[row].sum())
        own = {name: value[row : row + 1] for name, value in where.items()}
        labels = text.labels[row : row + 1, :size]
        loss = model(text.input_ids[row : row + 1, :size], labels=labels, logits="none", **own).loss
        (loss * int((labels != -100).sum()) / count).backward()
    assert trained
    for name, weight in trained.items():
        assert (weight.grad - found[name]).abs().max() <= 1e-4 * found[name].abs().max() + 1e-8, name


def test_features_in_the_place_of_pixels_stand_there_too():
    model, encoder = tiny_model("llama", max_images=2)
    _, text, where = batch_of(model, encoder.tokenizer)
    images = where.pop("pixel_values")
    with torch.no_grad():
        wanted = model(text.input_ids, text.attention_mask, images, text.labels, **where)
        features = model.image_encoder(images.flatten(0, 1)).unflatten(0, images.shape[:2])[:, :, None]
        found = model(text.input_ids, text.attention_mask, features, text.labels, **where)
    assert (wanted.logits - found.logits).abs().max() <= 1e-5 * wanted.logits.abs().max()
