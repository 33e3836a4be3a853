"""`gitllm words` from the files to the files."""

import json

import pytest
from PIL import Image

from gitllm_plugin.cli.main import main
from tests.m3it_files import write_m3it_jsonl
from tests.tiny_folder import write_tiny_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_tiny_folder(tmp_path_factory.mktemp("words") / "model", "tiny:opt"))


def test_a_picture(model, tmp_path, capsys):
    Image.linear_gradient("L").resize((60, 40)).save(tmp_path / "cat.png")
    assert (
        main(["words", str(tmp_path / "cat.png"), "--model", model, "--out", str(tmp_path / "out"), "--top-k", "2"])
        == 0
    )
    printed = capsys.readouterr().out
    assert "nearest by cosine: " in printed and "nearest by dot: " in printed
    assert f"written: {tmp_path / 'out' / 'cat.png'}" in printed
    content = json.loads((tmp_path / "out" / "cat.json").read_text(encoding="utf-8"))
    assert content["grid"] == [4, 4] and len(content["patches"]) == 4 * 4 * 2 * 2
    assert sum(content["counts"]["cosine"].values()) == 16


def test_rows_of_m3it(model, tmp_path, capsys):
    write_m3it_jsonl(tmp_path / "rows.jsonl", rows=12, texts_per_image=2)
    arguments = ["words", "--images", str(tmp_path / "rows.jsonl"), "--model", model, "--out", str(tmp_path)]
    assert main([*arguments, "--limit", "5"]) == 0
    cells = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["pictures", "5"] in cells and ["image", "vectors", "80"] in cells
    assert sum(line[:2] == ["cosine,", "captions'"] for line in cells) == 1
    content = json.loads((tmp_path / "statistics.json").read_text(encoding="utf-8"))
    assert 0 <= content["measures"]["cosine"]["in_caption"]["share"] <= 1


def test_a_folder_with_and_without_captions(model, tmp_path, capsys):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in ("a", "b"):
        Image.linear_gradient("L").save(pictures / f"{name}.png")
    arguments = ["words", "--images", str(pictures), "--model", model, "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "own caption" not in printed and "Without captions" in printed
    (pictures / "a.txt").write_text("a gradient")
    assert main(arguments) == 2
    assert "1 of 2 pictures have no caption" in capsys.readouterr().err


def test_what_cannot_be(model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("cat.png")
    assert main(["words", "cat.png", "--model", str(tmp_path / "nowhere")]) == 2
    assert "there is no model" in capsys.readouterr().err
    assert main(["words", "cat.png", "--model", model, "--before-training"]) == 2
    assert "give the run's folder" in capsys.readouterr().err
    for both in ([], ["cat.png", "--images", "pictures"]):
        with pytest.raises(SystemExit) as stopped:
            main(["words", *both])
        assert stopped.value.code == 2
