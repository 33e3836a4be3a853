"""Conversations: whoever asks, the ids are those of training, and what was read before is not read again."""

import io
import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from transformers import DynamicCache

from gitllm_plugin.cli.main import main
from gitllm_plugin.errors import DataError
from gitllm_plugin.host.locate import prepare
from gitllm_plugin.inference.asking import Question
from gitllm_plugin.inference.pipeline import Decoding, Pipeline
from gitllm_plugin.m3it.examples import JsonlExamples
from gitllm_plugin.m3it.from_table import convert_table
from gitllm_plugin.m3it.prompts import build_prompt
from gitllm_plugin.m3it.tree import find_sources
from gitllm_plugin.modeling.remembered import Remembered
from gitllm_plugin.modeling.tokens import TextEncoder
from gitllm_plugin.serving.messages import ChatRequest, Limits, read_request
from gitllm_plugin.web.page import _Asking as Page
from tests.modeling.batches import FAMILY_NAMES, pixels, tiny_model
from tests.serving.kit import data_uri
from tests.tiny_folder import write_tiny_folder

TALK = (("What is it?", "A boat, I think."), ("Which color?", "Red </s>"), ("Is it new?", "No."))
LATER = (("", "A tree"), ("and behind it?", "two  hills"), ("anything else?", "nothing"))
CHAT = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[Q] ' + m['content'] + '\\n' }}"
    "{% else %}{{ m['content'] + eos_token + '\\n' }}{% endif %}{% endfor %}"
)
SHORT = Decoding(max_new_tokens=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(params=["plain", "chat template"])
def pipeline(folder, request):
    plain = Pipeline.from_pretrained(folder, dtype="float32")
    text_encoder = plain.text_encoder
    if request.param == "chat template":
        text_encoder = replace(text_encoder, chat_template=CHAT)
    return replace(plain, conversations=True, text_encoder=text_encoder, remembered=Remembered())


def training_ids(encoder: TextEncoder, talk, system, template, folder) -> list[list[int]]:
    """Prompts' ids of a conversation's file, as a run makes them of it."""
    prepare()
    from gitllm_plugin.datasets.items import ItemMaker

    Image.new("RGB", (40, 30), "red").save(folder / "a.png")
    said = [{"role": r, "content": w} for turn in talk for r, w in zip(("user", "assistant"), turn, strict=True)]
    said[0]["content"] = f"<image>\n{said[0]['content']}"
    said = [*([{"role": "system", "content": system}] if system else []), *said]
    (folder / "chats.json").write_text(json.dumps([{"image": "a.png", "messages": said}]))
    convert_table(folder / "chats.json", folder / "rows")
    maker = ItemMaker(lambda image: image, lambda question, instruction: build_prompt(template, instruction, question))
    texts = [
        text for group in JsonlExamples(find_sources(str(folder / "rows" / "train.jsonl"))) for text in group.texts
    ]
    items = [(maker.prompt_of(text), text.answers[0]) for text in texts]
    batch = encoder.prompts_and_answers(*map(list, zip(*items, strict=True)))
    # In front of what is learnt.
    firsts = [int((labels >= 0).nonzero()[0]) for labels in batch.labels]
    return [row[:first].tolist() for row, first in zip(batch.input_ids, firsts, strict=True)]


@pytest.fixture
def asked(monkeypatch):
    """Ids that models are asked to continue, each answered by nothing."""
    found = []

    def generate(self, model, pixel_values, input_ids, **kwargs):
        found.append(input_ids[0].tolist())
        if streamer := kwargs.get("streamer"):
            streamer.end()
        return torch.zeros(1, 0, dtype=torch.long)

    monkeypatch.setattr(Remembered, "generate", generate)
    return found


def in_messages(talk, system, number):
    parts = [{"type": "image_url", "image_url": {"url": data_uri("red")}}, {"type": "text", "text": talk[0][0]}]
    said = [{"role": r, "content": w} for turn in talk for r, w in zip(("user", "assistant"), turn, strict=True)]
    said[0]["content"] = parts
    return [*([{"role": "system", "content": system}] if system else []), *said[: 2 * number + 1]]


@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize("talk", [TALK, LATER, TALK[:2] + LATER[2:]])
@pytest.mark.parametrize("template", ["article", "plain", "question"])
def test_whoever_asks_the_ids_are_those_of_training(pipeline, talk, system, template, asked, tmp_path):
    pipeline = replace(pipeline, template=template)
    wanted = training_ids(pipeline.text_encoder, talk, system, template, tmp_path)
    picture = Image.new("RGB", (40, 30), "red")
    for number, (question, _) in enumerate(talk):
        before = talk[:number]
        pipeline.answer(picture, question, system, SHORT, before)
        pipeline.answers([Question((picture,), question, system, before)], SHORT)
        list(pipeline.stream(picture, question, system, SHORT, before))
        request = ChatRequest.model_validate({"messages": in_messages(talk, system, number)})
        read = read_request(request, Limits(), pipeline).question(Limits(), 1200)
        pipeline.answers([read], SHORT)
        assert asked == [wanted[number]] * 4
        encoded = pipeline.encode_answer(question, talk[number][1], system, turns=before)
        assert encoded.input_ids[0, : len(wanted[number])].tolist() == wanted[number]
        asked.clear()


def test_the_page_asks_as_training_did(pipeline, asked, tmp_path):
    wanted = training_ids(pipeline.text_encoder, TALK, "Be brief.", "plain", tmp_path)
    page, turns, rest = Page(pipeline, None), [], (4, 1, 0.0, 0.9, 1.0)
    for number, (question, answer) in enumerate(TALK):
        *_, last = page.respond([str(tmp_path / "a.png")], "Be brief.", question, *rest, turns)
        turns = last[3]
        turns[-1] = replace(turns[-1], answer=answer)
        assert asked.pop() == wanted[number]
    alone = replace(pipeline, conversations=False)
    ids = alone.text_encoder.prompts([alone.prompt("Is it new?", "Be brief.")]).input_ids[0].tolist()
    seen = []
    alone._inputs = lambda questions, decoding: seen.append(questions) or exit_early()
    with pytest.raises(Exception, match="enough"):
        list(Page(alone, None).respond([str(tmp_path / "a.png")], "Be brief.", "Is it new?", *rest, turns))
    assert seen[0][0].turns == () and ids


def exit_early():
    raise DataError("enough")


def test_transformers_processor_writes_them_as_training_did(folder, tmp_path):
    from gitllm_plugin.hf.processor import GitLLMProcessor

    processor = GitLLMProcessor.from_pretrained(folder)
    pipeline = Pipeline.from_pretrained(folder, dtype="float32")
    wanted = training_ids(pipeline.text_encoder, TALK, "Be brief.", "plain", tmp_path)
    for number in range(3):
        messages = in_messages(TALK, "Be brief.", number)
        inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True)
        assert inputs["input_ids"][0].tolist() == wanted[number]


def test_the_command_reads_lines_until_an_empty_one(folder, tmp_path, monkeypatch, capsys):
    import gitllm_plugin.host.open_model as open_model

    engine = replace(Pipeline.from_pretrained(folder, dtype="float32"), conversations=True)
    Image.new("RGB", (40, 30), "blue").save(tmp_path / "a.png")
    monkeypatch.setattr(open_model, "open_answering", lambda model: engine)
    monkeypatch.setattr("sys.stdin", io.StringIO("what is it?\nwhich color?\n\nnot read\n"))
    command = ["chat", str(tmp_path / "a.png"), "--model", str(folder), "--max-new-tokens", "5"]
    assert main([*command, "--json"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    picture, five = Image.new("RGB", (40, 30), "blue"), Decoding(max_new_tokens=5)
    assert first["answer"] == engine.answer(picture, "what is it?", decoding=five)
    turns = (("what is it?", first["answer"]),)
    assert second == {
        "question": "which color?",
        "answer": engine.answer(picture, "which color?", None, five, turns),
    }
    engine.conversations = False
    monkeypatch.setattr("sys.stdin", io.StringIO("what is it?\nwhich color?\n"))
    assert main(command) == 0
    printed = capsys.readouterr()
    assert printed.out.split("\n")[1] == engine.answer(picture, "which color?", decoding=five)
    assert "trained on single questions" in printed.err


def test_a_conversation_that_does_not_fit_says_so(pipeline):
    long = (("why? " * 2000, "because"),)
    with pytest.raises(DataError, match="what was said before"):
        pipeline.answer(Image.new("RGB", (9, 9)), "and?", turns=long)


# ---------------------------------------------------------------- what was read before


def prompts_of(encoder, model, image, count=3):
    """Prompts of a conversation whose answers are the model's own."""
    turns, found = [], []
    for number in range(count):
        from gitllm_plugin.m3it.prompts import Prompt

        prompt = Prompt(f"question {number}: what is in it?", turns=turns)
        ids = encoder.prompts([prompt]).input_ids
        tokens = model.generate(ids, None, image, max_new_tokens=5, do_sample=False, **encoder.special_tokens)
        found.append((ids, tokens))
        turns = [*turns, (str(prompt), encoder.decode(tokens)[0] or "nothing")]
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_what_was_read_is_that_of_the_whole(family, dtype):
    model, encoder = tiny_model(family)
    model, image, memory = model.to(dtype).eval(), pixels(1).to(dtype), Remembered()
    reused = []
    for ids, _ in prompts_of(encoder, model, image):
        given = {"max_new_tokens": 1, "do_sample": False, "return_dict_in_generate": False, **encoder.special_tokens}
        scores = {}
        for name, generate in (("whole", model.generate), ("behind", None)):
            kept = []
            note = lambda _, logits: kept.append(logits.float()) or logits  # noqa: E731, B023
            more = {**given, "logits_processor": [note]}
            if generate is None:
                memory.generate(model, image, ids, **more)
            else:
                generate(ids, None, image, **more)
            scores[name] = kept[0]
        torch.testing.assert_close(
            scores["behind"], scores["whole"], rtol=0, atol=2e-5 if dtype == torch.float32 else 0.06
        )
        reused.append(memory.num_reused)
    if model.decoder.shares_images and model.decoder.sliding_window is None:
        assert reused[0] == 0 and 8 < reused[1] < reused[2]
    else:
        assert reused == [0, 0, 0]


def test_answers_of_a_whole_conversation_are_those_without_memory():
    model, encoder = tiny_model("llama")
    image, memory = pixels(1), Remembered()
    for ids, tokens in prompts_of(encoder, model, image, count=5):
        given = {"max_new_tokens": 5, "do_sample": False, **encoder.special_tokens}
        assert memory.generate(model, image, ids, **given).tolist() == tokens.tolist()


def test_another_picture_or_weight_is_read_anew():
    model, encoder = tiny_model("llama")
    memory = Remembered()
    ids = encoder.prompts(["what is it, and why is it there?"]).input_ids
    given = {"max_new_tokens": 3, "do_sample": False, **encoder.special_tokens}

    def read(image):
        tokens = memory.generate(model, image, ids, **given)
        assert tokens.tolist() == model.generate(ids, None, image, **given).tolist()
        return memory.num_reused

    one, other = pixels(2)[:1], pixels(2)[1:]
    assert [read(one), read(one) > 5, read(other), read(one)] == [0, True, 0, 0]
    with torch.no_grad():
        next(model.projection.parameters()).mul_(2)
    assert read(one) == 0
    assert read(one) > 5
    # What stopped in the middle leaves nothing.
    with pytest.raises(RuntimeError, match="stopped"):
        memory.generate(model, one, ids, **given, logits_processor=[stop])
    assert read(one) == 0
    # Beams have rows of their own.
    beams = memory.generate(model, one, ids, **{**given, "num_beams": 2})
    assert beams.tolist() == model.generate(ids, None, one, **{**given, "num_beams": 2}).tolist()


def stop(ids, logits):
    raise RuntimeError("stopped")


def test_caches_can_still_be_cut():
    """What is used of transformers' caches: one that has lost its end is that of the beginning."""
    cache = DynamicCache()
    states = torch.randn(1, 2, 7, 4)
    cache.update(states, states, 0)
    cache.crop(-3)
    assert cache.get_seq_length() == 4 and torch.equal(cache.layers[0].keys, states[:, :, :4])
