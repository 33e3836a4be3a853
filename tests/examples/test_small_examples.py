"""The example scripts, each run to its end on tiny models."""

import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

from examples import export_and_load, finetune_on_csv, plain_pytorch
from gitllm_plugin.modeling import load_folder
from tests.small_run import write_small_run

EXAMPLES = Path(export_and_load.__file__).parent


@pytest.fixture
def pictures(tmp_path):
    """A folder of twenty pictures."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(20):
        Image.new("RGB", (40, 40), (index * 12, 90, 200)).save(folder / f"{index:02d}.png")
    return folder


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("export_and_load", ["nowhere", "model"], "nowhere is not a run"),
        ("export_and_load", ["nowhere", "made"], "made-merged exists already"),
        ("finetune_on_csv", ["nowhere.csv", "pictures"], "pictures exists already"),
        ("finetune_on_csv", ["nowhere.csv", "model"], "nowhere.csv cannot be read"),
        ("from_lavis", ["nowhere.png", "what color?"], "nowhere.png: cannot be read"),
        ("plain_pytorch", ["--language-model", "tiny:nothing"], "no tiny model of family 'nothing'"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(script, arguments, message, pictures, tmp_path, monkeypatch, capsys):
    (pictures / "empty").mkdir()
    (tmp_path / "made-merged").mkdir()
    (tmp_path / "made-merged" / "file").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(EXAMPLES / f"{script}.py"), run_name="__main__")
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert sorted(tmp_path.rglob("*")) == before


def test_fine_tuning_on_a_table(pictures, tmp_path):
    rows = [f"pictures/{path.name},what color?,blue" for path in sorted(pictures.iterdir())]
    (tmp_path / "mine.csv").write_text("\n".join(["image,question,answer", *rows]))
    command = [str(tmp_path / "mine.csv"), str(tmp_path / "model"), "--work", str(tmp_path / "work"), "--epochs", "1"]
    assert finetune_on_csv.main(command) == 0
    loaded = load_folder(tmp_path / "model")
    assert loaded.tokenizer is not None and loaded.settings["text_processor"]["name"] == "git_llm_instruction"


def test_from_lavis(tmp_path, capsys):
    from examples import from_lavis  # registers with LAVIS when it is imported

    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    assert from_lavis.main([str(tmp_path / "red.png"), "what color?"]) == 0
    assert "answer: " in capsys.readouterr().out


def test_plain_pytorch_learns_four_colours(capsys):
    assert plain_pytorch.main([]) == 0
    last = capsys.readouterr().out.splitlines()[-4:]
    assert last == ["red: red", "green: green", "blue: blue", "yellow: yellow"]


def test_export_and_load(tmp_path, capsys):
    from gitllm_plugin.host.launch import train

    train(write_small_run(tmp_path, {"model_type": "tiny_llama"}, max_epoch=1))
    assert export_and_load.main([str(tmp_path / "output" / "latest"), str(tmp_path / "model")]) == 0
    printed = capsys.readouterr().out
    assert "PeftModel" in printed and "with LoRA merged" in printed
    assert not (tmp_path / "model-merged" / "adapter").exists()
    assert load_folder(tmp_path / "model-merged").tokenizer is not None
