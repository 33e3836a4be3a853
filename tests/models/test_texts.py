"""Texts through LAVIS's functions and the pipeline: where answers end, and what too long prompts lose."""

import json

import pytest
import torch
from PIL import Image
from tokenizers import AddedToken
from transformers import GenerationConfig

import gitllm_plugin
from gitllm_plugin.errors import DataError

gitllm_plugin.register()

from gitllm_plugin.inference.attention import answer_attention  # noqa: E402
from gitllm_plugin.inference.pipeline import Decoding, Pipeline  # noqa: E402
from gitllm_plugin.m3it.prompts import TEMPLATES, build_prompt, find_shortenable  # noqa: E402
from gitllm_plugin.modeling.tiny import tiny_language_model, tiny_tokenizer  # noqa: E402
from gitllm_plugin.models.git_llm import GitLLMForLavis  # noqa: E402
from tests.tiny_folder import write_tiny_folder  # noqa: E402

PICTURE = Image.linear_gradient("L").convert("RGB")
LONG = "is the shape in the image a red circle or a blue one? " * 40


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    """A folder of a language model whose turns end with tokens that its tokenizer does not name."""
    folder = tmp_path_factory.mktemp("language_model")
    tokenizer, model = tiny_tokenizer(), tiny_language_model("llama")
    tokenizer.add_tokens([AddedToken("<|turn_over|>"), AddedToken("<|over|>")], special_tokens=True)
    model.resize_token_embeddings(len(tokenizer))
    model.generation_config = GenerationConfig(eos_token_id=[2, len(tokenizer) - 1, len(tokenizer) - 2])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(language_model):
    return build(language_model)


def build(language_model):
    config = {"language_model": str(language_model), "image_encoder": "tiny:clip"}
    return GitLLMForLavis.from_config({**config, "trainable": "proj", "dtype": "float32"}).eval()


@pytest.fixture(scope="module")
def pipeline(language_model, tmp_path_factory):
    folder = write_tiny_folder(tmp_path_factory.mktemp("model") / "exported", str(language_model))
    return Pipeline.from_pretrained(folder, dtype="float32")


def saying(git_llm, monkeypatch, *ids):
    """Let a model say these tokens, in turn, and count how many it said."""
    said = []
    forward = git_llm.language_model.get_output_embeddings().forward

    def head(hidden):
        logits = forward(hidden)
        said.append(ids[min(len(said), len(ids) - 1)])
        return logits + 1e4 * torch.nn.functional.one_hot(torch.tensor(said[-1]), logits.shape[-1])

    monkeypatch.setattr(git_llm.language_model.get_output_embeddings(), "forward", head)
    return said


@pytest.mark.parametrize("end", ["</s>", "<|turn_over|>", "<|over|>"])
def test_answers_end_with_every_end_token_in_every_way_in(model, pipeline, monkeypatch, end):
    tokenizer = model.text_encoder.tokenizer
    word, last = tokenizer(" red").input_ids[-1], tokenizer.convert_tokens_to_ids(end)
    expected = tokenizer.decode([word, word]).strip()
    batch = {"image": torch.zeros(1, 3, 32, 32), "text_input": ["what color? Answer:"]}
    decoding = Decoding(max_new_tokens=9)
    ways = [
        (model.model, lambda: model.generate(batch, max_length=9)),
        (model.model, lambda: model.predict_answers(batch, max_len=9)),
        (pipeline.model, lambda: [pipeline.answer(PICTURE, "what color?", decoding=decoding)]),
        (pipeline.model, lambda: list(pipeline.stream(PICTURE, "what color?", decoding=decoding))[-1:]),
    ]
    for git_llm, way in ways:
        with monkeypatch.context() as patch:
            said = saying(git_llm, patch, word, word, last)
            assert way() == [expected] and len(said) == 3


def test_a_folder_keeps_the_end_tokens(pipeline, model):
    expected = model.text_encoder.special_tokens
    assert pipeline.text_encoder.special_tokens == expected and len(expected["eos_token_id"]) == 3


def test_ends_of_the_generation_config_are_read_also_where_it_names_one(language_model):
    path = language_model / "generation_config.json"
    before = path.read_text()
    number = json.loads(before)["eos_token_id"][-1]
    path.write_text(json.dumps({"eos_token_id": number}))
    try:
        built = build(language_model)
    finally:
        path.write_text(before)
    assert built.text_encoder.special_tokens["eos_token_id"] == [2, number]


# -------------------------------------------------------------------------------------------- prompts that are too long


@pytest.fixture
def seen(model, monkeypatch):
    """What the model reads: prompts, and prompts with answers, as texts."""
    texts, tokenizer = [], model.text_encoder.tokenizer

    def keep(name):
        own = getattr(model.model, name)

        def asked(*args, **kwargs):
            texts.extend(tokenizer.batch_decode(kwargs["input_ids"], skip_special_tokens=True))
            return own(*args, **kwargs)

        monkeypatch.setattr(model.model, name, asked)

    for name in ("forward", "generate", "score_candidates"):
        keep(name)
    return texts


def asked_in_all_ways(model, seen, samples, **settings):
    """Prompts as they are read when answers are learnt, written and chosen."""
    seen.clear()
    if "prompt" not in samples:
        model({**samples, "text_output": ["red"]})
        seen[:] = [text.removesuffix(" red") for text in seen]
    model.predict_answers(samples, max_len=3, **settings)
    model.predict_answers(samples, inference_method="rank", answer_list=["red", "blue"], **settings)
    return [text for text in seen if "blue" not in text[-6:]]


IMAGE = torch.zeros(1, 3, 32, 32)


@pytest.mark.parametrize("blank", ["", "\n", "\u00a0\t ", "\u3000"])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    ("template", "mark"), [("article", " ##Answer:"), ("plain", " Answer:"), ("heron", "\n##gpt:"), ("question", "")]
)
def test_the_end_of_the_question_is_lost(model, seen, template, mark, known, blank):
    prompt = build_prompt(template, "Answer.", LONG + blank)
    samples = {"image": IMAGE, "text_input": [prompt], **({"question": [blank + LONG + blank]} if known else {})}
    before = model.num_truncated_prompts
    read = asked_in_all_ways(model, seen, samples)
    assert len(read) == 3 and model.num_truncated_prompts == before + 3
    for text in read:
        assert text.endswith(mark) and prompt.startswith(text.removesuffix(mark).strip()) and len(text) > 200
        assert text.startswith(prompt[: prompt.index("is the shape")])


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(("template", "mark"), [("article", " ##Question: ##Answer:"), ("plain", " Answer:")])
def test_a_caption_row_loses_the_end_of_its_instruction(model, seen, template, mark, known):
    prompt = build_prompt(template, "Describe all that is in the picture. " * 40, "")
    samples = {"image": IMAGE, "text_input": [prompt], **({"question": [""]} if known else {})}
    for text in asked_in_all_ways(model, seen, samples):
        assert " ".join(text.split()).endswith(mark) and len(text) > 200


@pytest.mark.parametrize(
    ("prompt", "front", "mark"),
    [
        ("Question: {} Short answer:", "Question: ", " Short answer:"),
        ("Look and say {} in one word", "Look and say ", " in one word"),
        ("{}", "", ""),
    ],
)
@pytest.mark.parametrize("template", TEMPLATES)
def test_what_stands_around_a_question_by_lavis_prompt_stays(model, seen, prompt, front, mark, template):
    text = build_prompt(template, "Answer.", LONG)
    samples = {"image": IMAGE, "text_input": [text]}
    for read in asked_in_all_ways(model, seen, samples, prompt=prompt)[1:]:
        inner = text[text.rindex("?") + 1 :]
        assert read.startswith(front + text[:20]) and read.endswith(inner + mark) and len(read) > 200


def test_a_question_with_several_weighted_answers_is_shortened(model, seen):
    questions = ["is it red?", LONG]
    batch = {
        "image": torch.zeros(2, 3, 32, 32),
        "text_input": [build_prompt("article", None, question) for question in questions],
        "question": questions,
        "answer": ["yes", "no", "maybe"],
        "n_answers": torch.tensor([1, 2]),
        "weight": torch.tensor([1.0, 0.5, 0.5]),
    }
    model(batch)
    assert seen[0].endswith("is it red? ##Answer: yes")
    assert seen[1].endswith(" ##Answer: no") and seen[2].endswith(" ##Answer: maybe")


def test_captions_behind_the_models_own_prompt_are_learnt_whole(model, seen):
    with pytest.raises(DataError, match="leaves no room"):
        model({"image": IMAGE, "text_input": [LONG]})
    model({"image": IMAGE, "text_input": ["a red circle"]})
    assert seen == [" a red circle"]


@pytest.mark.parametrize("new_tokens", [4, 30])
@pytest.mark.parametrize("question", ["why " * 20000, "\t" + LONG + "\u00a0\n"])
def test_a_figure_is_made_of_the_prompt_that_was_answered(pipeline, monkeypatch, question, new_tokens):
    decoding, asked = Decoding(max_new_tokens=new_tokens), []
    generate = pipeline.model.generate
    monkeypatch.setattr(
        pipeline.model, "generate", lambda *a, **k: asked.append(k["input_ids"][0].tolist()) or generate(*a, **k)
    )
    list(pipeline.stream([PICTURE], question, None, decoding))
    text = pipeline.encode_answer(question, "red", None, pipeline.pixels([PICTURE]), decoding)
    assert text.input_ids[0, : len(asked[0])].tolist() == asked[0]
    for answer in ("red", "one that takes many more tokens than what was asked for, " * 2):
        assert answer_attention(pipeline, [PICTURE], question, answer, None, decoding).tokens


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("instruction", ["Look at ##Question: marks.", "", "a {question} b", None])
@pytest.mark.parametrize(
    "question", ["what is it?", "Answer:", "##Answer:", "##Question: a ##Answer:", " x\n y\t", "x"]
)
def test_a_question_is_found_in_its_prompt(template, instruction, question):
    prompt = build_prompt(template, instruction, question)
    place = find_shortenable(prompt, question)
    assert prompt[place] == question.strip()
    assert not prompt[place.stop :] or prompt[place.stop :] in (" ##Answer:", " Answer:", "\n##gpt:")
