"""Task `m3it`: settings, scores, and what it writes."""

import json
import logging
import math
from types import SimpleNamespace

import pytest
import torch
from lavis.common.registry import registry
from omegaconf import OmegaConf

from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.host import launch
from gitllm_plugin.m3it.catalog import CATALOG
from gitllm_plugin.m3it.examples import JsonlExamples
from gitllm_plugin.m3it.tree import find_sources
from gitllm_plugin.metrics import METRICS, captions, metrics_by_config, score_captions
from gitllm_plugin.metrics.captions import has_java
from gitllm_plugin.tasks.m3it import EvaluationResult, M3ITTask
from gitllm_plugin.tasks.picture_page import choose_examples, write_picture_page
from gitllm_plugin.tasks.scores import (
    catalog_category,
    catalog_metrics,
    score_split,
    score_table,
    title_of,
    unique_by_id,
)
from tests.m3it_files import write_m3it_jsonl
from tests.small_run import write_small_run


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
    page = (folder / "val_results.md").read_text()
    assert page.startswith("# val, after epoch 3\n")
    assert "| vqa     |        2 |        50.0 |    50.0 |" in page and "Loss per token: " in page
    assert page not in caplog.text and "val, after epoch 3: exact_match 66.7" in caplog.text


@pytest.mark.parametrize(
    ("epoch", "skip_reload", "title"),
    [(1, False, "test, after epoch 1"), ("best", False, "test, best epoch"), ("best", True, "test")],
)
def test_titles_name_the_best_epoch_only_where_it_was_loaded(epoch, skip_reload, title):
    assert title_of("test", epoch, skip_reload) == title


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


@pytest.mark.parametrize("agg_metric", [None, "coco/cider"])
def test_a_score_that_a_set_is_too_small_for_is_told_everywhere(folder, caplog, agg_metric):
    pytest.importorskip("pycocoevalcap", reason="needs the extra `eval`")
    m3it = task(metrics=["cider", "bleu_1"], agg_metric=agg_metric)
    examples = [*scored("coco", ("a red cat", "a red cat")), *scored("nocaps", ("a dog", "a dog"), ("a car", "a bus"))]
    result = EvaluationResult([{"instance_id": str(n), **example} for n, example in enumerate(examples)])
    with caplog.at_level(logging.INFO):
        scores = m3it.after_evaluation(result, "val", 0)
        m3it.after_evaluation(result, "val", 1)
    written, page = json.loads((folder / "val_metrics.json").read_text()), (folder / "val_results.md").read_text()
    assert "coco/cider" not in scores and "coco/cider was not computed: it weighs words" in page
    assert list(written["skipped_metrics"]) == ["coco/cider"] and list(written["notes"]) == ["nocaps/cider"]
    remark = "nocaps/cider: its weights of words come from 2 images"
    assert remark in page and caplog.text.count(remark) == 1  # not in each epoch
    if agg_metric:
        assert (
            math.isnan(scores["agg_metrics"]) and "run.agg_metric is coco/cider, which was not computed" in caplog.text
        )


def test_repeated_examples_count_once():
    examples = [{"config": "a", "instance_id": name} for name in ("1", "0", "1")]
    assert [example["instance_id"] for example in unique_by_id(examples)] == ["0", "1"]


def scored(config: str, *pairs: tuple[str, str]) -> list[dict]:
    return [{"config": config, "prediction": given, "references": [right]} for given, right in pairs]


EXAMPLES = [
    *scored("coco", ("a red cat", "a red cat"), ("a dog", "a dog runs")),
    *scored("textcap", ("a sign", "no")),
    *scored("imagenet", ("(B) cat", "(B) tabby"), ("(A) dog", "(C) horse"), ("(D) ox", "(D) ox")),
]


def test_the_catalog_gives_every_configuration_metrics_that_exist_and_a_category():
    for entry in CATALOG:
        metrics = catalog_metrics(entry.name)
        assert set(metrics) <= set(METRICS) and "rouge_l" in metrics
        assert catalog_category(entry.name)
    assert catalog_metrics("coco")[0] == "cider" and catalog_metrics("vqa-v2")[0] == "vqa_accuracy"
    assert catalog_metrics("own data") == ("exact_match", "rouge_l") and catalog_category("own data") is None
    assert (catalog_category("coco-cn"), catalog_category("msvd-qa")) == ("chinese", "video")


def test_configurations_have_their_own_metrics_and_categories_are_means():
    metrics = {"imagenet": ["option_accuracy"], "default": ["rouge_l", "exact_match"]}
    report = score_split(EXAMPLES, metrics_by_config(metrics), catalog_category)
    scores = report.as_dict()
    assert scores["imagenet/option_accuracy"] == scores["classification/option_accuracy"] == pytest.approx(2 / 3)
    assert scores["coco/exact_match"] == 0.5 and scores["captioning/exact_match"] == pytest.approx(1 / 3)
    assert scores["exact_match"] == pytest.approx(1 / 3) and "imagenet/exact_match" not in scores
    rouge = [scores["coco/rouge_l"], scores["textcap/rouge_l"]]
    assert scores["captioning/rouge_l"] == pytest.approx((2 * rouge[0] + rouge[1]) / 3)
    assert scores["primary"] == pytest.approx((sum(rouge) + 2 / 3) / 3)
    assert scores["num_examples"] == 6
    assert EXAMPLES[3]["option_accuracy"] == 1.0 and "rouge_l" not in EXAMPLES[3]
    lines = score_table(report).markdown().splitlines()
    assert lines[0] == "|                    | examples | rouge_l | exact_match | option_accuracy |"
    assert lines[3] == "| imagenet           |        3 |       - |           - |            66.7 |"
    assert lines[-1].startswith("| **all**            |        6 |")


def test_scores_stand_beside_what_is_scored_without_the_pictures():
    few = scored("few", ("red", "red"))
    many = scored("many", *[("cat", "cat")] * 15, *[("dog", "dog")] * 10)
    report = score_split(many, metrics_by_config(["exact_match"]))
    table = score_table(report).markdown().splitlines()
    assert table[-2:] == [
        "| best guess from the question alone  |       25 |        60.0 |",
        "| the same answers, to other pictures |       25 |        50.0 |",
    ]
    assert list(report.notes()["controls"]) == [row.name for row in report.controls]
    assert score_split([*many, *few], metrics_by_config(["exact_match"])).controls == []  # not of all


@pytest.mark.skipif(not has_java(), reason="needs Java")
def test_caption_metrics_score_a_configuration_as_a_whole():
    pytest.importorskip("pycocoevalcap", reason="needs the extra `eval`")
    report = score_split(EXAMPLES, metrics_by_config({"coco": ["cider", "spice"], "default": []}))
    coco = [example for example in EXAMPLES if example["config"] == "coco"]
    expected = score_captions([e["prediction"] for e in coco], [e["references"] for e in coco], ["cider"])
    assert report.as_dict()["coco/cider"] == expected.over_all["cider"]
    assert [example["cider"] for example in coco] == expected.by_example["cider"]
    assert report.notes()["tokenizer"].startswith("PTB")


@pytest.mark.parametrize(
    ("run", "agg_metric"),
    [
        ({}, "exact_match"),
        ({"metrics": ["rouge_l"]}, "rouge_l"),
        ({"metrics": "m3it"}, "primary"),
        ({"metrics": {"coco": ["bleu_4"], "default": ["rouge_l"]}}, "primary"),
        ({"metrics": {"coco": ["bleu_4"], "default": ["rouge_l"]}, "agg_metric": "coco/bleu_4"}, "coco/bleu_4"),
        ({"metrics": "m3it", "agg_metric": "captioning/rouge_l"}, "captioning/rouge_l"),
    ],
)
def test_the_score_that_chooses_the_best_epoch(run, agg_metric):
    assert task(**run).agg_metric == agg_metric


def test_a_deciding_score_that_no_configuration_has_is_named_with_those_there_are(folder):
    m3it = task(metrics=["rouge_l"], agg_metric="cocoo/rouge_l", valid_loss=False)
    with pytest.raises(
        ConfigError, match="'cocoo/rouge_l', but computed are: caption/rouge_l, vqa/rouge_l, rouge_l, primary"
    ):
        m3it.after_evaluation(m3it.evaluation(EchoModel(), BATCHES), "val", 0)
    assert (folder / "val_metrics.json").is_file()  # what was computed is not lost


def test_a_deciding_score_that_cannot_be_computed_here_is_refused_before_training(monkeypatch):
    monkeypatch.setattr(captions.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match="'meteor', which cannot be computed here: meteor needs Java"):
        task(metrics=["meteor", "rouge_l"])


def test_examples_that_were_lost_are_counted(folder, caplog):
    m3it = task()
    m3it._dataset = SimpleNamespace(num_examples=5)
    m3it.after_evaluation(m3it.evaluation(EchoModel(), BATCHES), "val", 0)
    assert "Split val has 5 examples, but 3 were evaluated." in caplog.text


def test_the_page_of_pictures_holds_everything_itself(tmp_path):
    write_m3it_jsonl(tmp_path / "a.jsonl", rows=9, images_per_row=2)
    rows = JsonlExamples(find_sources(str(tmp_path / "a.jsonl")))
    examples = [
        {
            "config": text.config,
            "instance_id": text.id,
            "prompt": "<what> color?",
            "prediction": "red & blue",
            "references": list(text.answers),
            "exact_match": 0.0,
        }
        for group in rows
        for text in group.texts
    ]
    shown = choose_examples(SimpleNamespace(examples=rows), examples, count=3)
    assert [entry.example["instance_id"] for entry in shown] == ["toy-0-0", "toy-0-4", "toy-0-8"]
    assert len(choose_examples(SimpleNamespace(examples=rows), examples, count=100)) == 9
    write_picture_page(tmp_path / "page.html", "val", shown)
    page = (tmp_path / "page.html").read_text()
    assert page.count('src="data:image/jpeg;base64,') == 6 and "http" not in page
    assert "&lt;what&gt; color?" in page and "red &amp; blue" in page and "exact_match 0.00" in page
    assert choose_examples(SimpleNamespace(), examples) == []


def test_a_run_evaluates_several_sets_and_leaves_pages_to_look_at(tmp_path):
    config = write_small_run(tmp_path, max_epoch=1, valid_splits=["val", "val_held_out"], test_splits=[])
    write_m3it_jsonl(tmp_path / "held_out.jsonl", rows=3, config="coco", seed=7)
    run = OmegaConf.load(config)
    run.datasets.m3it.build_info.annotations.val_held_out = {"storage": str(tmp_path / "held_out.jsonl")}
    run.run.metrics = {"coco": ["rouge_l"], "default": ["exact_match"]}
    OmegaConf.save(run, config)
    runner = launch.train(config)
    output = runner.output_dir
    scores = {name: json.loads((output / f"{name}_metrics.json").read_text()) for name in ("val", "val_held_out")}
    assert scores["val"]["num_examples"] == 7 and "toy/exact_match" in scores["val"]
    assert scores["val_held_out"]["num_examples"] == 3 and "captioning/rouge_l" in scores["val_held_out"]
    for name, count in (("val", 7), ("val_held_out", 3)):
        lines = (output / "result" / f"{name}_epoch1.jsonl").read_text().splitlines()
        assert len({json.loads(line)["instance_id"] for line in lines}) == len(lines) == count
        assert "| **all**" in (output / f"{name}_results.md").read_text()
        page = (output / f"{name}_pictures.html").read_text()
        assert page.count("<figure>") == count and f"<h1>{name}, after epoch 1</h1>" in page
    for skip_reload, title in ((False, "# val, best epoch\n"), (True, "# val\n")):
        runner.eval_epoch("val", "best", skip_reload)
        assert (output / "val_results.md").read_text().startswith(title)
