"""Many questions: the answers of each alone, whatever the batch; what cannot be answered is told in its place."""

import csv
import json
import subprocess
import sys

import pytest
import torch
from PIL import Image

from gitllm_plugin import Pipeline
from gitllm_plugin.errors import ConfigError, DataError, StorageError
from gitllm_plugin.inference.job import Job, run_job
from gitllm_plugin.inference.journal import Journal
from gitllm_plugin.inference.pictures import list_pictures
from gitllm_plugin.inference.pipeline import Decoding, Question
from gitllm_plugin.inference.predicting import answer_each
from gitllm_plugin.inference.questions import read_question, read_rows
from gitllm_plugin.modeling.families import FAMILIES
from tests.tiny_folder import write_tiny_folder

SHORT = Decoding(max_new_tokens=5)
COLORS = ("red", "green", "blue", "white", "black", "gray")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def pipeline(folder):
    return Pipeline.from_pretrained(folder, dtype="float32")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for color in COLORS:
        Image.new("RGB", (40, 30), color).save(folder / f"{color}.png")
    (folder / "broken.png").write_bytes((folder / "red.png").read_bytes()[:60])
    return folder


@pytest.mark.parametrize("num_images", [1, 2])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_batch_gives_the_answers_of_each_alone(family, num_images, tmp_path):
    pipeline = Pipeline.from_pretrained(
        write_tiny_folder(tmp_path / "model", f"tiny:{family}", max_images=num_images), dtype="float32"
    )
    images = [Image.new("RGB", (40, 30), color) for color in COLORS[:3]]
    questions = [
        Question((image, images[0])[: 1 + number % num_images], text)
        for number, image in enumerate(images)
        for text in ("what color is it?", "", "is there a red circle? or a longer question?")
    ]
    together = pipeline.answers(questions, SHORT)
    assert together == [pipeline.answer(list(q.pictures), q.text, decoding=SHORT) for q in questions]


def test_a_picture_of_several_questions_is_encoded_once(pipeline, monkeypatch):
    seen = []
    encode = pipeline.model.encode_images
    monkeypatch.setattr(
        pipeline.model, "encode_images", lambda pixels, *a: seen.append(len(pixels)) or encode(pixels, *a)
    )
    image = Image.new("RGB", (9, 9), "red")
    pipeline.answers([Question((image,), text) for text in ("a?", "b?", "c?")], SHORT)
    assert seen == [1]


def test_what_cannot_be_answered_hurts_no_other(pipeline, pictures):
    good = [Question((pictures / f"{color}.png",), "what?") for color in COLORS]
    asked = [
        good[0],
        DataError("line 2: no row"),
        Question((pictures / "broken.png",), "what?"),
        good[1],
        Question((pictures / "missing.png",), "what?"),
        Question((pictures / "red.png", pictures / "red.png"), "what?"),
        *good[2:],
    ]
    for size in (1, 3, 50):
        found = [each for batch in answer_each(pipeline, iter(asked), SHORT, size) for each in batch]
        assert len(found) == len(asked)
        errors = [str(each) for each in found if isinstance(each, DataError)]
        told = ["line 2: no row", "broken.png: the image is broken", "missing.png", "2 pictures; this model takes 1"]
        assert all(part in error for part, error in zip(told, errors, strict=True))
        assert [each for each in found if isinstance(each, str)] == pipeline.answers(good, SHORT)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "no picture"),
        ({"image": None, "question": "?"}, "no picture"),
        ({"image": "a.png", "images": ["b.png"]}, "image and images"),
        ({"image": ["a.png", "b.png"]}, "'image' is"),
        ({"images": []}, "'images' is"),
        ({"images": [3]}, "'images' is"),
        ({"image": ""}, "'image' is '', which is empty; a row is"),
        ({"images": ["a.png", "  "]}, "'images' is .*, which is empty"),
        ({"image_base64_str": ""}, "'image_base64_str' is '', which is empty"),
        ({"image": "a.png", "question": 4}, "question and instruction are"),
        ({"image": "a.png", "instruction": ["x"]}, "question and instruction are"),
        ({"image_base64_str": "%%"}, "base64"),
    ],
)
def test_rows_that_ask_nothing(row, message, tmp_path):
    with pytest.raises(DataError, match=message):
        read_question(row, tmp_path)


def test_lines_that_are_no_rows():
    rows = list(read_rows([b'{"image": "a"}\n', b"\n", b"[1]\n", b"\xff\n", b"{"]))
    assert rows[0] == {"image": "a"}
    assert [str(row)[:7] for row in rows[1:]] == ["line 3:", "line 4:", "line 5:"]


def job(pictures, output, rows=None, **changes):
    rows = [{"image": f"{color}.png", "n": n} for n, color in enumerate(COLORS)] if rows is None else rows
    settings = {"total": None, "answer": "answer", "show": print, "input": {"sum": "1"}}
    return Job(rows=iter(rows), folder=pictures, output=output, **{**settings, **changes})


def test_a_job_that_is_broken_off_goes_on_where_it_was(pipeline, pictures, tmp_path):
    out, asked = tmp_path / "deep" / "out.jsonl", []
    whole = run_job(job(pictures, tmp_path / "whole.jsonl"), "m", lambda name: pipeline, None, SHORT, 2)
    assert (whole.answered, whole.errors) == (6, [])

    def rows_until(end):
        for number, color in enumerate(COLORS):
            if number == end:
                raise KeyboardInterrupt
            asked.append(color)
            yield {"image": f"{color}.png", "n": number}

    with pytest.raises(KeyboardInterrupt):
        run_job(job(pictures, out, rows_until(5)), "m", lambda name: pipeline, None, SHORT, 2)
    journal = out.with_name("out.jsonl.progress")
    assert not out.exists()
    # A kill in the middle of a line.
    journal.write_bytes(journal.read_bytes() + b'{"image": "bl')
    outcome = run_job(job(pictures, out), "m", lambda name: pipeline, None, SHORT, 2)
    assert outcome == whole
    assert out.read_text() == (tmp_path / "whole.jsonl").read_text()
    assert sorted(path.name for path in out.parent.iterdir()) == ["out.jsonl"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": {"sum": "2"}}, "sum was '1' and is '2'"),
        ({"model": "other"}, "model was"),
        ({"decoding": Decoding(9)}, "max_new_tokens was 5 and is 9"),
    ],
)
def test_another_start_does_not_mix_its_answers_in(pipeline, pictures, tmp_path, changes, message):
    out = tmp_path / "out.jsonl"

    def fail():
        yield {"image": "red.png"}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(job(pictures, out, fail()), "m", lambda name: pipeline, None, SHORT, 1)
    before = (tmp_path / "out.jsonl.progress").read_bytes()
    model, decoding = changes.pop("model", "m"), changes.pop("decoding", SHORT)
    with pytest.raises(ConfigError, match=message):
        run_job(job(pictures, out, **changes), model, lambda name: pipeline, None, decoding, 1)
    assert (tmp_path / "out.jsonl.progress").read_bytes() == before
    # Where nobody can tell what the input was, each start begins anew.
    assert run_job(job(pictures, out, input=None), "other", lambda name: pipeline, None, SHORT, 4).answered == 6


def test_a_disk_that_is_full_keeps_the_journal(tmp_path):
    script = (
        "import resource, sys\n"
        "from gitllm_plugin.errors import StorageError\n"
        "from gitllm_plugin.inference.journal import Journal\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))\n"
        "journal = Journal(sys.argv[1], {'a': 1})\n"
        "try:\n"
        "    for n in range(1000): journal.append([{'n': n}])\n"
        "except StorageError as error: print(error)\n"
    )
    out = tmp_path / "out.jsonl"
    ran = subprocess.run([sys.executable, "-c", script, str(out)], capture_output=True, text=True, check=True)
    assert "cannot be written" in ran.stdout and "goes on with it" in ran.stdout
    journal = Journal(out, {"a": 1})
    assert journal.done > 100
    assert [record["n"] for record in journal.records()] == list(range(journal.done))
    journal.close()


def test_csv_holds_all_columns(tmp_path):
    journal = Journal(tmp_path / "out.csv", {})
    journal.append([{"image": "a,b.png", "caption": 'a "red"\nline'}, {"image": "c.png", "error": "broken"}])
    journal.finish()
    with open(tmp_path / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"image": "a,b.png", "caption": 'a "red"\nline', "error": ""},
        {"image": "c.png", "caption": "", "error": "broken"},
    ]


def test_folders_files_and_patterns(pictures):
    pngs = sorted(map(str, pictures.glob("*.png")))
    assert list_pictures([str(pictures)]) == pngs
    assert list_pictures([f"{pictures}/*.png", str(pictures / "red.png")]) == pngs
    assert list_pictures([str(pictures / "red.png"), f"{pictures}/b*.png"])[0] == str(pictures / "red.png")
    for empty in ("", " ", "\t"):
        with pytest.raises(DataError, match="is empty; name a picture, a folder or a pattern"):
            list_pictures([str(pictures / "red.png"), empty])
    for wrong in ([], [str(pictures / "none.png")], [f"{pictures}/*.txt"]):
        with pytest.raises(DataError):
            list_pictures(wrong)


def test_torch_is_not_asked_for_a_random_number(pipeline, pictures):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    pipeline.answers([Question((pictures / "red.png",), "what?")], SHORT)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_target_that_is_a_folder(tmp_path):
    with pytest.raises(ConfigError, match="is a folder; name a file"):
        Journal(tmp_path, {})
    with pytest.raises(StorageError, match="cannot be written"):
        Journal("/dev/null/out.jsonl", {})


def test_json_of_any_text_survives(tmp_path):
    journal = Journal(tmp_path / "out.jsonl", {})
    records = [{"t": "\ud800 \u2028 é \x00"}, {"t": "\r\n"}]
    journal.append(records)
    journal.finish()
    assert [
        json.loads(line) for line in (tmp_path / "out.jsonl").read_text(errors="surrogatepass").split("\n")[:-1]
    ] == records
