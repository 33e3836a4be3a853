import json

import pytest
from PIL import Image

from examples.easyvqa.data import CONFIGS, convert, read_rows
from examples.easyvqa.errors import DemoError
from examples.easyvqa.figures import RIGHT, WRONG, choose_examples, draw_predictions
from examples.easyvqa.report import Result, collect_results, format_seconds, format_table, write_report
from examples.easyvqa.runs import newest_run


@pytest.fixture
def data(easy_vqa, tmp_path):
    convert(easy_vqa, tmp_path / "m3it", val_images=6, shuffled_images=10)
    return tmp_path / "m3it"


def make_prediction(row, right):
    return {
        "instance_id": row["id"],
        "config": row["config"],
        "question": row["inputs"],
        "prompt": "Answer:",
        "prediction": row["outputs"] if right else "some $thing\nelse$_{",
        "references": [row["outputs"]],
        "exact_match": float(right),
        "rouge_l": float(right),
    }


@pytest.fixture
def evaluation(data, tmp_path):
    """An evaluation's folder as the task and the runner write it; every third answer is wrong."""
    run = tmp_path / "evaluate" / "20260101000000"
    (run / "result").mkdir(parents=True)
    rows = [row for path in sorted(data.glob("test*/*.jsonl")) for row in read_rows(path)]
    predictions = [make_prediction(row, bool(index % 3)) for index, row in enumerate(rows)]
    (run / "result" / "test_epochbest.jsonl").write_text("".join(json.dumps(p) + "\n" for p in predictions))
    metrics = {"split": "test", "epoch": "best", "num_examples": len(rows), "exact_match": 0.66, "loss": 1.0}
    scores = {"caption": 0.75, "open": 0.5, "yesno": 0.9, "caption_shuffled": 0.03, "open_shuffled": 0.25}
    metrics |= {f"{config}/exact_match": score for config, score in scores.items()}
    metrics |= {f"{config}/rouge_l": 0.0 for config in scores}
    (run / "test_metrics.json").write_text(json.dumps(metrics))
    (run / "versions.json").write_text(json.dumps({"python": "3.12.1", "torch": "2.13.0", "command": ["x"]}))
    return run


@pytest.fixture
def training(tmp_path):
    """A training's folder with the loss of 30 steps."""
    run = tmp_path / "train" / "20260101000000"
    run.mkdir(parents=True)
    steps = [{"step": step, "loss": 3.0 / (step + 1), "lr": 1e-3, "seconds": 0.5} for step in range(30)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    return run


def test_report_has_table_controls_pictures_times_and_environment(data, training, evaluation, tmp_path):
    output = tmp_path / "demo"
    output.mkdir()
    results = write_report(
        output,
        data,
        training,
        evaluation,
        seconds={"training": 251.0, "evaluation": 59.6},
        commands=["python -m gitllm_plugin train --cfg-path a.yaml"],
    )
    page = (output / "README.md").read_text()
    assert [result.accuracy for result in results] == [0.75, 0.5, 0.9]
    for text in (
        "| captions         |            16 |       75.0% |",
        "|            3.0% |",
        "- training: 4 min 11 s",
        "- evaluation: 1 min 00 s",
        "python -m gitllm_plugin train --cfg-path a.yaml",
        "- torch: 2.13.0",
        "- CPU cores: ",
        "](predictions.png)",
        "](loss.png)",
        str(evaluation),
    ):
        assert text in page
    for name in ("predictions.png", "loss.png"):
        assert min(Image.open(output / name).size) > 300


def test_controls_stand_beside_the_scores(data):
    accuracies = {"caption": 1.0, "open": 1.0, "yesno": 1.0, "caption_shuffled": 0.1, "open_shuffled": 0.2}
    evaluated = [row for config in CONFIGS for row in read_rows(data / "test" / f"{config}.jsonl")]
    predictions = [{"config": row["config"], "instance_id": row["id"]} for row in evaluated]
    caption, open_, yesno = collect_results(data, accuracies, predictions)
    assert (caption.shuffled, open_.shuffled, yesno.shuffled) == (0.1, 0.2, None)
    assert yesno.blind_guess == 13 / 20  # always "no"
    assert caption.examples == 16


def test_table_is_markdown():
    table = format_table([Result("yesno", 7136, 0.99, 0.825, None), Result("open", 2537, 0.8, 0.233, 0.2)])
    assert table.splitlines() == [
        "| configuration    | test examples | exact match | blind guess | shuffled images |",
        "|------------------|--------------:|------------:|------------:|----------------:|",
        "| yes/no questions |         7,136 |       99.0% |       82.5% |               - |",
        "| open questions   |         2,537 |       80.0% |       23.3% |           20.0% |",
    ]


def test_pictured_examples_are_the_same_every_time_and_never_the_control(data):
    rows = [row for path in sorted(data.glob("test*/*.jsonl")) for row in read_rows(path)]
    predictions = [make_prediction(row, True) for row in rows]
    chosen = choose_examples(predictions)
    assert chosen == choose_examples(predictions) and len(chosen) == 16
    assert {example["config"] for example in chosen} == {"caption", "open", "yesno"}


def test_right_answers_are_green_and_wrong_ones_red(data, tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn = []
    write = Axes.text
    monkeypatch.setattr(
        Axes, "text", lambda self, x, y, s, **kw: drawn.append((s, kw["color"])) or write(self, x, y, s, **kw)
    )
    rows = read_rows(data / "test" / "open.jsonl")[:2]
    examples = [make_prediction(rows[0], True), make_prediction(rows[1], False)]
    draw_predictions(examples, {row["id"]: row["image_base64_str"] for row in rows}, tmp_path / "p.png")
    assert drawn[0] == ("answer: rectangle", RIGHT)
    assert drawn[2] == ("answer: some $thing else$_{", WRONG)


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (125, "2 min 05 s")])
def test_seconds_are_written_as_people_read_them(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize("links", [True, False], ids=["link", "text"])
def test_newest_run_is_the_one_that_is_linked(tmp_path, links):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics").touch()
    if links:
        (tmp_path / "latest").symlink_to("a")
    else:
        (tmp_path / "latest").write_text(f"{tmp_path / 'a'}\n")
    assert newest_run(tmp_path, "latest", "metrics") == tmp_path / "a"
    with pytest.raises(DemoError, match="no latest run with other"):
        newest_run(tmp_path, "latest", "other")
    with pytest.raises(DemoError, match="no latest_evaluation run"):
        newest_run(tmp_path, "latest_evaluation", "metrics")
