"""Every task of LAVIS trains and evaluates, with its runner and with ours, with its release and with its git main.

Git main is tested itself where ``GITLLM_TEST_LAVIS_MAIN`` names a checkout of it; else what it does otherwise is
imitated by the doubles below, each a few lines of its own code.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import gitllm_plugin
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.host import launch

gitllm_plugin.register()

from lavis.common.registry import registry  # noqa: E402
from lavis.datasets.datasets.vqa_datasets import VQADataset  # noqa: E402
from lavis.tasks.base_task import BaseTask  # noqa: E402
from lavis.tasks.captioning import CaptionTask  # noqa: E402
from lavis.tasks.multimodal_classification import MultimodalClassificationTask  # noqa: E402
from lavis.tasks.vqa import VQATask  # noqa: E402

from gitllm_plugin.metrics.captions import has_java  # noqa: E402
from gitllm_plugin.models.samples import with_one_answer_each  # noqa: E402
from gitllm_plugin.tasks.host_task import CountedTraining  # noqa: E402
from tests.benchmark_files import write_benchmarks  # noqa: E402

CHECKOUT = os.environ.get("GITLLM_TEST_LAVIS_MAIN", "")
REPOSITORY = Path(__file__).parents[2]
TASKS = {
    # task: data set, file of training, files of evaluation, images, split of evaluation, processor of texts
    "captioning": ("coco_caption", "captions.json", ["coco/annotations/coco_karpathy_test.json"], "coco/images"),
    "vqa": (
        "coco_vqa",
        "coco/annotations/vqa_train.json",
        [
            "coco/annotations/vqa_val_eval.json",
            "coco/annotations/answer_list.json",
            "coco/annotations/v2_OpenEnded_mscoco_val2014_questions.json",
            "coco/annotations/v2_mscoco_val2014_annotations.json",
        ],
        "coco/images",
    ),
    "gqa": (
        "gqa",
        "gqa/annotations/testdev_balanced_questions.json",
        ["gqa/annotations/testdev_balanced_questions.json"],
        "gqa/images",
    ),
    "aok_vqa": (
        "aok_vqa",
        "aokvqa/annotations/aokvqa_v1p0_val.json",
        ["aokvqa/annotations/aokvqa_v1p0_val.json", "aokvqa/annotations/specialized_vocab_train_lavis.json"],
        "coco/images",
    ),
    "multimodal_classification": (
        "snli_ve",
        "snli/annotations/ve_test.json",
        ["snli/annotations/ve_test.json"],
        "flickr30k/images/flickr30k-images",
    ),
    "dialogue": (
        "git_llm_visdial",
        "visdial/annotations/visdial_1.0_val.json",
        ["visdial/annotations/visdial_1.0_val.json"],
        "visdial/images",
    ),
    "image_text_pretrain": ("coco_caption", "captions.json", None, "coco/images"),
    "retrieval": ("flickr30k", "captions.json", ["flickr30k/annotations/test.json"], "flickr30k/images"),
}
CAPTIONS = ("coco_caption", "flickr30k")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("lavis_data")
    write_benchmarks(root)
    for place in ("coco/annotations/coco_karpathy_test.json", "flickr30k/annotations/test.json"):
        rows = [
            {"image": row["image"], "caption": row["caption"][0], "image_id": f"a_{n}", "instance_id": str(n)}
            for n, row in enumerate(json.loads((root / place).read_text()))
        ]
        (root / place).with_name("captions.json").write_text(json.dumps(rows))
    return root


def config_of(data, tmp_path, task, runner):
    name, train, evaluated, images = TASKS[task]
    train = train if "/" in train else str(Path("coco" if name == "coco_caption" else name) / "annotations" / train)
    text = "blip_caption" if name in CAPTIONS else "git_llm_instruction"
    storage = None if evaluated is None else {"storage": [str(data / file) for file in evaluated]}
    if storage is not None and len(storage["storage"]) == 1:
        storage = {"storage": storage["storage"][0]}
    phases = ("train", "eval")
    node = {
        "vis_processor": {phase: {"name": f"git_llm_image_{phase}", "image_size": 32} for phase in phases},
        "text_processor": {phase: {"name": text} for phase in phases},
        "build_info": {
            "annotations": {"train": {"storage": str(data / train)}, "val": storage, "test": None},
            "images": {"storage": str(data / images)},
        },
    }
    run = {
        "task": task,
        "runner": runner,
        "output_dir": str(tmp_path / "output"),
        "device": "cpu",
        "num_workers": 0,
        "batch_size_train": 3,
        "batch_size_eval": 3,
        "max_epoch": 1,
        "init_lr": 1e-3,
        "seed": 1,
        "train_splits": ["train"],
        "valid_splits": [] if storage is None else ["val"],
        "test_splits": [],
    }
    if task in ("vqa", "gqa", "aok_vqa"):
        run |= {"max_len": 3, "inference_method": "generate"}
    if task == "captioning":
        run |= {"max_len": 4, **({"caption_metrics": ["cider"]} if has_java() else {"report_metric": False})}
    if runner == "git_llm":
        run |= {"precision": "fp32"}
    else:
        run |= {"lr_sched": "linear_warmup_cosine_lr", "min_lr": 0.0, "weight_decay": 0.0, "distributed": False}
        run |= {"amp": False, "evaluate": False, "world_size": 1, "dist_url": "env://"}
    model = {"arch": "git_llm", "model_type": "tiny_llama", "trainable": "proj"}
    if name == "snli_ve":
        model["class_names"] = ["no", "maybe", "yes"]
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"model": model, "datasets": {name: node}, "run": run}))
    return path


def launched(path):
    """Train; LAVIS's own runners are made for one run a process, and register their folders once."""
    for name in ("output_dir", "result_dir"):
        registry.mapping["paths"].pop(name, None)
    return launch.train(path)


def train(data, tmp_path, task, runner):
    if task == "captioning":
        pytest.importorskip("pycocoevalcap", reason="needs the extra `eval`")
    done = launched(config_of(data, tmp_path, task, runner))
    folder = Path(done.output_dir)
    assert list(folder.glob("checkpoint_*.pth"))
    if task == "image_text_pretrain":
        return None
    lines = [json.loads(line) for line in (folder / "log.txt").read_text().splitlines() if line.startswith('{"')]
    scores = [line for line in lines if any("agg_metrics" in key for key in line)]
    assert scores, lines
    return scores[-1]


@pytest.mark.parametrize("runner", ["git_llm", "runner_base"])
@pytest.mark.parametrize("task", TASKS)
def test_every_task_trains_and_evaluates(data, tmp_path, task, runner):
    train(data, tmp_path, task, runner)


def test_a_mixture_by_ratios_under_the_hosts_runner(data, tmp_path):
    path = config_of(data, tmp_path, "image_text_pretrain", "runner_iter")
    config = yaml.safe_load(path.read_text())
    other = yaml.safe_load(config_of(data, tmp_path, "retrieval", "runner_iter").read_text())["datasets"]["flickr30k"]
    other["build_info"]["annotations"]["val"] = None
    config["datasets"]["flickr30k"] = other
    config["run"] |= {"max_iters": 2, "iters_per_inner_epoch": 1, "batch_size_train": 1}
    for ratios, wanted in (
        ({"coco_caption": 0, "flickr30k": 1}, {"flickr30k"}),
        ({"coco_caption": 1, "flickr30k": 0}, {"coco_caption"}),
        ({"coco_caption": 1.5, "flickr30k": 2}, {"coco_caption", "flickr30k"}),
    ):
        config["run"]["train_dataset_ratios"] = ratios
        path.write_text(yaml.safe_dump(config))
        runner = launched(path)
        pair = runner.train_loader
        counts = {len(loader) for loader in pair.loaders}
        assert counts == {5, 3}
        assert [ratio > 0 for ratio in pair.ratios] == [name in wanted for name in ("coco_caption", "flickr30k")]
    for ratios in ({"coco_caption": 1}, {"coco_caption": 1, "flickr30k": None}, {"coco_caption": 1, "flickr30k": -1}):
        config["run"]["train_dataset_ratios"] = ratios
        path.write_text(yaml.safe_dump(config))
        with pytest.raises(ConfigError, match="train_dataset_ratios"):
            launched(path)


# ---------------------------------------------------------------------------------------- what git main does otherwise


@pytest.fixture
def as_git_main(monkeypatch):
    """Doubles of what git main's tasks do and the release's do not; its own lines, shortened."""

    def caption_init(self, num_beams, max_len, min_len, repetition_penalty, length_penalty, evaluate, split, **kwargs):
        assert len(split) == 1, "Only support one split for evaluation."

    def caption_setup(cls, cfg):
        run = cfg.run_cfg
        return cls(
            num_beams=run.get("num_beams", 5),
            max_len=run.get("max_len", 30),
            min_len=run.get("min_len", 1),
            repetition_penalty=1.15,
            length_penalty=0.0,
            evaluate=run.evaluate,
            report_metric=run.get("report_metric", True),
            annotation_file=run.get("annotation_file", None),
            split=run.get("valid_splits", ["val"]),
        )

    def caption_data(self, cfg):
        raise AssertionError("git main reads all pictures here")

    def question_data(self, cfg):
        datasets = BaseTask.build_datasets(self, cfg)
        for dataset in datasets.values():
            for split in self.valid_splits:
                self.ques_files[split] = dataset[split].coco_fmt_qust_file
        return datasets

    def classify(self, model, samples):
        import inspect

        return inspect.getargspec(model.predict)

    def step(self, model, samples):
        output = model(samples)
        return output["loss"], {name: value for name, value in output.items() if "loss" in name}

    collate = VQADataset.collater

    def collater(self, samples):
        batch = collate(self, samples)
        return {**batch, "weight": torch.as_tensor(batch["weight"]).tolist()}

    monkeypatch.setattr(CaptionTask, "__init__", caption_init)
    monkeypatch.setattr(CaptionTask, "setup_task", classmethod(caption_setup))
    monkeypatch.setattr(CaptionTask, "build_datasets", caption_data, raising=False)
    monkeypatch.setattr(VQATask, "build_datasets", question_data)
    monkeypatch.setattr(MultimodalClassificationTask, "valid_step", classify)
    monkeypatch.setattr(BaseTask, "train_step", step)
    monkeypatch.setattr(VQADataset, "collater", collater)


@pytest.mark.parametrize("task", ["captioning", "vqa", "aok_vqa", "multimodal_classification"])
def test_tasks_of_git_main_give_the_scores_of_the_release(data, tmp_path, task, request):
    (tmp_path / "release").mkdir(), (tmp_path / "main").mkdir()
    release = train(data, tmp_path / "release", task, "git_llm")
    request.getfixturevalue("as_git_main")
    assert train(data, tmp_path / "main", task, "git_llm") == release


def test_a_task_without_counts_trains_with_git_mains_pair(data, tmp_path, as_git_main, monkeypatch):
    monkeypatch.delattr(CountedTraining, "train_outputs")
    train(data, tmp_path, "gqa", "git_llm")


def test_answers_in_the_place_of_texts_share_their_questions_picture():
    """A double of git main's ``VQAInstructDataset.collater``: answers stand a second time as ``text_output``."""
    batch = {
        "image": torch.zeros(2, 3, 8, 8),
        "text_input": ["a?", "b?"],
        "answer": ["x", "y", "z"],
        "text_output": ["x", "y", "z"],
        "weight": [0.5, 0.5, torch.tensor(1.0)],
        "n_answers": torch.tensor([2, 1]),
    }
    read = with_one_answer_each(batch, "", list)
    assert read["text_input"] == ["a?", "a?", "b?"] and read["image_index"].tolist() == [0, 0, 1]
    assert read["text_output"] == ["x", "y", "z"] and read["weight"].tolist() == [0.5, 0.5, 1.0]


@pytest.mark.slow
@pytest.mark.skipif(not CHECKOUT, reason="GITLLM_TEST_LAVIS_MAIN names no checkout of LAVIS's git main")
def test_git_main_itself():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([CHECKOUT, str(REPOSITORY)])}
    files = [
        "tests/tasks/test_host_tasks.py",
        __file__,
        "tests/models/test_comparing.py",
        "tests/host/test_folder_config.py",
        "tests/host/test_our_model_by_lavis.py",
    ]
    command = [sys.executable, "-m", "pytest", "-q", *files]
    finished = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout
