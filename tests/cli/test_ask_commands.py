"""ask, caption and predict as they are typed, in processes of their own, and what they say of wrong input."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from gitllm_plugin import Pipeline
from gitllm_plugin.cli.main import main
from gitllm_plugin.inference.pipeline import Decoding
from tests.tiny_folder import write_tiny_folder

COLORS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model and pictures."""
    folder = tmp_path_factory.mktemp("place")
    write_tiny_folder(folder / "model")
    (folder / "pictures").mkdir()
    for color in COLORS:
        Image.new("RGB", (40, 30), color).save(folder / "pictures" / f"{color}.png")
    return folder


def gitllm(*arguments, environment=None, **options):
    """Run it in a process in which LAVIS cannot be imported."""
    program = "import sys; sys.modules['lavis'] = None\nfrom gitllm_plugin.cli.main import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        env={**os.environ, **(environment or {})},
        **options,
    )


def expected(place, question="", new_tokens=30):
    pipeline = Pipeline.from_pretrained(place / "model")
    decoding = Decoding(max_new_tokens=new_tokens)
    return [pipeline.answer(place / "pictures" / f"{c}.png", question, decoding=decoding) for c in COLORS]


def test_a_question_from_a_terminal_and_from_a_pipe(place):
    picture = place / "pictures" / "red.png"
    answer = expected(place, "what color?")[0]
    ran = gitllm("ask", picture, "what color?", "--model", place / "model")
    assert (ran.returncode, ran.stdout.decode().strip()) == (0, answer), ran.stderr.decode()
    ran = gitllm("ask", "-", "what color?", "--model", place / "model", "--json", input=picture.read_bytes())
    assert json.loads(ran.stdout) == {"images": ["-"], "question": "what color?", "answer": answer}


def test_a_model_by_its_name_on_the_hub(place, tmp_path):
    """The hub's cache as it lies on a disk after a download; no hub is reached."""
    cached = tmp_path / "hub" / "models--someone--tiny"
    shutil.copytree(place / "model", cached / "snapshots" / "0123abc")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123abc")
    environment = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    picture = place / "pictures" / "red.png"
    ran = gitllm("ask", picture, "what color?", "--model", "someone/tiny", environment=environment)
    assert ran.stdout.decode().strip() == expected(place, "what color?")[0], ran.stderr.decode()
    ran = gitllm("ask", picture, "what color?", "--model", "someone/other", environment=environment)
    assert ran.returncode == 2
    assert b"someone/other is neither a folder here nor a model that the hub gives" in ran.stderr


def test_captions_of_a_folder(place, tmp_path, capsys):
    pictures = tmp_path / "pictures"
    shutil.copytree(place / "pictures", pictures)
    arguments = ["--model", str(place / "model"), "--max-new-tokens", "5"]
    captions = dict(zip((str(pictures / f"{c}.png") for c in COLORS), expected(place, new_tokens=5), strict=True))
    assert main(["caption", str(pictures), "--json", *arguments]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {record["image"]: record["caption"] for record in printed} == captions
    (pictures / "broken.png").write_bytes(b"no picture")
    out = tmp_path / "out.jsonl"
    out.write_text("earlier\n")
    assert main(["caption", f"{pictures}/*.png", "--out", str(out), "--batch-size", "2", *arguments]) == 1
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert {record["image"]: record["caption"] for record in records if "caption" in record} == captions
    (broken,) = (record for record in records if "error" in record)
    assert broken["image"] == str(pictures / "broken.png")
    assert "3 answered; 1 could not be" in capsys.readouterr().err


def test_what_else_is_in_a_folder_is_told(place, tmp_path, capsys):
    pictures = tmp_path / "pictures"
    shutil.copytree(place / "pictures", pictures)
    for name in ("notes.docx", "clip.mp4", "also/clip.MP4", "Makefile", "._red.png", ".thumbs/red.png"):
        (pictures / name).parent.mkdir(exist_ok=True)
        (pictures / name).write_bytes(b"")
    (pictures / "IMG_1.HEIC").write_bytes(b"\0\0\0\x24ftypheic" + bytes(99))
    assert main(["caption", str(pictures), "--model", str(place / "model"), "--max-new-tokens", "2"]) == 1
    told = capsys.readouterr().err
    assert f"note: {pictures}: files that are no pictures: 4 (1 of .docx, 2 of .mp4, 1 of no ending)" in told
    assert "IMG_1.HEIC: an image in HEIC, as phones take it" in told
    assert f"{len(COLORS)} answered; 1 could not be" in told


def test_rows_through_a_pipe(place):
    rows = [{"id": n, "image": f"{c}.png", "question": "what color?"} for n, c in enumerate(COLORS)]
    lines = "".join(json.dumps(row) + "\n" for row in rows) + "nonsense\n"
    command = ["predict", "--input", "-", "--output", "-", "--model", place / "model"]
    ran = gitllm(*command, input=lines.encode(), cwd=place / "pictures")
    records = [json.loads(line) for line in ran.stdout.splitlines()]
    assert records[:3] == [{**r, "answer": a} for r, a in zip(rows, expected(place, "what color?"), strict=True)]
    assert records[3]["error"].startswith("line 4: not JSON") and ran.returncode == 1


def test_a_kill_loses_no_answer(place, tmp_path):
    lines = [json.dumps({"image": f"{COLORS[n % 3]}.png", "question": f"what color, {n}?"}) for n in range(300)]
    rows = place / "pictures" / "rows.jsonl"
    rows.write_text("\n".join(lines))
    command = [sys.executable, "-m", "gitllm_plugin", "predict", "--input", str(rows), "--model", str(place / "model")]
    command += ["--batch-size", "1", "--output"]
    out, journal = tmp_path / "out.jsonl", tmp_path / "out.jsonl.progress"
    running = subprocess.Popen([*command, str(out)], stderr=subprocess.DEVNULL)
    while running.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > 5):
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    kept = journal.read_bytes().count(b"\n") - 1
    ran = subprocess.run([*command, str(out)], capture_output=True, text=True, check=True)
    assert f"holds {kept:,} records of an earlier start" in ran.stderr
    subprocess.run([*command, str(tmp_path / "whole.jsonl")], capture_output=True, check=True)
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert out.read_text().count("\n") == 300 and not journal.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "--input", "rows.jsonl", "--output", "rows.jsonl"],
        ["predict", "--input", "rows.jsonl", "--output", "./other/../rows.jsonl"],
        ["predict", "--input", "link.jsonl", "--output", "rows.jsonl"],
        ["caption", "pictures", "--out", "pictures/red.png"],
        ["caption", "pictures/*.png", "--out", "link.png"],
    ],
)
def test_what_is_read_is_not_replaced(place, tmp_path, monkeypatch, capsys, arguments):
    shutil.copytree(place / "pictures", tmp_path / "pictures")
    (tmp_path / "other").mkdir()
    (tmp_path / "rows.jsonl").write_text('{"image": "pictures/red.png"}\n')
    (tmp_path / "link.jsonl").symlink_to("rows.jsonl")
    (tmp_path / "link.png").symlink_to("pictures/blue.png")
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main([*arguments, "--model", str(place / "model")]) == 2
    assert "is what is read, and would be replaced" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["captions.txt", "captions", "captions.json"])
def test_another_form_of_output_is_refused(place, tmp_path, capsys, name):
    command = ["caption", str(place / "pictures"), "--out", str(tmp_path / name), "--model", str(place / "model")]
    assert main(command) == 2
    assert ".jsonl or .csv" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_run_that_lies_below_is_named(tmp_path, capsys):
    (tmp_path / "train" / "20260101000000").mkdir(parents=True)
    (tmp_path / "train" / "latest").symlink_to("20260101000000")
    assert main(["ask", str(tmp_path / "none.png"), "?", "--model", str(tmp_path)]) == 2
    capsys.readouterr()
    assert main(["export", str(tmp_path), str(tmp_path / "new")]) == 2
    assert f"did you mean {tmp_path / 'train' / 'latest'}?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ask", "nowhere.png", "what?"], "nowhere.png"),
        (["ask", "pictures/red.png", "what?", "--model", "nowhere"], "there is no model nowhere"),
        (["ask", "pictures/red.png", "what?", "--max-new-tokens", "0"], "max_new_tokens and num_beams are at least 1"),
        (["ask", "pictures/red.png", "pictures/blue.png", "what?"], "2 pictures; this model takes 1 to 1"),
        (["ask", "pictures/red.png", "what?", "--model", ""], "the name of the model is '', which is empty"),
        (["ask", "pictures", "what?"], "pictures is a folder; `gitllm caption pictures` describes all pictures in it"),
        (["caption", "pictures", "--model", " "], "the name of the model is ' ', which is empty"),
        (["serve", "--model", "", "--port", "0"], "the name of the model is '', which is empty"),
        (["ask", "", "what?"], "the picture's name '' is empty"),
        (["caption", "pictures", ""], "the name '' is empty"),
        (["caption", "nowhere.png"], "no file, no folder, and no pattern"),
        (["caption", "pictures", "--batch-size", "0"], "the batch size is 0"),
        (["caption", "pictures", "--model", "nowhere", "--out", "out.csv"], "there is no model nowhere"),
        (["caption", "pictures", "--out", "pictures"], "is a folder; name a file"),
        (["predict", "--input", "nowhere.jsonl", "--output", "-"], "nowhere.jsonl does not exist"),
        (["predict", "--input", "pictures", "--output", "-"], "pictures is a folder"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(place, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    model = [] if "--model" in arguments else ["--model", "model"]
    assert main([*arguments, *model]) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert message in line
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (b"", "standard input: nothing is in it; expected are the bytes of a picture's file"),
        (b"\n", "standard input: 1 bytes that are no image"),
        (b"<html>not found</html>", "standard input: a web page, no image: not what was to be downloaded"),
    ],
)
def test_a_pipe_without_a_picture(place, monkeypatch, capsys, given, told):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given)))
    assert main(["ask", "-", "what?", "--model", str(place / "model")]) == 2
    assert told in capsys.readouterr().err


def test_a_question_that_was_forgotten(place, capsys):
    with pytest.raises(SystemExit):
        main(["ask", *(str(Path(place, "pictures", f"{c}.png")) for c in COLORS)])
    assert "no question follows it" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["ask", str(Path(place, "pictures", f"{COLORS[0]}.png"))])
    assert 'required: QUESTION, in quotes, behind the picture; "" asks for a description' in capsys.readouterr().err
