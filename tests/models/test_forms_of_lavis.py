"""What users of LAVIS's instruction-tuned models write: prompts with places, options of the search, videos, answers."""

import pickle
import string
import sys
import types

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch.utils.data import DataLoader, default_collate

import gitllm_plugin
from gitllm_plugin.errors import ConfigError, DataError

gitllm_plugin.register()

from lavis.datasets.datasets.base_dataset import BaseDataset  # noqa: E402
from lavis.models import load_model  # noqa: E402
from lavis.models.blip2_models.blip2_t5 import Blip2T5  # noqa: E402

from gitllm_plugin.m3it.prompts import TEMPLATES, Prompt  # noqa: E402
from gitllm_plugin.models import generation  # noqa: E402
from gitllm_plugin.models.git_llm import GitLLMForLavis  # noqa: E402
from gitllm_plugin.models.prompts import with_context, with_filled_prompts  # noqa: E402
from gitllm_plugin.models.samples import pixels_of, with_one_answer_each  # noqa: E402
from gitllm_plugin.processors.git_llm_instruction import GitLLMInstructionProcessor  # noqa: E402

ASKED = ["what does the sign say?", "who {wrote} it?", "is {} empty?"]
OCR = [["STOP"], ["A.", "Poe", "1845"], [f"w{n}" for n in range(40)]]
CHOICES = [["left", "right"], ["Poe", "Bely", "Lem"], ["yes", "no"]]


@pytest.fixture(scope="module")
def model():
    return load_model("git_llm", "tiny_llama", is_eval=True)


@pytest.fixture
def batch():
    return {"image": torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2)), "text_input": list(ASKED)}


def instruct_blip_answers(samples, prompt):
    """The lines of git main's ``Blip2VicunaInstruct.predict_answers``, copied as a double: PyPI's release has none."""
    texts = samples["text_input"]
    if prompt.count("{}") != 2:
        return [prompt.format(question) for question in texts]
    if "ocr_tokens" in samples:
        return [prompt.format(", ".join(samples["ocr_tokens"][i][:30]), texts[i]) for i in range(len(texts))]
    listed = [
        " ".join(f"({string.ascii_lowercase[j]}) {choice}" for j, choice in enumerate(samples["choices"][i]))
        for i in range(len(texts))
    ]
    return [prompt.format(texts[i], listed[i]) for i in range(len(texts))]


@pytest.mark.parametrize(
    ("prompt", "more"),
    [
        ("Question: {} Short answer:", {}),
        ("Question: {} Short answer:", {"ocr_tokens": OCR}),
        ("Words: {}. Question: {} Short answer:", {"ocr_tokens": OCR}),
        ("Question: {} Options: {}. Answer:", {"choices": CHOICES}),
        ("{}{}", {"ocr_tokens": OCR, "choices": CHOICES}),
    ],
)
def test_templates_of_answers_are_filled_as_in_the_host(batch, prompt, more):
    samples = {**batch, **more}
    filled = with_filled_prompts(samples, "", prompt)
    assert filled["prompt"] == instruct_blip_answers(samples, prompt)
    for text, place, question in zip(filled["prompt"], filled["shortenable"], ASKED, strict=True):
        assert text[place] == question


def test_what_was_filled_in_is_no_template(model, batch, monkeypatch):
    seen = []
    encode = model.encode_prompts
    monkeypatch.setattr(
        model, "encode_prompts", lambda s, prompts, n: (seen.append(list(prompts)), encode(s, prompts, n))[1]
    )
    model.predict_answers({**batch, "ocr_tokens": OCR}, prompt="Q: {} A:", max_len=2)
    assert seen == [[f"Q: {text} A:" for text in ASKED]]  # the host fills the {} of the third question with words


@pytest.mark.parametrize(
    ("prompt", "more", "wanted"),
    [
        ("Words: {}. Caption:", {"ocr_tokens": OCR}, [f"Words: {', '.join(words[:30])}. Caption:" for words in OCR]),
        (["a {}", "b", "c {}"], {"ocr_tokens": OCR}, ["a STOP", "b", f"c {', '.join(OCR[2][:30])}"]),
        ("a photo of {x}", {}, ["a photo of {x}"] * 3),
        ("see {}", {}, ["see {}"] * 3),  # nothing to fill it with
    ],
)
def test_captions_take_words_of_the_picture(batch, prompt, more, wanted):
    samples = {"image": batch["image"], "prompt": prompt, **more}
    filled = with_filled_prompts(samples, "")
    assert list([filled["prompt"]] * 3 if isinstance(filled["prompt"], str) else filled["prompt"]) == wanted


def test_the_models_own_prompt_takes_them_too(batch):
    filled = with_filled_prompts({"image": batch["image"], "ocr_tokens": OCR}, "it says {}:")
    assert filled["prompt"][0] == "it says STOP:"


def test_several_places_take_a_list_of_texts(batch):
    samples = {
        "image": batch["image"],
        "prompt": "{} then {} then {}",
        "text_input": [list("abc"), list("def"), list("ghi")],
    }
    assert with_filled_prompts(samples, "")["prompt"] == ["a then b then c", "d then e then f", "g then h then i"]


@pytest.mark.parametrize(
    ("prompt", "more"),
    [("{} {}", {}), ("{} {} {}", {"ocr_tokens": OCR}), ("{a} {}", {}), ("{0} {}", {}), ("{", {"prompt": "{} {"})],
)
def test_places_without_anything_for_them_are_refused(model, batch, prompt, more):
    with pytest.raises(DataError, match=r"has . places \{\} and the batch brings|is no template"):
        model.generate({**batch, "prompt": prompt, **more}, max_length=2)


def test_what_the_host_puts_in_front_of_a_prompt(batch):
    samples = {**batch, "prompt": "Q: {}", "context": ["a book", "", "x"], "history": ["", "hi", "yo"]}
    filled = with_context(with_filled_prompts(samples, ""), "")
    assert filled["prompt"] == [
        "context: a book. Q: " + ASKED[0],
        "dialog history: hi\nQ: " + ASKED[1],
        "dialog history: yo\ncontext: x. Q: " + ASKED[2],
    ]
    assert [text[place] for text, place in zip(filled["prompt"], filled["shortenable"], strict=True)] == ASKED


# Options of the search


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (
            {"use_nucleus_sampling": True, "top_p": 0.5, "temperature": 2.0},
            {"do_sample": True, "top_p": 0.5, "top_k": 0},
        ),
        ({"use_nucleus_sampling": True, "top_k": 7, "num_captions": 3}, {"top_k": 7, "num_return_sequences": 3}),
        (
            {"use_nucleus_sampling": True, "num_beams": 4, "length_penalty": 2.0},
            {"num_beams": 4, "length_penalty": 2.0},
        ),
        ({"num_beams": 5, "length_penalty": -1.0, "num_captions": 5}, {"length_penalty": -1.0, "do_sample": False}),
        ({"repetition_penalty": 1.5, "max_length": 9, "min_length": 3}, {"max_new_tokens": 9, "min_new_tokens": 3}),
    ],
)
def test_options_of_the_host_reach_the_search(model, batch, monkeypatch, options, wanted):
    asked = {}

    def search(**given):
        asked.update(given)
        return torch.zeros(3, 1, dtype=torch.long)

    monkeypatch.setattr(model.model, "generate", search)
    model.generate(batch, **options)
    assert {name: asked[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_p": 0.4}, "top_p is 0.4, which has no effect without use_nucleus_sampling"),
        ({"top_k": 5, "num_beams": 3}, "top_k is 5, which has no effect without use_nucleus_sampling"),
        ({"temperature": 0.7}, "temperature is 0.7, which has no effect"),
        ({"length_penalty": 0.0}, "length_penalty is 0.0, which has no effect without num_beams above 1"),
        ({"num_captions": 3}, "num_captions is 3, more than num_beams, which is 1"),
        ({"num_captions": 3, "num_beams": 2, "use_nucleus_sampling": True}, "num_captions is 3, more than num_beams"),
        ({"num_beams": 0}, "num_beams is 0, expected 1 or more"),
        ({"max_length": 0}, "max_length is 0"),
        ({"min_length": 5, "max_length": 4}, "min_length is 5, expected 0 to max_length, which is 4"),
        ({"use_nucleus_sampling": True, "top_p": 1.5}, "top_p is 1.5, expected above 0 and at most 1"),
        ({"use_nucleus_sampling": True, "temperature": 0.0}, "temperature is 0.0, expected above 0"),
        ({"use_nucleus_sampling": True, "top_k": -1}, "top_k is -1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
    ],
)
def test_options_without_effect_are_refused(model, batch, options, message):
    with pytest.raises(ConfigError, match=message):
        model.generate(batch, **options)


def test_options_change_what_is_written(model, batch):
    def write(**options):
        torch.manual_seed(0)
        return model.generate(batch, max_length=8, **options)

    assert write(use_nucleus_sampling=True, top_k=1) == write()  # the likeliest token alone
    assert write(use_nucleus_sampling=True, top_p=1e-6) == write()
    assert write(use_nucleus_sampling=True, temperature=5.0, top_p=1.0) != write()
    assert len(write(use_nucleus_sampling=True, num_captions=2)) == 6
    assert len(write(use_nucleus_sampling=True, num_beams=3, num_captions=2)) == 6
    assert write(num_beams=3) == write(num_beams=3, length_penalty=1.0, top_p=0.9, temperature=1.0)  # the host's own


def test_answers_take_a_length_penalty_and_refuse_what_is_not_theirs(model, batch, monkeypatch):
    asked = {}
    monkeypatch.setattr(model, "generate", lambda samples, **given: asked.update(given) or ["x"] * 3)
    model.predict_answers(batch, num_beams=2, length_penalty=-1.0, top_p=None)
    assert asked["length_penalty"] == -1.0
    for unknown in ({"num_captions": 2}, {"apply_lemmatizer": True}, {"temprature": 1.0}):
        (name,) = unknown
        with pytest.raises(ConfigError, match=f"has no {name}; it takes .*length_penalty"):
            model.predict_answers(batch, **unknown)


def test_lemmas_are_spacys_or_refused(model, batch, monkeypatch):
    monkeypatch.setattr(model, "generate", lambda samples, **given: ["two dogs running", "red", ""])
    generation._parser.cache_clear()
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(ConfigError, match="apply_lemmatizer needs spaCy and its model: pip install spacy"):
        model.predict_answers({**batch, "apply_lemmatizer": True})

    # A double of spaCy's tokens, which is not installed here: what the host's own method makes of them.
    kinds = {"dogs": ("dog", "NOUN"), "running": ("run", "VERB"), "two": ("2", "NUM"), "red": ("Red", "ADJ")}
    tokens = {word: types.SimpleNamespace(text=word, lemma_=lemma, pos_=kind) for word, (lemma, kind) in kinds.items()}

    def load(name):
        return lambda text: [tokens[word] for word in text.split()]

    monkeypatch.setitem(sys.modules, "spacy", types.SimpleNamespace(load=load))
    found = model.predict_answers({**batch, "apply_lemmatizer": True})
    host = types.SimpleNamespace(lemmatizer=load(""))
    assert found == Blip2T5._lemmatize(host, ["two dogs running", "red", ""]) == ["two dog run", "red", ""]
    generation._parser.cache_clear()


# Videos


@pytest.mark.parametrize("key", ["video", "image"])
@pytest.mark.parametrize("frames", [2, 4, 5])
def test_videos_of_the_host_have_their_channels_in_front(key, frames):
    clips = torch.randn(2, 3, frames, 8, 8)
    assert torch.equal(pixels_of({key: clips}), clips.transpose(1, 2))
    ours = clips.transpose(1, 2)
    assert torch.equal(pixels_of({key: ours}), ours)


@pytest.mark.parametrize("shape", [(2, 3, 3, 8, 8), (2, 4, 4, 8, 8), (2, 3, 8)])
def test_a_video_that_may_be_both_or_none_is_refused(shape):
    with pytest.raises(DataError, match=r"it may be \[U, F, 3, H, W\], or LAVIS's \[U, 3, F, H, W\]"):
        pixels_of({"video": torch.zeros(shape)})


def test_three_pictures_and_features_stay_as_they_are():
    for shape in ((2, 3, 3, 8, 8), (2, 3, 1, 17, 64), (2, 3, 8, 8)):
        pixels = torch.randn(shape)
        assert pixels_of({"image": pixels}) is pixels
    assert pixels_of({}) is None


def test_a_video_is_answered_as_its_frames(batch):
    config = OmegaConf.load(GitLLMForLavis.default_config_path("tiny_llama")).model
    model = GitLLMForLavis.from_config(OmegaConf.merge(config, {"max_images": 2})).eval()
    clips = torch.randn(3, 3, 2, 32, 32)
    asked = {"text_input": batch["text_input"], "text_output": ["a", "b", "c"]}
    with torch.no_grad():
        losses = [
            model({**asked, **pixels})["loss"]
            for pixels in ({"video": clips}, {"image": clips}, {"image": clips.transpose(1, 2)})
        ]
    assert losses[0] == losses[1] == losses[2]
    assert model.generate({"video": clips, **batch, "image": None}, max_length=4) == model.generate(
        {**batch, "image": clips.transpose(1, 2)}, max_length=4
    )


# Answers that a data set put through the processor of questions


class Dialogues(BaseDataset):
    """A double of git main's ``LLaVA150kInstructDataset``, which PyPI's release lacks: one processor for both sides."""

    def __init__(self, vis_processor, text_processor):
        self.vis_processor, self.text_processor = vis_processor, text_processor
        self.annotation = [("what is it?", "a teapot"), ("", "Two cats.\nOne sleeps. "), ("who?", "")]

    def __len__(self):
        return len(self.annotation)

    def __getitem__(self, index):
        asked, answer = self.annotation[index]
        return {
            "image": self.vis_processor(Image.new("RGB", (9, 9))),
            "text_input": self.text_processor(asked),
            "text_output": self.text_processor(answer),
        }

    def collater(self, samples):
        return default_collate(samples)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("workers", [0, 1])
def test_answers_are_never_wrapped_into_the_template(model, template, workers):
    processor = GitLLMInstructionProcessor(template, None)
    data = Dialogues(lambda picture: torch.ones(3, 32, 32), processor) if not workers else Dialogues(_ones, processor)
    (batch,) = DataLoader(data, batch_size=3, num_workers=workers, collate_fn=data.collater)
    read = with_one_answer_each(batch, "", list)
    assert read["text_output"] == ["a teapot", "Two cats.\nOne sleeps.", ""]
    assert read["text_input"] == [processor(asked) for asked, _ in data.annotation]
    plain = {**batch, "text_output": ["a teapot", "Two cats.\nOne sleeps.", ""]}
    with torch.no_grad():
        assert model(batch)["loss"] == model(plain)["loss"]


SENTENCES = ["a dog runs", "two {people} sit", "nobody is there"]


def entailment(processor):
    """A double of a batch of git main's ``SNLIVisualEntialmentInstructDataset``, whose prompt is processed too."""
    return {
        "image": torch.ones(3, 3, 32, 32),
        "text_input": [processor(sentence) for sentence in SENTENCES],
        "prompt": [processor("based on the given the image is {} true?") for _ in SENTENCES],
        "label": ["no", "maybe", "yes"],
    }


@pytest.mark.parametrize("template", TEMPLATES)
def test_one_template_is_not_put_into_another(model, template):
    processor = GitLLMInstructionProcessor(template, None)
    asked = [processor(f"based on the given the image is {sentence} true?") for sentence in SENTENCES]
    batch = entailment(processor)
    assert with_filled_prompts(batch, "")["prompt"] == asked
    # Nor the text processor's into run.prompt, which stands in its place.
    texts = {"image": batch["image"], "text_input": batch["text_input"]}
    filled = with_filled_prompts(texts, "", "Question: {} Short answer:")
    assert filled["prompt"] == [f"Question: {sentence} Short answer:" for sentence in SENTENCES]
    assert [text[place] for text, place in zip(filled["prompt"], filled["shortenable"], strict=True)] == SENTENCES
    # Trained on, the labels are the answers.
    plain = {"image": batch["image"], "text_input": asked, "text_output": batch["label"]}
    with torch.no_grad():
        assert model(batch)["loss"] == model(plain)["loss"]


@pytest.mark.parametrize("labels", [[2, 0, 1], torch.tensor([2, 0, 1])])
def test_classes_are_asked_for_with_the_filled_prompt(model, monkeypatch, labels):
    monkeypatch.setattr(model, "class_names", ["no", "maybe", "yes"])
    processor = GitLLMInstructionProcessor()
    batch = {**entailment(processor), "label": labels}
    plain = {**batch, "prompt": [processor(f"based on the given the image is {each} true?") for each in SENTENCES]}
    del plain["text_input"]
    assert torch.equal(model.predict(batch)["predictions"], model.predict(plain)["predictions"])
    with torch.no_grad():
        assert model(batch)["loss"] == model({**batch, "label": ["yes", "no", "maybe"]})["loss"]


def _ones(picture):
    return torch.ones(3, 32, 32)


def test_captions_and_candidates_are_no_prompts_either(model, batch):
    processor, images = GitLLMInstructionProcessor(), {"image": batch["image"]}
    captions = ["a red square", "no", "two dogs"]
    wrapped = [processor(caption) for caption in captions]
    with torch.no_grad():
        assert model({**images, "text_input": wrapped})["loss"] == model({**images, "text_input": captions})["loss"]
    asked = {**images, "prompt": "it is"}
    assert torch.equal(model.predict_class(asked, wrapped), model.predict_class(asked, captions))


@pytest.mark.parametrize("question", ["how many?", "", "  spaces  "])
def test_a_prompt_is_a_text_that_travels(question):
    prompt = GitLLMInstructionProcessor()(question)
    again = pickle.loads(pickle.dumps(prompt))
    assert isinstance(again, Prompt) and again == prompt and again.question == question.strip()
    assert type(prompt.upper()) is str


def test_questions_within_conversations_are_not_put_into_templates():
    text = Prompt("and now?", "and now?", [("what is it?", "a boat")])
    samples = {"text_input": [text], "prompt": ["Question: {}"]}
    with pytest.raises(DataError, match="questions within conversations"):
        with_filled_prompts(samples, "")
    assert with_filled_prompts({"text_input": [text]}, "")["text_input"][0].turns == (("what is it?", "a boat"),)
