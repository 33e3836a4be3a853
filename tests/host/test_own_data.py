"""`gitllm train --data`: from a table or a folder of pictures to a configuration that trains."""

import csv
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from PIL import Image

import gitllm_plugin

gitllm_plugin.register()

from gitllm_plugin.cli.main import main  # noqa: E402
from gitllm_plugin.errors import ConfigError, DataError  # noqa: E402
from gitllm_plugin.host.config_check import check_config  # noqa: E402
from gitllm_plugin.host.own_data import write_config  # noqa: E402
from tests.tiny_folder import write_tiny_folder  # noqa: E402

COLORS = ("teal", "navy", "olive", "maroon", "purple", "orange", "pink", "gold", "silver", "black", "white", "red")
TINY = ["--language-model", "tiny:llama", "--image-encoder", "tiny:siglip"]


def write_pictures(folder, texts=True):
    folder.mkdir(parents=True, exist_ok=True)
    for color in COLORS:
        Image.new("RGB", (40, 30), color).save(folder / f"{color}.png")
        if texts:
            (folder / f"{color}.txt").write_text(f"a wall in {color}")


def write_table(path, splits=()):
    write_pictures(path.parent / "walls", texts=False)
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "question", "answer", *(["split"] if splits else [])])
        for number, color in enumerate(COLORS):
            row = [f"walls/{color}.png", "which color is the wall?", color]
            table.writerow([*row, *([splits[number % len(splits)]] if splits else [])])
    return path


def write(data, out, language_model="tiny:llama", image_encoder="tiny:clip"):
    return write_config(data, language_model, image_encoder, out, tell=print)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_table_with_splits_a_folder_and_a_table_without(tmp_path):
    write_pictures(tmp_path / "photographs")
    made = {
        "splits": write(write_table(tmp_path / "a.csv", ("train", "test", "val")), tmp_path / "a"),
        "folder": write(tmp_path / "photographs", tmp_path / "b"),
        "dealt": write(write_table(tmp_path / "c.csv"), tmp_path / "c"),
    }
    assert made["splits"].rows == {"train": 4, "val": 4, "test": 4}
    for written in made.values():
        assert sum(written.rows.values()) == len(COLORS)
        config = OmegaConf.load(written.config)
        assert list(config.datasets.m3it.build_info.annotations) == list(written.rows)
        assert (config.run.test_splits == ["test"]) == ("test" in written.rows)
        assert (config.run.valid_splits == ["val"]) == ("val" in written.rows)
        check_config(written.config)


def test_the_command_writes_shows_and_trains(tmp_path, capsys):
    table = write_table(tmp_path / "walls of mine.csv", ("train", "val"))
    assert main(["train", "--data", str(table), *TINY, "--options", "run.max_iters=2", "run.device=cpu"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "written: output/walls of mine/train.yaml" and told[-1] == "6 rows to train, 6 rows to val"
    assert "  max_epoch: 50" in told
    run = tmp_path / "output/walls of mine/runs/latest"
    config = OmegaConf.load(run / "config.yaml")
    assert config.datasets.m3it.vis_processor.eval.image_size == 32  # of tiny:siglip
    assert (run / "checkpoint_best.pth").is_file()
    assert main(["ask", str(tmp_path / "walls/teal.png"), "color?", "--model", str(run)]) == 0


def test_the_command_again_goes_on_and_then_has_nothing_to_do(tmp_path, caplog):
    caplog.set_level("INFO")
    command = [
        "train",
        "--data",
        str(write_table(tmp_path / "a.csv", ("train",))),
        *TINY,
        "--options",
        "run.device=cpu",
    ]
    assert main([*command, "run.max_epoch=1"]) == 0
    assert main([*command, "run.max_epoch=2"]) == 0
    assert main([*command, "run.max_epoch=2"]) == 0
    assert (
        len([folder for folder in Path("output/a/runs").iterdir() if folder.is_dir() and not folder.is_symlink()]) == 1
    )
    assert "Nothing to do: 2 of 2 epochs" in caplog.text


def test_a_table_smaller_than_a_batch_trains(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    (tmp_path / "a.csv").write_text("image,answer,split\none.png,dark,train\none.png,black,train\n")
    assert main(["train", "--data", "a.csv", *TINY, "--options", "run.max_iters=2", "run.device=cpu"]) == 0


def test_it_is_as_long_as_the_table_needs(tmp_path):
    (tmp_path / "walls").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "walls/one.png")
    for rows, epochs in ((4, 50), (120, 10), (2000, 3)):
        table = tmp_path / f"{rows}.csv"
        table.write_text("image,answer,split\n" + "walls/one.png,dark,train\n" * rows)
        assert OmegaConf.load(write(table, tmp_path / str(rows)).config).run.max_epoch == epochs


@pytest.mark.parametrize("chats", [True, False])
def test_prompts_are_in_the_template_of_the_tokenizer_where_it_has_one(chats, tmp_path):
    folder = write_tiny_folder(tmp_path / "model", "tiny:llama") / "language_model"
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    if chats:
        (folder / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    written = write(write_table(tmp_path / "a.csv"), tmp_path / "a", str(folder))
    assert OmegaConf.load(written.config).model.chat_template is chats


def test_what_was_changed_is_not_written_over(tmp_path):
    table = write_table(tmp_path / "a.csv")
    written = write(table, tmp_path / "a")
    assert write(table, tmp_path / "a") == written
    changed = written.config.read_text().replace("rank: 16", "rank: 4")
    written.config.write_text(changed)
    with pytest.raises(ConfigError, match="is there already.*gitllm train .*train.yaml.*another --output"):
        write(table, tmp_path / "a")
    assert written.config.read_text() == changed


def test_faults_are_told_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("GITLLM_CACHE", str(tmp_path / "nothing"))
    table = write_table(tmp_path / "a.csv")
    with pytest.raises(ConfigError, match="demonstration's image encoder is not on this machine.*--image-encoder"):
        write(table, tmp_path / "a", image_encoder="demo")
    with pytest.raises(ConfigError, match="no-such-folder"):
        write(table, tmp_path / "a", language_model=str(tmp_path / "no-such-folder"))
    with pytest.raises(ConfigError, match="no-such-encoder"):
        write(table, tmp_path / "a", image_encoder=str(tmp_path / "no-such-encoder"))
    table.write_text("image,answer\nwalls/none.png,grey\n")
    with pytest.raises(DataError, match="none.png"):
        write(table, tmp_path / "a")
    assert not (tmp_path / "a" / "train.yaml").exists()


def test_a_path_is_what_it_is(tmp_path):
    """Braces, quotes and what YAML and OmegaConf would replace."""
    for name in ("it's ${HOME}", 'a "wall": {1}', "#1 & co"):
        written = write(write_table(Path(f"{name}.csv"), ("train",)), Path("out") / name)
        config = OmegaConf.load(written.config)
        assert Path(config.datasets.m3it.build_info.annotations.train.storage).is_file()
        assert config.run.output_dir == str(Path("out") / name / "runs")


def test_one_process_writes(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit):
        main(["train", "--data", "a.csv"])
    assert "what it writes to torchrun" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["a.yaml", "--output", "x"], ["a.yaml", *TINY], ["a.yaml", "--data", "b.csv"], ["--output", "x"]]
)
def test_arguments_that_do_not_go_together(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", *arguments])
    assert ended.value.code == 2 and "--data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answers", "metric"),
    [
        (["cat", "dog"] * 6, "exact_match"),
        (["yes"] * 5 + ["no"] * 5 + ["a red boat", "two"], "exact_match"),
        ([f"a wall in {color}" for color in COLORS], "rouge_l"),
        (["a wall"] * 3 + [f"wall {number}" for number in range(9)], "rouge_l"),
    ],
)
def test_answers_that_repeat_are_right_or_wrong(answers, metric, tmp_path):
    write_pictures(tmp_path / "walls", texts=False)
    rows = (f"walls/{color}.png,{answer},train\n" for color, answer in zip(COLORS, answers, strict=True))
    (tmp_path / "a.csv").write_text("image,answer,split\n" + "".join(rows))
    written = write(tmp_path / "a.csv", tmp_path / "a")
    assert OmegaConf.load(written.config).run.agg_metric == metric
    assert any(line.startswith(f"agg_metric: {metric}  # ") for line in written.choices)


def test_folders_of_kinds_are_tested_on_pictures_of_their_own(tmp_path, capsys):
    for number in range(60):
        kind = tmp_path / "photos" / ("night", "day")[number % 2]
        kind.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 100 + 100 * (number % 2), 7)).save(kind / f"{number}.png")
    written = write(tmp_path / "photos", tmp_path / "a")
    assert set(written.rows) == {"train", "val", "test"} and sum(written.rows.values()) == 60
    config = OmegaConf.load(written.config)
    assert config.run.agg_metric == "exact_match" and config.run.test_splits == ["test"]
    assert "photos: 2 kinds, the names of its folders: day 30, night 30" in capsys.readouterr().out
