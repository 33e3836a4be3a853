"""Texts that cannot be made to fit into the context: told before the first step, and refused or skipped."""

import json
import logging
import pickle
import subprocess
import sys

import pytest
import torch
from omegaconf import OmegaConf

import gitllm_plugin
from gitllm_plugin.errors import DataError
from gitllm_plugin.host import launch
from gitllm_plugin.m3it.prompts import build_prompt, find_shortenable
from tests.m3it_shards import make_groups
from tests.small_run import ENVIRONMENT, TINY_LORA, write_small_run

gitllm_plugin.register()

from gitllm_plugin.models.git_llm import GitLLMForLavis  # noqa: E402

LONG = "and then the square moved to the left, "


@pytest.fixture
def config(tmp_path):
    """Path of a small run whose model has a context of 256 tokens, 17 of which are those of an image."""
    return write_small_run(tmp_path, TINY_LORA, max_epoch=1, log_freq=100)


def change(config, split, place, **values):
    """Change a row; gives its id."""
    path = config.parent / f"{split}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[place] |= values
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows[place]["id"]


def answer_of(tokens, instruction):
    """An answer that takes so many tokens, or one more, with all of its prompt that cannot be shortened."""
    encoder = GitLLMForLavis.from_pretrained("tiny_llama").text_encoder
    prompt, words = build_prompt("article", instruction, ""), "and"
    while encoder.least_tokens(prompt, words, find_shortenable(prompt, "?")) < tokens:
        words += " to"
    return words


def metrics(runner, split):
    return json.loads((runner.output_dir / f"{split}_metrics.json").read_text())


def steps(runner):
    lines = (runner.output_dir / "metrics.jsonl").read_text().splitlines()
    return [{key: json.loads(line)[key] for key in ("step", "loss", "samples")} for line in lines]


SKIP = "datasets.m3it.on_error=skip"


@pytest.mark.parametrize(
    ("split", "values"),
    [
        ("train", {"outputs": LONG * 12}),
        ("val", {"outputs": [LONG * 12, "short"]}),
        ("test", {"instruction": LONG * 12}),
        ("train", {"instruction": LONG * 6, "outputs": LONG * 6}),
    ],
)
def test_it_is_told_with_file_and_line_before_anything_is_computed(config, split, values):
    row_id = change(config, split, 4, **values)
    with pytest.raises(DataError, match="1 text does not fit into the model's context") as refused:
        launch.train(config)
    assert f"{split}.jsonl:5: example {row_id!r}: the " in str(refused.value)
    assert "on_error: skip" in str(refused.value)
    assert not list((config.parent / "output").rglob("metrics.jsonl"))
    with pytest.raises(DataError, match=f"{split}.jsonl:5"):
        launch.dry_run(config)


def test_it_is_skipped_and_counted_in_training_validation_and_test(config, caplog):
    for split, place in (("train", 3), ("train", 20), ("val", 0), ("test", 6)):
        change(config, split, place, outputs=LONG * 15)
    runner = launch.train(config, [SKIP])
    assert sum(step["samples"] for step in steps(runner)) == 22
    assert "2 rows or texts are left out" in caplog.text and "train.jsonl:4" in caplog.text
    for split in ("val", "test"):
        found = metrics(runner, split)
        assert (found["num_examples"], found["num_skipped"]) == (6, 1)
        assert "1 of 7 examples could not be used" in (runner.output_dir / f"{split}_results.md").read_text()


@pytest.mark.parametrize("values", [{"inputs": LONG * 20}, {"inputs": "", "instruction": LONG * 20}])
def test_a_text_that_can_be_shortened_is_not_skipped(config, caplog, values):
    change(config, "test", 2, **values)
    runner = launch.train(config)
    assert metrics(runner, "test")["num_examples"] == 7 and "num_skipped" not in metrics(runner, "test")
    assert "the end of their question was cut off" in caplog.text


def test_what_is_only_evaluated_need_not_leave_room_for_an_answer_that_is_not_read(config):
    change(config, "test", 1, outputs=LONG * 15)
    runner = launch.train(config, ["run.valid_loss=false"])
    assert metrics(runner, "test")["num_examples"] == 7
    with pytest.raises(DataError, match="takes .* tokens however short its question, and .* an answer of 238 tokens"):
        launch.train(config, ["run.valid_loss=false", "run.max_len=238"])


def test_each_image_takes_room(config):
    options = ["model.max_images=3", "run.valid_splits=[]", "run.test_splits=[]"]
    rows = [json.loads(line) for line in (config.parent / "train.jsonl").read_text().splitlines()]
    one = rows[0]["image_base64_str"]
    # As long as fits beside one image, and not beside three; the row before it has more images than it.
    fitting = answer_of(215, rows[2]["instruction"])
    change(config, "train", 2, outputs=fitting)
    change(config, "train", 1, image_base64_str=[one] * 3)
    launch.train(config, options)
    row_id = change(config, "train", 3, image_base64_str=[one, one, one], outputs=fitting)
    with pytest.raises(DataError, match=r"train.jsonl:4.* fit beside 3 images") as refused:
        launch.train(config, options)
    assert row_id in str(refused.value) and "1 text does" in str(refused.value)


def test_an_image_takes_room_though_the_first_rows_have_none(config):
    for place in range(12):
        change(config, "train", place, image_base64_str="")
    row_id = change(config, "train", 15, outputs=answer_of(245, "Answer the question about the image."))
    with pytest.raises(DataError, match=r"train.jsonl:16: .* fit beside 1 image;") as refused:
        launch.train(config, ["datasets.m3it.allow_text_only=true"])
    assert row_id in str(refused.value)


def test_a_resumed_run_goes_on_at_the_same_place(config, tmp_path):
    for place in (2, 11):
        change(config, "train", place, outputs=LONG * 15)
    options = [SKIP, "run.valid_splits=[]", "run.test_splits=[]", "run.max_epoch=2", "run.lr_sched=constant"]
    whole = launch.train(config, [*options, f"run.output_dir={tmp_path / 'whole'}"])
    part = launch.train(
        config, [*options, f"run.output_dir={tmp_path / 'part'}", "run.max_iters=3", "run.save_every_steps=1"]
    )
    resumed = launch.train(
        config, [*options, f"run.output_dir={tmp_path / 'part'}", f"run.resume_ckpt_path={part.output_dir}"]
    )
    assert steps(resumed) == steps(whole)


def test_the_run_that_goes_on_by_itself_is_the_one_that_left_out_the_same(config):
    change(config, "train", 3, outputs=LONG * 15)
    options = [SKIP, "run.valid_splits=[]", "run.test_splits=[]", "run.lr_sched=constant"]
    first = launch.train(config, options)
    second = launch.train(config, [*options, "run.max_epoch=2", "run.resume_ckpt_path=auto"])
    assert second.output_dir == first.output_dir and second.position.epoch == 2


def test_it_is_skipped_in_each_split_where_nothing_is_trained(config):
    for split, place in (("val", 0), ("test", 3)):
        change(config, split, place, outputs=LONG * 15)
    untrained = ["run.evaluate=true", "run.allow_untrained=true"]
    runner = launch.train(config, [SKIP, *untrained])
    for split in ("val", "test"):
        assert (metrics(runner, split)["num_examples"], metrics(runner, split)["num_skipped"]) == (6, 1)


def test_an_image_that_is_broken_is_skipped_too(config, caplog):
    for split, place in (("train", 5), ("test", 2)):
        change(config, split, place, image_base64_str="bm8gcGljdHVyZQ==")
    runner = launch.train(config, [SKIP, "datasets.m3it.texts_per_image=1"])
    assert sum(step["samples"] for step in steps(runner)) == 24
    assert "Skipped: " in caplog.text
    found = metrics(runner, "test")
    assert (found["num_examples"], found["num_skipped"]) == (6, 1)
    assert launch.evaluate_run(runner.output_dir, [SKIP, "run.batch_size_eval=1"])
    with pytest.raises(DataError, match="test.jsonl:3"):
        launch.evaluate_run(runner.output_dir, ["datasets.m3it.on_error=stop"])


@pytest.mark.slow
def test_two_processes_skip_the_same(config):
    for split, place in (("train", 3), ("val", 2), ("test", 5)):
        change(config, split, place, outputs=LONG * 15)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "gitllm_plugin", "train", "--cfg-path", str(config), "--options", SKIP]
    finished = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    found = json.loads((config.parent / "output" / "latest" / "test_metrics.json").read_text())
    assert (found["num_examples"], found["num_skipped"]) == (6, 1)


@pytest.fixture
def of_shards(config):
    """Makes the run read shards of its rows, by the command; gives its configuration and the manifest's path."""

    def make(**options):
        root, shards = config.parent / "tree", config.parent / "shards"
        for split in ("train", "val", "test"):
            folder = root / "toy"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{split}.jsonl").write_text((config.parent / f"{split}.jsonl").read_text())
        from gitllm_plugin.cli.main import main

        assert main(["m3it", "shard", str(root), str(shards), "--configs", "toy", "--workers", "1"]) in (0, None)
        cfg = OmegaConf.load(config)
        image = cfg.datasets.m3it.vis_processor
        cfg.datasets = {"m3it_wds": {"vis_processor": image, "build_info": {"shards": str(shards)}, **options}}
        OmegaConf.save(cfg, config)
        return shards / "manifest.json"

    return make


@pytest.mark.parametrize("noted", [True, False], ids=["noted", "older manifest"])
def test_shards_tell_refuse_and_skip(config, of_shards, caplog, noted):
    ids = [
        change(config, "train", 3, instruction=LONG * 14, inputs=""),
        change(config, "val", 2, outputs=LONG * 14),
        change(config, "test", 0, outputs=LONG * 9, instruction=LONG * 9),
    ]
    # A caption whose instruction is long can be shortened; a long answer cannot.
    ids[0] = change(config, "train", 8, outputs=LONG * 14)
    manifest = of_shards()
    if not noted:
        content = json.loads(manifest.read_text())
        for split in content["configs"]["toy"].values():
            for shard in split["shards"]:
                del shard["text_bytes"], shard["most_images"]
        manifest.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"toy/\w+/000000.tar, record \d+, text") as refused:
        launch.train(config)
    assert any(row_id in str(refused.value) for row_id in ids)
    if noted:
        assert not list((config.parent / "output").rglob("metrics.jsonl"))
    runner = launch.train(config, ["datasets.m3it_wds.on_error=skip"])
    for split in ("val", "test"):
        assert (metrics(runner, split)["num_examples"], metrics(runner, split)["num_skipped"]) == (6, 1)
    assert all(row_id in caplog.text for row_id in ids)


def test_the_rule_can_be_pickled_and_bounds_hold(config):
    model = GitLLMForLavis.from_pretrained("tiny_llama")
    rule = model.text_rule(torch.zeros(3, 32, 32), answers=True, new_tokens=4)
    again = pickle.loads(pickle.dumps(rule))
    long = "a " * 500
    assert again.fault("##Instruction: x ##Question:  ##Answer:", long, "", 1)
    bound = rule.bytes_that_fit(1)
    assert bound > 0
    for text in ("é" * (bound // 2), "a" * bound, "日" * (bound // 3)):
        assert rule.fault("##Instruction:  ##Question: q ##Answer:", text, "q", 1) is None


def test_texts_of_other_data_are_named_by_id_or_place(config, caplog):
    caplog.set_level(logging.ERROR)
    model = GitLLMForLavis.from_pretrained("tiny_llama")
    batch = {
        "image": torch.zeros(2, 3, 32, 32),
        "text_input": ["what is it?", "and this?"],
        "text_output": ["a", LONG * 20],
    }
    for more, name in (
        ({"instance_id": ["first", "second"]}, "example 'second': "),
        ({"question_id": torch.tensor([7, 8])}, "example 8: "),
        ({}, "text 2 of 2 in the batch: "),
    ):
        with pytest.raises(DataError, match=name):
            model({**batch, **more})


def test_groups_know_their_longest_text(tmp_path):
    from gitllm_plugin.m3it.group import longest_text

    (first, *_) = make_groups(tmp_path / "rows.jsonl", "toy", "train", 4, texts_per_image=2)
    sizes = [len(text.instruction.encode()) + max(len(each.encode()) for each in text.answers) for text in first.texts]
    assert longest_text(first.texts) == max(sizes)


def test_the_check_of_a_tree_names_them_for_the_model_of_a_training(config, capsys, monkeypatch):
    from gitllm_plugin.cli.main import main

    monkeypatch.setenv("HOME", str(config.parent))
    for split, place in (("train", 3), ("val", 2), ("test", 5)):
        change(config, split, place, outputs=LONG * 14)
    change(config, "train", 7, inputs=LONG * 40)
    folder = config.parent / "tree" / "toy"
    folder.mkdir(parents=True)
    for split in ("train", "val", "test"):
        (folder / f"{split}.jsonl").write_text((config.parent / f"{split}.jsonl").read_text())
    command = ["m3it", "check", str(folder.parent), "--configs", "toy", "--workers", "1"]
    assert main(command) == 0
    report = config.parent / "report.json"
    capsys.readouterr()
    assert main([*command, "--report", str(report), "--cfg-path", str(config)]) == 1
    assert "toy/train.jsonl:4: example " in capsys.readouterr().out
    problems = [
        (problem["file"], problem["line"], problem["kind"])
        for split in json.loads(report.read_text())["splits"]
        for problem in split["problems"]
    ]
    assert sorted(problems) == [(f"toy/{split}.jsonl", line, "too_long") for split, line in
                                (("test", 6), ("train", 4), ("val", 3))]  # fmt: skip
    # Without a loss, an evaluation does not read the answers.
    assert main([*command, "--cfg-path", str(config), "--options", "run.valid_loss=false"]) == 1
    assert "val.jsonl" not in capsys.readouterr().out.partition("too_long (")[2]


@pytest.mark.parametrize("model_type", ["tiny_llama", "tiny_mpt"])
def test_texts_with_and_without_an_image_in_one_batch_are_shortened_to_their_own_room(model_type):
    model = GitLLMForLavis.from_pretrained(model_type)
    prompt = build_prompt("article", "Answer.", LONG * 40)
    samples = {
        "text_input": [prompt, prompt],
        "text_output": ["no", "no"],
        "image": torch.zeros(2, 3, 32, 32),
        "num_images": torch.tensor([1, 0]),
    }
    taken = model.encode_texts(samples, [prompt] * 2, ["no"] * 2).attention_mask.sum(1).tolist()
    rule = model.text_rule(samples["image"][0], answers=True, new_tokens=0)
    room = [rule.room - max(images, rule.most_images) * rule.image_tokens for images in (1, 0)]
    assert all(most - 10 < tokens <= most for tokens, most in zip(taken, room, strict=True))
    assert model(samples)["num_supervised_tokens"] > 0
    # What the rule lets through is refused in no batch: ALiBi counts the slots that the image of the other row takes.
    least = model.text_encoder.least_tokens(prompt, "no", find_shortenable(prompt, LONG * 40))
    answer = " no" * (rule.room - rule.image_tokens - least + 4)
    fits = rule.fault(prompt, answer, LONG * 40, 0) is None
    assert fits == (model_type == "tiny_llama")
    if fits:
        assert model({**samples, "text_output": ["no", answer]})["num_supervised_tokens"] > 0
