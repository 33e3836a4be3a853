"""Ranking of candidate answers: the numbers of separate forward passes, whatever is shared, padded or chunked."""

import pytest
import torch

from gitllm_plugin.errors import DataError
from gitllm_plugin.modeling.model import GitLLM
from gitllm_plugin.modeling.self_test import make_probe
from gitllm_plugin.modeling.tiny import sharpen, tiny_image_encoder, tiny_language_model
from tests.modeling.batches import MEMBERS, pixels, shift_padding, tiny_model

TOLERANCE = {"atol": 2e-4, "rtol": 2e-5}
COMMON = [[5, 9, 2], [7], [5, 9, 11, 30, 2], [40, 2], [5, 2]]
OWN = [[[4, 5, 6]], [[50], [3, 3, 3, 3, 3, 3, 3]], [[8, 2], [9, 2], [10, 2], [11, 12]]]


@pytest.fixture(scope="module", params=MEMBERS, ids=lambda member: "-".join(filter(None, member)))
def probe(request):
    return make_probe(GitLLM(tiny_image_encoder("clip"), sharpen(tiny_language_model(*request.param))).eval())


@torch.no_grad()
def separately(model, prompt, image, candidate):
    """Log-likelihood of one candidate, from a forward pass over image, prompt and candidate alone."""
    text = torch.cat([prompt, torch.tensor(candidate)])[None]
    logits = model(text, None, image).logits[0].log_softmax(-1)
    steps = range(len(prompt) - 1, text.shape[1] - 1)
    chosen = torch.stack([logits[step, text[0, step + 1]] for step in steps])
    greedy = all(int(logits[step].argmax()) == int(text[0, step + 1]) for step in steps)
    return float(chosen.sum()), float(chosen.mean()), greedy


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("candidates", [[COMMON] * 3, OWN], ids=["common", "own"])
def test_scores_are_those_of_separate_forward_passes(probe, padding, candidates):
    ids, mask = probe.input_ids, probe.attention_mask
    if padding == "left":
        ids, mask = (shift_padding(tensor, torch.tensor(probe.lengths)) for tensor in (ids, mask))
    given = {"image_index": torch.tensor([0, 1, 0])}
    images = probe.pixel_values[:2]
    scores = probe.model.score_candidates(ids, mask, images, candidates=candidates, **given)
    means = probe.model.score_candidates(ids, mask, images, candidates=candidates, **given, mean=True, tokens_at_once=5)
    for row, (length, members) in enumerate(zip(probe.lengths, candidates, strict=True)):
        image = images[given["image_index"][row : row + 1]]
        expected = [separately(probe.model, probe.input_ids[row, :length], image, ids) for ids in members]
        sums, averages, greedy = map(list, zip(*expected, strict=True))
        torch.testing.assert_close(scores.log_likelihood[row], torch.tensor(sums), **TOLERANCE)
        torch.testing.assert_close(means.log_likelihood[row], torch.tensor(averages), **TOLERANCE)
        assert scores.is_greedy[row].tolist() == means.is_greedy[row].tolist() == greedy
    assert scores.best() == [int(part.argmax()) for part in scores.log_likelihood]


@pytest.fixture(scope="module")
def llama():
    return tiny_model("llama")


def test_what_greedy_decoding_gives_is_found_to_be_greedy(llama):
    model, text_encoder = llama
    text = text_encoder.prompts(["what color?", "is the shape in the image red?"])
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    greedy = model.generate(text.input_ids, text.attention_mask, pixels(2), **options).tolist()
    candidates = [[ids, [*ids[:-1], (ids[-1] + 1) % 300]] for ids in greedy]
    scores = model.score_candidates(text.input_ids, text.attention_mask, pixels(2), candidates=candidates)
    assert [row.tolist() for row in scores.is_greedy] == [[True, False]] * 2


def test_thousands_of_candidates_are_read_in_calls_of_bounded_size(llama, monkeypatch):
    model, text_encoder = llama
    text = text_encoder.prompts(["what color?", "what shape?"])
    candidates = [[3 + n % 300, 3 + n // 300, 7, 2] for n in range(3000)]
    sizes, forward = [], model.language_model.forward

    def counted(*args, **kwargs):
        if kwargs.get("input_ids") is not None:
            sizes.append(kwargs["input_ids"].numel())
        return forward(*args, **kwargs)

    monkeypatch.setattr(model.language_model, "forward", counted)
    given = {"input_ids": text.input_ids, "attention_mask": text.attention_mask, "pixel_values": pixels(2)}
    scores = model.score_candidates(**given, candidates=[candidates] * 2)
    assert max(sizes) <= 256 and sum(sizes) == 2 * 3 * 3000  # what is fast on a CPU
    monkeypatch.undo()
    few = model.score_candidates(**given, candidates=[candidates[1000:1010]] * 2)
    for all_of_them, some in zip(scores.log_likelihood, few.log_likelihood, strict=True):
        torch.testing.assert_close(all_of_them[1000:1010], some, **TOLERANCE)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("blocks", [1, 7, 64, 2048])
def test_the_size_of_blocks_changes_no_score(dtype, tolerance, blocks):
    model, text_encoder = tiny_model("llama")
    text = text_encoder.prompts(["what color?", "is it red?", "how many shapes are there in the picture?"])
    candidates = [[3 + n % 50, *range(5, 5 + n % 9), 2] for n in range(120)]
    given = {"input_ids": text.input_ids, "attention_mask": text.attention_mask, "pixel_values": pixels(3)}
    model.to(dtype)
    usual = model.score_candidates(**given, candidates=[candidates] * 3)
    others = model.score_candidates(**given, candidates=[candidates] * 3, tokens_at_once=blocks)
    for expected, found in zip(usual.log_likelihood, others.log_likelihood, strict=True):
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


def test_a_shortlist_holds_the_candidates_whose_first_tokens_are_most_likely(llama):
    model, text_encoder = llama
    text = text_encoder.prompts(["what color?"])
    candidates = [[token, 5, 2] for token in range(3, 60)]
    given = {"input_ids": text.input_ids, "attention_mask": text.attention_mask, "pixel_values": pixels(1)}
    first = model(**given).logits[0, -1].log_softmax(-1)
    full, short = (
        model.score_candidates(**given, candidates=[candidates], shortlist=size).log_likelihood[0] for size in (None, 7)
    )
    kept = torch.isfinite(short)
    assert set(kept.nonzero()[:, 0].tolist()) == set(first[3:60].topk(7).indices.tolist())
    torch.testing.assert_close(short[kept], full[kept], **TOLERANCE)


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        ([[[5]]], "1 lists of candidates for 2 prompts"),
        ([[[5]], []], "prompt 1 has no candidates"),
        ([[[5]], [[5], []]], "a candidate of prompt 1 has no tokens"),
        ([[[5] * 300]] * 2, "the language model's context is 256"),
    ],
)
def test_what_cannot_be_ranked_is_refused(llama, candidates, message):
    model, text_encoder = llama
    text = text_encoder.prompts(["what color?", "what shape?"])
    with pytest.raises(DataError, match=message):
        model.score_candidates(text.input_ids, text.attention_mask, pixels(2), candidates=candidates)


def test_text_alone_is_ranked_too(llama):
    model, text_encoder = llama
    text = text_encoder.prompts(["what color?", "what shape is it?"])
    scores = model.score_candidates(text.input_ids, text.attention_mask, candidates=[COMMON] * 2)
    for row, length in enumerate(text.attention_mask.sum(1)):
        expected = [separately(model, text.input_ids[row, :length], None, ids)[0] for ids in COMMON]
        torch.testing.assert_close(scores.log_likelihood[row], torch.tensor(expected), **TOLERANCE)


FAMILIES_READ = [("llama", None), ("mpt", None), ("opt", None)]


def likeliest(model, prompt, image, candidates, size):
    """The candidates of a shortlist, by a forward pass for each: its tokens up to the first that is its own."""

    def own(ids):
        others = [other for other in candidates if other != ids]
        return next((n for n in range(1, len(ids)) if all(other[:n] != ids[:n] for other in others)), len(ids))

    scores = [separately(model, prompt, image, ids[: own(ids)])[0] for ids in candidates]
    return set(sorted(range(len(candidates)), key=lambda place: (-scores[place], place))[:size])


@pytest.mark.parametrize("member", FAMILIES_READ, ids=lambda member: member[0])
@pytest.mark.parametrize(
    "candidates",
    [
        [[9, token, 5, 2] for token in range(20, 50)],  # all begin alike, as behind a space of its own
        [[9, 9, 9, token, 2] for token in range(20, 40)],
        [[9, token, 2] for token in range(20, 40)] + [[token, 2] for token in range(40, 60)],
        [[9, 2], [9, 30, 2], [9, 30, 31, 2], [9, 30, 31, 32, 2], [40, 2], [40, 41], [41]],
        [[9], [9, 30], [9, 30, 31], [40, 9]],  # one begins another
    ],
    ids=["one beginning", "a long beginning", "one beginning and others", "answers in answers", "without end token"],
)
def test_a_shortlist_goes_by_the_first_token_that_differs(member, candidates):
    model = GitLLM(tiny_image_encoder("clip"), sharpen(tiny_language_model(*member))).eval()
    prompts, image = torch.tensor([[5, 6, 7], [8, 9, 10]]), pixels(2)
    given = {"input_ids": prompts, "pixel_values": image, "candidates": [candidates, candidates[::-1]]}
    full = model.score_candidates(**given).log_likelihood
    for size in (1, 3, len(candidates) - 1):
        short = model.score_candidates(**given, shortlist=size).log_likelihood
        for row in range(2):
            kept = torch.isfinite(short[row])
            expected = likeliest(model, prompts[row], image[row : row + 1], given["candidates"][row], size)
            assert set(kept.nonzero()[:, 0].tolist()) == expected
            torch.testing.assert_close(short[row][kept], full[row][kept], **TOLERANCE)


def test_candidates_that_are_the_same_are_listed_together(llama):
    model, text_encoder = llama
    ids = text_encoder.prompts(["what color?"]).input_ids
    scores = model.score_candidates(ids, None, pixels(1), candidates=[[[5, 6], [5, 6], [5, 6]]], shortlist=2)
    assert torch.isfinite(scores.log_likelihood[0]).tolist() == [True, True, False]
