"""Task `m3it`: settings, scores, and what it writes."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch
from lavis.common.registry import registry
from omegaconf import OmegaConf

from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.tasks.m3it import EvaluationResult, M3ITTask
from gitllm_plugin.tasks.report import average_scores, format_table, unique_by_id


def task(**run) -> M3ITTask:
    """A task built from the keys of `run:`."""
    return M3ITTask.setup_task(SimpleNamespace(run_cfg=OmegaConf.create(run)))


class EchoModel:
    """Answers with the last word of the prompt; the loss is the number of examples."""

    device = torch.device("cpu")

    def __init__(self):
        self.calls = []

    def __call__(self, samples):
        count = len(samples["text_input"])
        return {"loss": torch.tensor(float(count)), "num_supervised_tokens": 10 * count}

    def predict_answers(self, samples, **settings):
        self.calls.append(settings)
        return [text.split()[-1] for text in samples["text_input"]]


def batch(*rows: tuple[str, str, str, str]) -> dict:
    """Samples from (config, id, prompt, reference)."""
    configs, ids, prompts, references = zip(*rows, strict=True)
    return {
        "image": torch.zeros(len(rows), 3, 2, 2),
        "config": list(configs),
        "instance_id": list(ids),
        "text_input": list(prompts),
        "text_output": list(references),
        "question": [f"about {prompt}" for prompt in prompts],
        "references": [[reference] for reference in references],
    }


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A run's folder, as the runner registers it."""
    (tmp_path / "result").mkdir()
    monkeypatch.setitem(registry.mapping["paths"], "output_dir", str(tmp_path))
    monkeypatch.setitem(registry.mapping["paths"], "result_dir", str(tmp_path / "result"))
    return tmp_path


BATCHES = [
    batch(("vqa", "10", "say red", "Red."), ("vqa", "2", "say blue", "green")),
    batch(("caption", "1", "say cat", "cat")),
]


def test_it_is_registered():
    assert registry.get_task_class("m3it") is M3ITTask


def test_evaluation_scores_each_example_and_writes_everything(folder, caplog):
    m3it = task(max_len=5, num_beams=2)
    model = EchoModel()
    with caplog.at_level(logging.INFO):
        result = m3it.evaluation(model, BATCHES, cuda_enabled=False)
        scores = m3it.after_evaluation(val_result=result, split_name="val", epoch=3)

    assert model.calls[0] == {"max_len": 5, "min_len": 1, "num_beams": 2}
    assert scores["loss"] == pytest.approx((2 * 20 + 1 * 10) / 30)
    assert scores["exact_match"] == scores["agg_metrics"] == pytest.approx(2 / 3)
    assert (scores["vqa/exact_match"], scores["caption/rouge_l"]) == (0.5, 1.0)
    lines = [json.loads(line) for line in (folder / "result" / "val_epoch3.jsonl").read_text().splitlines()]
    assert [(line["config"], line["instance_id"]) for line in lines] == [
        ("caption", "1"),
        ("vqa", "2"),
        ("vqa", "10"),
    ]
    assert lines[1] == {
        "instance_id": "2",
        "config": "vqa",
        "question": "about say blue",
        "prompt": "say blue",
        "prediction": "blue",
        "references": ["green"],
        "exact_match": 0.0,
        "rouge_l": 0.0,
    }
    written = json.loads((folder / "val_metrics.json").read_text())
    assert written == {"split": "val", "epoch": 3, **scores}
    assert "vqa             2         50.0     50.0" in caplog.text


def test_without_metrics_nothing_is_generated(folder):
    m3it = task(metrics=[])
    model = EchoModel()
    scores = m3it.after_evaluation(m3it.evaluation(model, BATCHES), "val", 0)
    assert model.calls == []
    assert scores["agg_metrics"] == -scores["loss"] == pytest.approx(-50 / 30)


def test_loss_can_be_left_out(folder):
    m3it = task(valid_loss=False, agg_metric="rouge_l")
    scores = m3it.after_evaluation(m3it.evaluation(EchoModel(), BATCHES), "val", 0)
    assert "loss" not in scores
    assert scores["agg_metrics"] == scores["rouge_l"]


def test_training_gets_the_loss_and_its_weight():
    outputs = task().train_outputs(EchoModel(), BATCHES[0])
    assert outputs["num_supervised_tokens"] == 20
    assert task().train_step(EchoModel(), BATCHES[0]) == 2.0


def test_an_empty_split_is_refused(folder):
    with pytest.raises(DataError, match="'val' has no examples"):
        task().after_evaluation(EvaluationResult(), "val", 0)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ({"metrics": ["exact_mach"]}, "exact_mach; there are .*exact_match"),
        ({"agg_metric": "cider"}, "'cider', but computed are: exact_match, rouge_l, loss"),
        ({"agg_metric": "loss", "valid_loss": False}, "'loss', but computed are: exact_match, rouge_l"),
        ({"metrics": [], "valid_loss": False}, "but computed are: none"),
    ],
)
def test_settings_that_cannot_be_are_refused(run, message):
    with pytest.raises(ConfigError, match=message):
        task(**run)


def test_repeated_examples_count_once():
    examples = [{"config": "a", "instance_id": name, "m": 1.0} for name in ("1", "0", "1")]
    unique = unique_by_id(examples)
    assert [example["instance_id"] for example in unique] == ["0", "1"]
    assert average_scores(unique, ["m"]) == {"num_examples": 2, "m": 1.0, "a/m": 1.0}


def test_the_table_has_a_row_per_configuration():
    examples = [{"config": "a", "m": 1.0}, {"config": "bb", "m": 0.0}]
    assert format_table(examples, ["m"]).splitlines() == [
        "config  examples      m",
        "a              1  100.0",
        "bb             1    0.0",
        "all            2   50.0",
    ]
