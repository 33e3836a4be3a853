"""LAVIS's own tasks on its own data sets: the configurations of `projects/`, run whole on small copies of the data.

Every score is computed a second time, from the predictions that the run wrote.
"""

import functools
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import gitllm_plugin
from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.host import launch
from gitllm_plugin.metrics.captions import has_java

gitllm_plugin.register()

from lavis.common.registry import registry  # noqa: E402

from gitllm_plugin.modeling.build import BuildSettings, build_git_llm  # noqa: E402
from gitllm_plugin.modeling.folder import save_folder  # noqa: E402
from gitllm_plugin.models.git_llm import GitLLMForLavis  # noqa: E402
from gitllm_plugin.tasks.captioning import CaptioningTask  # noqa: E402
from tests.benchmark_files import NAMES, write_benchmarks  # noqa: E402

PROJECTS = Path(__file__).parents[2] / "projects" / "git_llm"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The benchmarks, and a model's folder that reads up to two images."""
    root = tmp_path_factory.mktemp("lavis_data")
    write_benchmarks(root)
    model, tokenizer = build_git_llm("tiny:llama", "tiny:clip", BuildSettings(trainable="proj", max_images=2))
    save_folder(model, root / "model", tokenizer=tokenizer)
    return root


@pytest.fixture
def run(data, tmp_path, monkeypatch):
    """Evaluates (or trains) by a configuration of `projects/`, and gives the run's folder."""
    monkeypatch.setenv("LAVIS_DATA", str(data))
    monkeypatch.setenv("GITLLM_MODEL", str(data / "model"))

    def start(name, *options, dataset, phases=("eval",), call=launch.evaluate):
        small = [f"datasets.{dataset}.vis_processor.{phase}.image_size=32" for phase in phases]
        fixed = ["run.device=cpu", "run.num_workers=0", "run.precision=fp32", f"run.output_dir={tmp_path}"]
        runner = call(PROJECTS / name, [*fixed, *small, *options])
        return runner.output_dir

    return start


def read(path):
    return json.loads(Path(path).read_text())


def scores(folder):
    """The last line of the file in which LAVIS's tasks note their scores."""
    return json.loads((folder / "evaluate.txt").read_text().splitlines()[-1])


CAPTIONS = [
    ("coco_caption", "coco_caption", "test", "coco/annotations/coco_karpathy_test.json"),
    ("nocaps", "nocaps", "val", "nocaps/annotations/nocaps_val.json"),
    ("flickr30k", "flickr30k", "test", "flickr30k/annotations/test.json"),
]
FAST = "run.caption_metrics=[bleu_4,cider]"


@pytest.mark.skipif(not has_java(), reason="needs Java")
@pytest.mark.parametrize(("name", "dataset", "split", "annotations"), CAPTIONS)
def test_captioning(run, data, name, dataset, split, annotations):
    pytest.importorskip("pycocoevalcap", reason="needs the extra `eval`")
    folder = run(f"eval/{name}.yaml", FAST, "run.max_len=5", dataset=dataset)
    results = read(folder / "result" / f"{split}_epochbest.json")
    rows = read(data / annotations)
    ids = {"coco_caption": list(range(1, 6)), "nocaps": [0, 1, 2], "flickr30k": [0, 1, 2]}[name]
    assert [result["image_id"] for result in results] == ids
    assert all(set(result) == {"image_id", "caption"} for result in results)
    found = scores(folder)[split]
    assert set(found) == {"Bleu_4", "CIDEr", "num_images", "tokenizer", "notes", "agg_metrics"}
    assert f"come from {len(ids)} images" in found["notes"]["CIDEr"]

    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokenize = PTBTokenizer().tokenize
    references = tokenize({n: [{"caption": text} for text in row["caption"]] for n, row in enumerate(rows)})
    captions = tokenize({n: [{"caption": result["caption"]}] for n, result in enumerate(results)})
    assert found["CIDEr"] == pytest.approx(Cider().compute_score(references, captions)[0], abs=1e-9)


def test_captions_of_one_image_are_scored_without_cider(data, tmp_path, monkeypatch):
    pytest.importorskip("pycocoevalcap", reason="needs the extra `eval`")
    monkeypatch.setitem(registry.mapping["paths"], "output_dir", str(tmp_path))
    task = CaptioningTask.__new__(CaptioningTask)
    task.caption_metrics = ["bleu_4", "cider"]
    found = task._score([{"caption": "a red square on grass"}], [["a red square on grass"]], "val")
    assert "CIDEr" not in found and found["agg_metrics"] == found["Bleu_4"] == pytest.approx(1)
    assert "of one image is 0" in scores(tmp_path)["val"]["skipped_metrics"]["CIDEr"]


@pytest.mark.skipif(not has_java(), reason="needs Java")
def test_captioning_by_an_annotation_file_scores_the_same(run, data):
    pytest.importorskip("pycocoevalcap", reason="needs the extra `eval`")
    own = run("eval/nocaps.yaml", FAST, "run.max_len=5", dataset="nocaps")
    file = data / "nocaps/annotations/coco_format.json"
    given = run("eval/nocaps.yaml", FAST, "run.max_len=5", f"run.annotation_file={file}", dataset="nocaps")
    assert scores(own) == scores(given)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["run.length_penalty=2", "run.num_beams=2"], {"length_penalty": 2.0}),
        (["run.repetition_penalty=1.5", "run.num_beams=1"], {"repetition_penalty": 1.5}),
        (["run.length_penalty=-1", "run.repetition_penalty=3"], {"length_penalty": -1.0, "repetition_penalty": 3.0}),
        (["run.length_penalty=2", "run.num_beams=1"], {}),  # which the check of configurations tells
        ([], {}),
    ],
)
def test_captioning_hands_on_penalties(run, monkeypatch, options, wanted):
    seen, generate = [], GitLLMForLavis.generate

    @functools.wraps(generate)
    def watched(self, samples, **given):
        seen.append({key: value for key, value in given.items() if "penalty" in key})
        return generate(self, samples, **given)

    monkeypatch.setattr(GitLLMForLavis, "generate", watched)
    run("eval/nocaps.yaml", "run.report_metric=false", "run.max_len=3", *options, dataset="nocaps")
    assert seen and all(each == wanted for each in seen)


@pytest.mark.parametrize("option", ["top_p=0.5", "temperature=2", "img_ids=[1]", "caption_key=text"])
@pytest.mark.parametrize("runner", ["git_llm", "runner_base"])
def test_captioning_refuses_by_name_what_it_does_not_read(run, option, runner):
    with pytest.raises(ConfigError, match=f"run.{option.partition('=')[0]}"):
        given = [f"run.{option}", f"run.runner={runner}", "run.report_metric=false"]
        run("eval/nocaps.yaml", *given, dataset="nocaps")


def test_captioning_refuses_a_penalty_that_the_model_does_not_know():
    task = CaptioningTask.__new__(CaptioningTask)
    task.penalties, task.report_metric = {"length_penalty": 2.0, "repetition_penalty": 1.5}, False

    class Captioner:  # as LAVIS's blip_caption
        def generate(self, samples, num_beams=3, repetition_penalty=1.0):
            return []

        def before_evaluation(self, **kwargs):
            pass

    with pytest.raises(ConfigError, match="^run.length_penalty: captions of Captioner have no such option"):
        task.before_evaluation(Captioner(), None)


def test_captioning_without_scores_needs_no_references(run, data):
    folder = run("eval/nocaps.yaml", "run.report_metric=False", "run.max_len=3", dataset="nocaps")
    assert len(read(folder / "result" / "val_epochbest.json")) == 3
    assert not (folder / "evaluate.txt").exists()


def test_captioning_refuses_what_it_cannot_score(run, data, tmp_path):
    with pytest.raises(ConfigError, match="caption_metrics has cidre; there are bleu_1"):
        run("eval/nocaps.yaml", "run.caption_metrics=[cidre]", dataset="nocaps")
    with pytest.raises(ConfigError, match="there is no file"):
        run("eval/nocaps.yaml", "run.annotation_file=nowhere.json", dataset="nocaps")
    rows = [{key: value for key, value in row.items() if key != "caption"} for row in read(data / CAPTIONS[1][3])]
    (tmp_path / "test.json").write_text(json.dumps(rows))
    where = f"datasets.nocaps.build_info.annotations.val.storage={tmp_path / 'test.json'}"
    with pytest.raises(DataError, match=r"images without captions .* run.report_metric: False"):
        run("eval/nocaps.yaml", where, dataset="nocaps")


@pytest.mark.parametrize(
    ("name", "dataset", "split", "folder", "method"),
    [
        ("vqav2", "coco_vqa", "val", "coco", "rank"),
        ("vqav2", "coco_vqa", "val", "coco", "generate"),
        ("ok_vqa", "ok_vqa", "test", "okvqa", "rank"),
    ],
)
def test_vqa(run, data, name, dataset, split, folder, method):
    output = run(f"eval/{name}.yaml", f"run.inference_method={method}", "run.max_len=4", dataset=dataset)
    results = {row["question_id"]: row["answer"] for row in read(output / "result" / f"{split}_vqa_result.json")}
    prefix = "v2_" if folder == "coco" else ""
    annotations = read(data / folder / "annotations" / f"{prefix}mscoco_val2014_annotations.json")["annotations"]
    assert len(annotations) == 10  # two questions an image: none is lost
    each = []
    for row in annotations:
        given = Counter(answer["answer"] for answer in row["answers"])
        mine = given[results[row["question_id"]]]
        others = [mine - (text == results[row["question_id"]]) for text in given.elements()]
        each.append(sum(min(1, count / 3) for count in others) / 10)
    assert scores(output)["agg_metrics"] == pytest.approx(100 * sum(each) / 10, abs=0.006)  # LAVIS rounds
    if method == "rank":
        assert set(results.values()) <= set(read(data / folder / "annotations" / "answer_list.json"))


def test_gqa(run, data):
    answers = data / "coco/annotations/answer_list.json"
    questions = data / "gqa/annotations/testdev_balanced_questions.json"
    storage = f"datasets.gqa.build_info.annotations.val.storage=[{questions},{answers}]"
    output = run("eval/gqa.yaml", "run.inference_method=rank", storage, dataset="gqa")
    results = read(output / "result" / "val_vqa_result.json")
    truth = {row["question_id"]: row["answer"] for row in read(questions)}
    right = sum(truth[row["question_id"]] == row["pred_ans"] for row in results)
    assert len(results) == 5 and scores(output)["acc"] == pytest.approx(100 * right / 5)


def test_gqa_without_answers_writes_what_its_server_takes(run, data):
    questions = data / "gqa/annotations/test_balanced_questions.json"
    storage = f"datasets.gqa.build_info.annotations.val.storage=[{questions}]"
    output = run("eval/gqa.yaml", storage, "run.max_len=3", dataset="gqa")
    rows = read(f"{output / 'result'}_leaderboard.json")
    assert [row["questionId"] for row in rows] == [row["question_id"] for row in read(questions)]


def test_aok_vqa(run, data):
    output = run("eval/aok_vqa.yaml", "run.max_len=4", "run.inference_method=rank", dataset="aok_vqa")
    results = read(output / "result" / "val_vqa_result.json")
    direct = [min(1, row["gt_ans"].count(row["pred_ans"]) / 3) for row in results]
    lines = [json.loads(line) for line in (output / "evaluate.txt").read_text().splitlines()]
    assert len(results) == 5 and lines[0]["acc"] == pytest.approx(100 * sum(direct) / 5)
    chosen = [row["pred_choice"] == NAMES[(int(row["question_id"][-1])) % 4] for row in results]
    assert lines[1]["multiple_choice_acc"] == pytest.approx(100 * sum(chosen) / 5)


def test_aok_vqa_without_answers_writes_both_settings_for_the_leaderboard(run, data):
    place = "datasets.aok_vqa.build_info.annotations.val.storage"
    folder = data / "aokvqa/annotations"
    storage = f"{place}=[{folder / 'aokvqa_v1p0_test.json'},{folder / 'specialized_vocab_train_lavis.json'}]"
    output = run("eval/aok_vqa.yaml", storage, "run.max_len=4", dataset="aok_vqa")
    rows = read(f"{output / 'result'}_leaderboard.json")
    assert len(rows) == 5 and all(row["multiple_choice"] in NAMES for row in rows.values())


def on_two_ranks(command, name, options):
    """Runs a command of `gitllm` by a configuration of `projects/`, in two processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    asked = ["-m", "gitllm_plugin", command, "--cfg-path", str(PROJECTS / name), "--options", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECTS.parents[1])}
    return subprocess.run([*launcher, *asked], env=environment, capture_output=True, text=True, timeout=200)


@pytest.mark.slow
def test_two_ranks_answer_and_score_as_one_process(run, data, tmp_path):
    """Five questions do not divide by two."""
    options = ["run.inference_method=rank"]
    one = run("eval/aok_vqa.yaml", *options, dataset="aok_vqa")
    output = tmp_path / "two"
    small = ["datasets.aok_vqa.vis_processor.eval.image_size=32", f"run.output_dir={output}"]
    fixed = ["run.device=cpu", "run.num_workers=0", "run.precision=fp32"]
    done = on_two_ranks("evaluate", "eval/aok_vqa.yaml", [*fixed, *options, *small])
    assert done.returncode == 0, done.stderr
    (two,) = output.glob("2*")
    assert (two / "evaluate.txt").read_text() == (one / "evaluate.txt").read_text()
    results = [read(folder / "result" / "val_vqa_result.json") for folder in (one, two)]
    assert len(results[1]) == 5
    assert sorted(results[1], key=str) == sorted(results[0], key=str)


@pytest.mark.parametrize(
    ("name", "dataset", "split", "count"),
    [("imagenet", "imagenet", "val", 3), ("snli_ve", "snli_ve", "test", 3), ("nlvr2", "nlvr", "val", 3)],
)
def test_classification(run, data, name, dataset, split, count):
    output = run(f"eval/{name}.yaml", dataset=dataset)
    results = read(output / "result" / f"{split}_epochbest.json")
    right = sum(row["prediction"] == row["target"] for row in results)
    assert len(results) == count and scores(output)[split]["acc"] == pytest.approx(right / count)
    targets = {"imagenet": [0, 1, 2], "snli_ve": [0, 1, 2], "nlvr2": [0, 0, 0]}[name]
    assert [row["target"] for row in results] == targets


def test_dialogue(run, data):
    output = run("eval/visdial.yaml", "run.batch_size_eval=4", dataset="git_llm_visdial")
    one_by_one = run("eval/visdial.yaml", "run.batch_size_eval=1", dataset="git_llm_visdial")
    loss = scores(output)["val"]["loss"]
    assert loss == pytest.approx(scores(one_by_one)["val"]["loss"], abs=1e-5) and loss > 0
    assert scores(output)["val"]["agg_metrics"] == -loss


def test_pretraining(run, data, monkeypatch):
    monkeypatch.setenv("LAVIS_DATA", str(data))
    images = f"datasets.conceptual_caption_3m.build_info.images.storage={data / 'coco/images'}"
    options = ["model.model_type=tiny_llama", "run.batch_size_train=5", "run.max_epoch=2", "run.log_freq=1"]
    options += ["run.warmup_steps=0", "run.init_lr=1e-2", images]
    output = run(
        "train/pretrain_cc3m.yaml", *options, dataset="conceptual_caption_3m", phases=["train"], call=launch.train
    )
    losses = [json.loads(line)["loss"] for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 6 and losses[-1] < losses[0]
    assert (output / "checkpoint_latest.pth").is_file()


def test_training_on_weighted_answers_with_validation(run, data):
    options = ["run.batch_size_train=5", "run.max_epoch=2", "run.log_freq=1", "run.warmup_steps=0", "run.init_lr=1e-2"]
    output = run("train/vqav2.yaml", *options, dataset="coco_vqa", phases=["train", "eval"], call=launch.train)
    losses = [json.loads(line)["loss"] for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 4 and losses[-1] < losses[0]
    assert "agg_metrics" in (output / "log.txt").read_text()


WEIGHTED = [
    "run.valid_splits=[]",
    "run.max_epoch=4",
    "run.warmup_steps=0",
    "run.init_lr=1e-2",
    "model.trainable=proj",
    "datasets.coco_vqa.vis_processor.train.image_size=32",
    "datasets.coco_vqa.vis_processor.train.name=git_llm_image_eval",
]


def steps(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{key: line[key] for key in ("loss", "grad_norm", "samples", "tokens")} for line in lines]


def same_steps(found, expected):
    return all(step == pytest.approx(other, rel=1e-5) for step, other in zip(found, expected, strict=True))


def test_weighted_answers_are_learnt_alike_in_one_batch_and_in_several(run, data):
    """Ten questions in one batch, or in two, or in five that are added up."""
    how = {"dataset": "coco_vqa", "phases": ["train", "eval"], "call": launch.train}
    expected = steps(run("train/vqav2.yaml", "run.batch_size_train=10", *WEIGHTED, **how))
    assert len(expected) == 4 and expected[-1]["loss"] < expected[0]["loss"]
    for size in (5, 2):
        options = [f"run.batch_size_train={size}", f"run.accum_grad_iters={10 // size}"]
        assert same_steps(steps(run("train/vqav2.yaml", *options, *WEIGHTED, **how)), expected)


@pytest.mark.slow
def test_weighted_answers_are_learnt_alike_on_two_ranks(run, data, tmp_path):
    how = {"dataset": "coco_vqa", "phases": ["train", "eval"], "call": launch.train}
    expected = steps(run("train/vqav2.yaml", "run.batch_size_train=10", *WEIGHTED, **how))
    options = [*WEIGHTED, "run.batch_size_train=5", "run.device=cpu", "run.num_workers=0", "run.precision=fp32"]
    options += ["datasets.coco_vqa.vis_processor.eval.image_size=32", f"run.output_dir={tmp_path / 'two'}"]
    done = on_two_ranks("train", "train/vqav2.yaml", options)
    assert done.returncode == 0, done.stderr
    (two,) = (tmp_path / "two").glob("2*")
    assert same_steps(steps(two), expected)
