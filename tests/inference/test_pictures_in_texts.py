"""Pictures between words, from the files of others to answers: everybody who asks reads what training read."""

import json
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from PIL import Image

from gitllm_plugin.cli.main import main
from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.host import launch
from gitllm_plugin.host.locate import prepare
from gitllm_plugin.inference.asking import Question
from gitllm_plugin.inference.pipeline import Decoding, Pipeline
from gitllm_plugin.m3it.examples import JsonlExamples
from gitllm_plugin.m3it.from_table import FromTable, convert_table
from gitllm_plugin.m3it.shards.format import read_group, write_group
from gitllm_plugin.m3it.tree import find_sources
from gitllm_plugin.modeling.marks import MarksError
from gitllm_plugin.serving.messages import ChatRequest, Limits, read_request
from tests.serving.kit import data_uri
from tests.small_run import write_small_run

COLORS = ("red", "green", "blue")
SHORT = Decoding(max_new_tokens=3)
TALK = [
    ("<image>\nwhat is it?", "a red one"),
    ("is it large?", "no"),
    ("and these?\n<image>\nor <image>?", "green, blue"),
]


@pytest.fixture
def folder(tmp_path):
    for color in COLORS:
        Image.new("RGB", (40, 30), color).save(tmp_path / f"{color}.png")
    return tmp_path


def llava(talk, images=COLORS):
    turns = [{"from": who, "value": said} for pair in talk for who, said in zip(("human", "gpt"), pair, strict=True)]
    return {"image": [f"{color}.png" for color in images], "conversations": turns}


def parts(*given):
    """Parts of a message: colors in capitals are pictures."""
    return [
        {"type": "image", "image": f"{part.lower()}.png"} if part.isupper() else {"type": "text", "text": part}
        for part in given
    ]


def openai_like():
    said = [parts("RED", "what is it?"), "a red one", "is it large?", "no", parts("and these?", "GREEN", "BLUE")]
    roles = ("user", "assistant") * 3
    return [{"role": role, "content": words} for role, words in zip(roles, said, strict=False)]


def rows_of(folder, row, **settings):
    (folder / "chats.json").write_text(json.dumps([row]))
    convert_table(folder / "chats.json", folder / "rows", FromTable(keeps_marks=True, **settings))
    return list(JsonlExamples(find_sources(str(folder / "rows" / "train.jsonl"))))


def texts_of(groups):
    return [text for group in groups for text in group.texts]


def test_marks_stay_where_they_stand_and_turns_know_their_pictures(folder):
    groups = rows_of(folder, llava(TALK))
    texts = texts_of(groups)
    assert [text.question for text in texts] == [question for question, _ in TALK]
    assert [text.images for text in texts] == [1, 1, None]
    assert all(len(group.images) == 3 for group in groups)
    for group in groups:
        assert read_group(dict(write_group(group)), "here") == group


def test_parts_of_messages_are_written_as_llavas_are(folder):
    row = {"messages": [*openai_like(), {"role": "assistant", "content": "green, blue"}]}
    texts = texts_of(rows_of(folder, row))
    asked = ["<image>\nwhat is it?", "is it large?", "and these?\n<image>\n<image>"]
    assert [text.question for text in texts] == asked
    assert [text.images for text in texts] == [1, 1, None]


@pytest.mark.parametrize(
    ("talk", "images", "keeps", "told"),
    [
        (TALK, COLORS[:2], True, "the text has 3 times <image>, and the row 2 images"),
        ([("<image> what?", "a <image>")], COLORS[:2], True, "turn 2 of 'conversations' has an image, and images are"),
        (TALK, COLORS, False, "turn 5 of 'conversations' has an image; .* give --image-places text"),
        ([("<image> a", "b"), ("<image>", "c")], COLORS, True, "2 times <image>, and the row 3 images"),
    ],
)
def test_what_does_not_go_together_is_told(talk, images, keeps, told, folder):
    (folder / "chats.json").write_text(json.dumps([llava(talk, images)]))
    with pytest.raises(DataError, match=told):
        convert_table(folder / "chats.json", folder / "rows", FromTable(keeps_marks=keeps))


def test_the_command_says_where_pictures_stand(folder, capsys):
    (folder / "chats.json").write_text(json.dumps([llava(TALK)]))
    command = ["m3it", "from-messages", str(folder / "chats.json"), str(folder / "rows")]
    assert main([*command, "--image-places", "text"]) == 0
    assert "<image>\\nor <image>?" in (folder / "rows" / "train.jsonl").read_text()
    assert main(command) == 2
    assert "--image-places text" in capsys.readouterr().err


def write_run(folder, row, **model):
    """A run on the rows of one conversation."""
    rows_of(folder, row)
    storage = {"storage": str(folder / "rows" / "train.jsonl")}
    path = write_small_run(
        folder,
        {"model_type": "tiny_llama", "max_images": 3, "image_places": "text", **model},
        max_epoch=1,
        batch_size_train=2,
    )
    options = [f"datasets.m3it.build_info.annotations={json.dumps(dict.fromkeys(('train', 'val', 'test'), storage))}"]
    return path, options


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A run on a conversation, and its model in a folder."""
    folder = tmp_path_factory.mktemp("run")
    for color in COLORS:
        Image.new("RGB", (40, 30), color).save(folder / f"{color}.png")
    runner = launch.train(*write_run(folder, llava(TALK)))
    assert main(["export", str(folder / "output"), str(folder / "model")]) == 0
    return folder, runner


def asked_in_training(folder):
    """The batch of a data set's items, and its prompts."""
    prepare()
    from gitllm_plugin.datasets.collate import collate_groups
    from gitllm_plugin.datasets.items import ItemMaker
    from gitllm_plugin.processors.git_llm_image import GitLLMImageEvalProcessor
    from gitllm_plugin.processors.git_llm_instruction import GitLLMInstructionProcessor

    maker = ItemMaker(GitLLMImageEvalProcessor.from_config({"image_size": 32}), GitLLMInstructionProcessor())
    groups = list(JsonlExamples(find_sources(str(folder / "rows" / "train.jsonl"))))
    return collate_groups([maker.make(group, "here") for group in groups])


def test_a_pipeline_answers_what_the_run_does(exported):
    folder, runner = exported
    pipeline = Pipeline.from_pretrained(folder / "model", dtype="float32")
    assert pipeline.places_pictures and pipeline.conversations
    batch = asked_in_training(folder)
    assert batch["images_seen"] == [1, 1, None]
    model = runner.model.eval()
    wanted = model.generate(batch, max_length=3)
    text = model.encode_texts(batch, batch["text_input"], batch["text_output"])
    marks = model.image_marks(batch, text)
    assert (marks >= 0).sum(1).tolist() == [1, 1, 3] and (marks[:2, 1:] == -1).all()
    pictures = [folder / f"{color}.png" for color in COLORS]
    for number, count in ((0, 1), (1, 1), (2, 3)):
        turns = tuple(TALK[:number])
        given = (TALK[number][0], None, SHORT, turns)
        assert pipeline.answer(pictures[:count], *given) == wanted[number]
        assert list(pipeline.stream(pictures[:count], *given))[-1:] == ([wanted[number]] if wanted[number] else [])
        # From a message, as a server or transformers has it.
        request = {"messages": openai_like()[: 2 * number + 1]}
        for message in request["messages"]:
            if isinstance(message["content"], list):
                message["content"] = [
                    {"type": "image_url", "image_url": {"url": data_uri(p["image"][:-4])}} if "image" in p else p
                    for p in message["content"]
                ]
        read = read_request(ChatRequest.model_validate(request), Limits(), pipeline)
        assert (len(read.pictures), len(read.turns)) == (count, number)
        assert read.text.count("<image>") == TALK[number][0].count("<image>")
    with torch.no_grad():
        together = float(model(batch)["loss"])
    sums = [(float(model(one)["loss"]), model(one)["num_supervised_tokens"]) for one in map(_only(batch), range(3))]
    assert together == pytest.approx(sum(loss * count for loss, count in sums) / sum(c for _, c in sums), rel=1e-5)


def _only(batch):
    def take(number):
        names = ("text_input", "text_output", "instance_id", "images_seen", "question")
        one = {name: [batch[name][number]] for name in names}
        return {**batch, **one, "image_index": batch["image_index"][[number]]}

    return take


def test_tokens_of_pictures_are_counted_as_they_are_read(exported):
    folder, runner = exported
    model, batch = runner.model, asked_in_training(folder)
    text = model.encode_texts(batch, batch["text_input"], batch["text_output"])
    of_a_picture = model.model.tokens_of_image(batch["image"])
    words = int(text.attention_mask.sum())
    assert model.count_tokens(batch) == words + of_a_picture * int(batch["image"].shape[1]) * len(text.input_ids)


def test_rows_without_marks_are_those_of_a_model_of_pictures_in_front(exported):
    folder, runner = exported
    model, batch = runner.model.eval(), asked_in_training(folder)
    plain = {**batch, "text_input": [str(text).replace("<image>", "it") for text in batch["text_input"]]}
    del plain["images_seen"]
    with torch.no_grad():
        places = model(plain)
        encoder = model.text_encoder
        try:
            model.text_encoder = replace(encoder, image_places="front")
            front = model(plain)
        finally:
            model.text_encoder = encoder
    assert torch.equal(places["loss"], front["loss"])


@pytest.mark.parametrize(
    ("question", "pictures", "told"),
    [
        ("what is <image> beside <image>?", 1, "2 times <image>, and there is 1 picture"),
        ("<image>?", 3, "1 times <image>, and there are 3 pictures"),
        ("<image> <image> <image>", 2, "3 times <image>, and there are 2 pictures"),
    ],
)
def test_a_question_with_other_marks_than_pictures_is_told(question, pictures, told, exported):
    folder, runner = exported
    pipeline = Pipeline.from_pretrained(folder / "model", dtype="float32")
    paths = [folder / f"{color}.png" for color in COLORS[:pictures]]
    with pytest.raises(MarksError, match=told):
        pipeline.answer(paths, question)
    batch = asked_in_training(folder)
    batch["text_input"][1] = question
    batch["images_seen"] = [1, pictures, None]
    with pytest.raises(MarksError, match=rf"example '.*/2': the text has {told}"):
        runner.model(batch)


def test_what_was_written_stays_a_word_where_pictures_are_in_front(exported):
    folder, _ = exported
    pipeline = Pipeline.from_pretrained(folder / "model", dtype="float32")
    pipeline.text_encoder = replace(pipeline.text_encoder, image_places="front")
    asked = "what does <image> mean?"
    assert pipeline.text_encoder.prompts([asked]).marks == ()
    pipeline.answer([folder / "red.png"], asked, decoding=SHORT)
    (line,) = pipeline.text_encoder.tokenizer.batch_decode(pipeline.text_encoder.prompts([asked]).input_ids)
    assert "<image>" in line


def test_answers_of_a_batch_are_those_of_each(exported):
    folder, _ = exported
    pipeline = Pipeline.from_pretrained(folder / "model", dtype="float32")
    red, green = folder / "red.png", folder / "green.png"
    questions = [
        Question((red, green), "is <image> as <image>?"),
        Question((red, green), "are they alike?"),
        Question((red,), "what is <image> like?"),
    ]
    together = pipeline.answers(questions, SHORT)
    assert together == [pipeline.answers([question], SHORT)[0] for question in questions]


def test_transformers_processor_and_model_read_the_same(exported):
    from gitllm_plugin.hf.model import GitLLMForConditionalGeneration
    from gitllm_plugin.hf.processor import GitLLMProcessor

    folder, _ = exported
    pipeline = Pipeline.from_pretrained(folder / "model", dtype="float32")
    processor = GitLLMProcessor.from_pretrained(folder / "model")
    model = GitLLMForConditionalGeneration.from_pretrained(folder / "model", dtype=torch.float32)
    conversation = openai_like()
    for message in conversation:
        if isinstance(message["content"], list):
            for part in message["content"]:
                if part["type"] == "image":
                    part["image"] = str(folder / part["image"])
    inputs = processor.apply_chat_template(conversation, tokenize=True, return_dict=True)
    new = model.generate(**inputs, max_new_tokens=3)[:, inputs["input_ids"].shape[1] :]
    asked = "and these?\n<image>\n<image>"
    pictures = [folder / f"{color}.png" for color in COLORS]
    wanted = pipeline.answer(pictures, asked, None, SHORT, (TALK[0], TALK[1]))
    assert processor.post_process_image_text_to_text(new)[0].strip() == wanted


def test_lines_of_a_chat_show_one_picture_after_another(exported, monkeypatch, capsys):
    import io

    folder, _ = exported
    monkeypatch.setattr("sys.stdin", io.StringIO("<image> what?\nand <image>?\nwhy?\n\n"))
    paths = [str(folder / f"{color}.png") for color in COLORS[:2]]
    command = ["chat", *paths, "--model", str(folder / "model"), "--max-new-tokens", "3", "--json"]
    assert main(command) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.parametrize("engine", ["transformers", "llama.cpp", "vllm"])
def test_others_engines_refuse_it(engine, exported, tmp_path, capsys):
    folder, _ = exported

    def refuse():
        if engine == "transformers":
            return main(["export", str(folder / "output"), str(tmp_path / "stock"), "--to", "transformers"])
        if engine == "llama.cpp":
            return main(["export", str(folder / "output"), str(tmp_path / "gguf"), "--to", "llama.cpp"])
        assert main(["merge", str(folder / "model"), str(tmp_path / "merged")]) == 0
        from gitllm_plugin.vllm.checks import check_folder

        check_folder(tmp_path / "merged")
        return 0

    with pytest.raises(ConfigError, match="image_places=text") if engine == "vllm" else nullcontext():
        assert refuse() == 2 and "image_places=text" in capsys.readouterr().err
    assert not (tmp_path / "stock").exists() and not (tmp_path / "gguf").exists()


@pytest.mark.parametrize("asked", ["what is <image> beside <image>?", "<image><image>", "<image> <image> <image>?"])
@pytest.mark.parametrize("turns", [None, [["and it?", "so"], ["a", "b"]]], ids=["a question", "a conversation"])
def test_rows_that_a_model_cannot_place_are_found_before_a_run(asked, turns, folder, caplog):
    path = write_small_run(folder, {"model_type": "tiny_llama", "image_places": "text"}, max_epoch=1, test_splits=[])
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    rows[4] |= {"inputs": asked, **({} if turns is None else {"turns": turns})}
    rows[5] |= {"inputs": "as <image> is, what color?"}  # of one picture
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"cannot be read by this model") as refused:
        launch.train(path)
    assert f"train.jsonl:5: example '{rows[4]['id']}" in str(refused.value)
    assert f"{asked.count('<image>')} times <image>, and there is 1 picture" in str(refused.value)
    runner = launch.train(path, ["datasets.m3it.on_error=skip"])
    steps = [json.loads(line) for line in (runner.output_dir / "metrics.jsonl").read_text().splitlines()]
    assert sum(step["samples"] for step in steps if "samples" in step) == 23
    assert f"{1 if turns is None else 3} rows or texts are left out" in caplog.text
    # Where pictures are in front, it is a word.
    assert launch.train(path, ["model.image_places=front", "run.output_dir=" + str(folder / "front")])


def test_two_answers_to_each_turn_are_compared_behind_their_pictures(exported):
    folder, runner = exported
    model = runner.model.eval()
    batch = {**asked_in_training(folder), "text_rejected": ["a blue one", "yes it is", "none"]}
    with torch.no_grad():
        both = model.pair_log_likelihoods(batch)
        for number in range(3):
            one = _only(batch)(number)
            for key, answers in (("chosen", "text_output"), ("rejected", "text_rejected")):
                found = model({**one, "text_output": [batch[answers][number]]})
                wanted = -float(found["loss"]) * found["num_supervised_tokens"]
                assert float(both[key][number]) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("thumbnail", [True, False])
def test_pictures_in_tiles_stand_at_their_marks(thumbnail, exported):
    folder, _ = exported
    pipeline = Pipeline.from_pretrained(folder / "model", dtype="float32")
    pipeline.transform = replace(pipeline.transform, max_tiles=4, thumbnail=thumbnail)
    Image.new("RGB", (128, 64), "teal").save(folder / "wide.png")
    wide, red = folder / "wide.png", folder / "red.png"
    questions = [Question((wide, red), "is <image> as <image>?"), Question((red, wide), "is <image> as <image>?")]
    together = pipeline.answers(questions, SHORT)
    assert together == [pipeline.answers([question], SHORT)[0] for question in questions]
