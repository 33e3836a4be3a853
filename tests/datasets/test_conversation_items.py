"""Items of conversations: each prompt knows what was said before it, and a whole run learns of them."""

import json

import orjson
from PIL import Image

from gitllm_plugin import Pipeline
from gitllm_plugin.common.run_files import LATEST
from gitllm_plugin.common.weights import read_checkpoint
from gitllm_plugin.datasets.items import ItemMaker
from gitllm_plugin.host import launch
from gitllm_plugin.host.export import export_run
from gitllm_plugin.host.open_model import open_pipeline
from gitllm_plugin.m3it.from_table import convert_table
from gitllm_plugin.m3it.group import Group, Text
from gitllm_plugin.m3it.prompts import Prompt, build_prompt
from tests.small_run import write_small_run

TALK = (("What is it?", "A boat."), ("Which color?", "Red."))


def test_a_prompt_knows_what_was_said():
    text = Text("a", "chats", "Be brief.", "Is it new?", ("No.",), TALK)
    maker = ItemMaker(lambda image: image, lambda question, instruction: build_prompt("plain", instruction, question))
    (item,) = maker.make(Group("chats", "train", 1, (), (text,)), "here")["texts"]
    prompt = item["text_input"]
    assert isinstance(prompt, Prompt) and prompt == "Is it new? Answer:" and prompt.question == "Is it new?"
    assert prompt.turns == (("Be brief. What is it? Answer:", "A boat."), ("Which color? Answer:", "Red."))


def test_a_run_learns_of_conversations(tmp_path):
    config = write_small_run(tmp_path, max_epoch=1, batch_size_train=3)
    for number in range(6):
        Image.new("RGB", (30, 20), (number * 40, 100, 50)).save(tmp_path / f"{number}.png")
    said = [
        {"role": role, "content": words}
        for turn in TALK
        for role, words in zip(("user", "assistant"), turn, strict=True)
    ]
    rows = [{"id": str(n), "images": [f"{n}.png"], "messages": said} for n in range(6)]
    (tmp_path / "chats.json").write_text(json.dumps(rows))
    convert_table(tmp_path / "chats.json", tmp_path / "chats")
    train = f"datasets.m3it.build_info.annotations.train.storage={tmp_path / 'chats' / 'train.jsonl'}"
    counted, alone = [], launch.train(config)
    assert not open_pipeline(alone.output_dir).conversations
    for together in (1, "all"):
        runner = launch.train(config, [train, f"datasets.m3it.texts_per_image={together}"])
        lines = [orjson.loads(line) for line in (runner.output_dir / "metrics.jsonl").read_text().splitlines()]
        counted.append([sum(line[name] for line in lines) for name in ("samples", "tokens")])
    # What it says of itself stays with it.
    assert open_pipeline(runner.output_dir).conversations
    export_run(runner.output_dir, tmp_path / "exported")
    assert Pipeline.from_pretrained(tmp_path / "exported").conversations
    position = runner.parts.length.continue_from(read_checkpoint(runner.output_dir / LATEST), streaming=False)
    assert position.conversations
    # Six conversations of two answers each, whichever way they are dealt to batches.
    assert counted[0] == counted[1] and counted[0][0] == 12 and counted[0][1] > 24
