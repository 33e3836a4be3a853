"""The engine of llama.cpp answers as the pipeline does: what asks the one can ask the other."""

# ruff: noqa: E402

import json
import os
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image

for package in ("gguf", "onnx", "onnxscript", "onnxruntime", "xllamacpp"):
    pytest.importorskip(package, reason="pip install 'gitllm-plugin[llama-cpp]'")

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.inference.asking import Answering, Decoding, Question
from gitllm_plugin.llama_cpp.engine import Engine
from gitllm_plugin.llama_cpp.folder import DESCRIPTION, ENCODER, WEIGHTS
from gitllm_plugin.llama_cpp.library import usual_threads

SHORT = Decoding(max_new_tokens=6)


def picture(color, size=(40, 30)):
    return Image.new("RGB", size, color)


@pytest.fixture(params=["torch", "llama.cpp"])
def answering(request, exported) -> Answering:
    return exported[0] if request.param == "torch" else Engine(exported[1], threads=1)


@pytest.fixture
def folder(exported, tmp_path):
    return shutil.copytree(exported[1], tmp_path / "gguf")


def test_what_answers_says_what_it_is(answering, exported):
    assert answering.max_images == 1
    assert answering.instruction is None
    about = answering.describe()
    assert set(about) == {"image_encoder", "language_model", "parameters", "runs_on"}
    assert {name: about[name] for name in about if name != "runs_on"}.items() <= exported[0].describe().items()


@pytest.mark.parametrize(
    ("source", "shown"),
    [("/home/somebody/weights/a-model", "a-model"), ("~/a-model", "a-model"), ("org/a-model", "org/a-model")],
)
def test_no_folder_of_this_machine_is_named(exported, monkeypatch, source, shown):
    monkeypatch.setitem(exported[0].model.sources, "language_model", source)
    assert exported[0].describe()["language_model"] == shown


def test_a_cut_answer_is_known(answering):
    answer = answering.answer(picture("red"), "what is it?", None, SHORT)
    assert answering.is_cut(answer, SHORT)
    assert not answering.is_cut("a red circle", Decoding(max_new_tokens=30))


def test_what_the_encoder_sees_is_shown(answering, exported):
    smooth = Image.fromarray(np.linspace(0, 255, 60 * 48 * 3).reshape(60, 48, 3).astype(np.uint8))
    shown = np.asarray(answering.seen(smooth), np.int16)
    assert shown.shape == (32, 32, 3)
    assert np.abs(shown - np.asarray(exported[0].seen(smooth), np.int16)).max() <= 1


def test_streams_between_each_other_are_as_alone(answering):
    asked = [(picture("red"), "what is it?"), (picture("blue"), "is it red?"), (picture("red"), "why?")]
    alone = [list(answering.stream(*each, None, SHORT)) for each in asked]
    streams, found = [answering.stream(*each, None, SHORT) for each in asked], [[] for _ in asked]
    # In turns, each after another's: a reader that waits holds nobody up.
    for _ in range(SHORT.max_new_tokens + 1):
        for stream, given in zip(streams, found, strict=True):
            given.extend(answer for answer in [next(stream, None)] if answer is not None)
    assert found == alone


def test_who_stops_reading_leaves_it_to_the_next(answering):
    whole = answering.answer(picture("green"), "what is it?", None, SHORT)
    for _ in range(3):
        stream = answering.stream(picture("red"), "what is it?", None, SHORT)
        next(stream)
        stream.close()
        assert answering.answer(picture("green"), "what is it?", None, SHORT) == whole


def test_many_threads_get_the_answers_of_one(answering):
    asked = [(picture(color), question) for color in ("red", "lime", "navy") for question in ("what?", "", "how many?")]
    alone = [answering.answer(*each, None, SHORT) for each in asked]
    found = [""] * len(asked)

    def ask(place):
        found[place] = answering.answer(*asked[place], None, SHORT)

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone
    assert answering.answers([Question((each,), text) for each, text in asked], SHORT) == alone


def test_time_ends_an_answer_with_what_there_is(answering):
    whole = answering.answer(picture("red"), "what is it?", None, Decoding(max_new_tokens=100))
    cut = answering.answer(picture("red"), "what is it?", None, Decoding(max_new_tokens=100, max_seconds=1e-9))
    assert whole.startswith(cut)
    assert len(cut) < len(whole)


def _flip(path, place, bit=1):
    data = bytearray(path.read_bytes())
    data[place] ^= bit
    path.write_bytes(data)


def _change(path, **settings):
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda f: (f / ENCODER).unlink(), "has no image_encoder.onnx"),
        (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:5000]), "has not the bytes"),
        (lambda f: (f / WEIGHTS).write_bytes(b""), "is empty"),
        (lambda f: (f / ENCODER).write_text("version https://git-lfs.github.com/spec/v1"), "git-lfs"),
        # One bit in the middle: neither library would see it.
        (lambda f: _flip(f / WEIGHTS, (f / WEIGHTS).stat().st_size // 2), "has not the bytes"),
        (lambda f: _flip(f / ENCODER, (f / ENCODER).stat().st_size // 2), "has not the bytes"),
        # Lengths of names and counts, by which llama.cpp reads on.
        *((lambda f, at=at: _flip(f / WEIGHTS, at, 0x80), "has not the bytes") for at in (8, 15, 16, 23, 31)),
        (lambda f: _change(f / DESCRIPTION, format=0), "another version"),
        (lambda f: _change(f / DESCRIPTION, ends=[0]), "has not what was written"),
        (lambda f: _change(f / DESCRIPTION, checksums={"other": "0"}), "has not what was written"),
        (lambda f: (f / DESCRIPTION).write_text("[" * 50), "no folder of"),
    ],
)
def test_a_damaged_folder_is_told(folder, damage, told):
    damage(folder)
    with pytest.raises(ConfigError, match=told):
        Engine(folder, threads=1)


def test_what_was_changed_on_purpose_is_read(folder):
    about = json.loads((folder / DESCRIPTION).read_text())
    about["prompt"]["instruction"] = "Look closely."
    del about["checksums"][DESCRIPTION]
    (folder / DESCRIPTION).write_text(json.dumps(about))
    assert Engine(folder, threads=1).instruction == "Look closely."


def test_a_folder_by_its_name_on_the_hub(exported, tmp_path):
    """The hub's cache as it lies on a disk after a download, read without torch and without the hub."""
    picture("red").save(tmp_path / "red.png")
    cached = tmp_path / "hub" / "models--someone--tiny-gguf"
    shutil.copytree(exported[1], cached / "snapshots" / "0123abc")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123abc")
    program = (
        "import sys\nfor name in ('torch', 'transformers', 'lavis', 'safetensors'): sys.modules[name] = None\n"
        "from gitllm_plugin.cli.main import main\nsys.exit(main(sys.argv[1:]))"
    )
    command = ["ask", str(tmp_path / "red.png"), "what is it?", "--model", "someone/tiny-gguf", "--max-new-tokens", "5"]
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", program, *command], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert ran.returncode == 0, ran.stderr
    expected = exported[0].answer(picture("red"), "what is it?", None, Decoding(max_new_tokens=5))
    assert ran.stdout.strip() == expected


@pytest.mark.parametrize("wanted", [WEIGHTS, ENCODER, DESCRIPTION])
def test_the_hub_is_asked_for_all_files_of_a_folder(monkeypatch, wanted, tmp_path):
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    from gitllm_plugin.common.hub import local_folder

    fetched = []

    def stand_in(name, allow_patterns):
        there = [WEIGHTS, ENCODER, DESCRIPTION, "other.gguf", "code.py", "pytorch_model.bin"]
        fetched.extend(filter_repo_objects(there, allow_patterns=allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", stand_in)
    local_folder("someone/tiny-gguf")
    assert wanted in fetched
    assert not {"other.gguf", "code.py", "pytorch_model.bin"} & set(fetched)


@pytest.mark.parametrize("name", ["someone/tiny-gguf", "output/latest", "my.models/v2"])
def test_a_hub_that_cannot_be_asked_is_told(monkeypatch, name, tmp_path):
    from gitllm_plugin.common.hub import local_folder

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=f"no folder {name} here.*pip install huggingface_hub"):
        local_folder(name)


@pytest.mark.parametrize("given", ["an empty folder", "another model", "a file"])
def test_a_model_that_needs_torch_is_told_where_there_is_none(monkeypatch, given, exported, tmp_path):
    from gitllm_plugin.host import open_model

    place = tmp_path if given == "an empty folder" else exported[1].with_name("model")
    place = exported[1] / WEIGHTS if given == "a file" else place
    monkeypatch.setattr(open_model, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="where torch is not installed"):
        open_model.open_answering(place)


def test_the_next_question_reads_what_differs(exported):
    engine = Engine(exported[1], threads=1)
    read, red = [], picture("red")
    decode = engine.decoder.read
    engine.decoder.read = lambda ids, every=False: read.append(len(ids)) or decode(ids, every)
    one = Decoding(max_new_tokens=1)
    asked = ["what color is the shape?", "what color is it?", "what color is it?", "is it?", ""]
    whole = [engine.prompt_ids(question) for question in asked]
    for question in asked:
        assert engine.answer(red, question, None, one) == exported[0].answer(red, question, None, one)
    assert read[0] == len(whole[0])
    for place, (old, new) in enumerate(zip(whole, whole[1:], strict=False), 1):
        same = os.path.commonprefix([old, new])
        assert read[place] == max(1, len(new) - len(same))
    # Behind another picture nothing is the same.
    engine.answer(picture("blue"), asked[-1], None, one)
    assert read[-1] == len(whole[-1])


def test_rows_of_a_file_are_answered_without_torch(exported, tmp_path):
    picture("red").save(tmp_path / "red.png")
    rows = [{"image": "red.png", "question": question} for question in ("what is it?", "is it red?", "")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    program = (
        "import sys\nfor name in ('torch', 'transformers', 'lavis', 'safetensors'): sys.modules[name] = None\n"
        "from gitllm_plugin.cli.main import main\nsys.exit(main(sys.argv[1:]))"
    )
    files = ["--input", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    command = ["predict", *files, "--model", str(exported[1]), "--max-new-tokens", "5"]
    ran = subprocess.run([sys.executable, "-c", program, *command], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    found = [json.loads(line)["answer"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    ask = exported[0].answer
    assert found == [ask(picture("red"), row["question"], None, Decoding(max_new_tokens=5)) for row in rows]


@pytest.mark.parametrize(("said", "threads"), [("1", 1), ("3", 3), ("0", None), ("many", None), ("", None)])
def test_threads_are_those_of_the_environment_or_of_the_process(monkeypatch, said, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert usual_threads() == (threads or len(os.sched_getaffinity(0)))
