"""COCO's captions and VQAv2 of LAVIS mixed with M3IT: exact shares, and a killed run goes on at the very next sample.

With the release of LAVIS; with its git main where ``GITLLM_TEST_LAVIS_MAIN`` names a checkout of it.
"""

import json
import os
from collections import Counter
from pathlib import Path

import pytest
import yaml

from tests.benchmark_files import write_benchmarks
from tests.m3it_files import write_m3it_jsonl
from tests.m3it_shards import make_groups, write_shards

SCRIPT = Path(__file__).parent / "scripts" / "note_batches.py"
CHECKOUT = os.environ.get("GITLLM_TEST_LAVIS_MAIN", "")
HOSTS = [
    "",
    pytest.param(
        CHECKOUT,
        marks=[pytest.mark.slow, pytest.mark.skipif(not CHECKOUT, reason="GITLLM_TEST_LAVIS_MAIN names no checkout")],
        id="git main",
    ),
]
BATCH = 3
# 15 captions, 10 questions and 12 rows of M3IT make 5, 3 and 4 batches.
SIZES = {"coco_caption": 5, "coco_vqa": 3, "m3it": 4}


def data_set_of_lavis(root, train, text):
    phases = ("train", "eval")
    return {
        "vis_processor": {phase: {"name": f"git_llm_image_{phase}", "image_size": 32} for phase in phases},
        "text_processor": {phase: {"name": text} for phase in phases},
        "build_info": {
            "annotations": {"train": {"storage": [str(root / train)]}, "val": None, "test": None},
            "images": {"storage": str(root / "coco" / "images")},
        },
    }


@pytest.fixture
def config(tmp_path):
    """A run of 24 batches, two epochs, over the three data sets."""
    root = tmp_path / "lavis"
    write_benchmarks(root)
    rows = write_m3it_jsonl(tmp_path / "rows.jsonl", rows=12)
    assert len(rows) == 12
    size = {phase: {"image_size": 32} for phase in ("train", "eval")}
    content = {
        "model": {"arch": "git_llm", "model_type": "tiny_llama", "self_test": False},
        "datasets": {
            "coco_caption": data_set_of_lavis(root, "coco/annotations/coco_karpathy_train.json", "blip_caption"),
            "coco_vqa": data_set_of_lavis(root, "coco/annotations/vqa_train.json", "git_llm_instruction"),
            "m3it": {
                "vis_processor": size,
                "build_info": {"annotations": {"train": {"storage": str(tmp_path / "rows.jsonl")}}},
            },
        },
        "run": {
            "task": "m3it",
            "runner": "git_llm",
            "device": "cpu",
            "precision": "fp32",
            "seed": 5,
            "init_lr": 1e-3,
            "max_epoch": 2,
            "batch_size_train": BATCH,
            "num_workers": 0,
            "save_every_steps": 2,
            "valid_splits": [],
            "test_splits": [],
            "output_dir": str(tmp_path / "output"),
            "log_freq": 1,
        },
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def train(run_python, config, tmp_path):
    """Trains in a process of its own; gives what was noted of each batch, and the losses of the run."""

    def run(name, host, killed_before=0, options=()):
        notes, output = tmp_path / f"{name}.jsonl", tmp_path / name
        noted = len(notes.read_text().splitlines()) if notes.exists() else 0
        given = [*options, f"run.output_dir={output}", "run.resume_ckpt_path=auto"]
        repository = str(Path(__file__).parents[2])
        environment = {"PYTHONPATH": os.pathsep.join(filter(None, [host, repository]))}
        finished = run_python(args=[str(SCRIPT), str(config), str(notes), str(killed_before), *given], env=environment)
        assert finished.returncode == (-9 if killed_before else 0), finished.stderr[-3000:]
        lines = [json.loads(line) for line in notes.read_text().splitlines()]
        losses = [json.loads(line)["loss"] for line in (output / "latest" / "metrics.jsonl").read_text().splitlines()]
        return lines[noted:], losses

    return run


def shares(batches):
    assert {size for _, size, *_ in batches} == {BATCH}
    return dict(Counter(source for source, *_ in batches))


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize(
    "ratios",
    [
        pytest.param(None, id="sizes", marks=pytest.mark.slow),
        pytest.param({"coco_caption": 1, "coco_vqa": 2, "m3it": 3}, id="ratios"),
    ],
)
def test_a_killed_run_over_all_three_goes_on_at_the_next_sample(train, host, ratios):
    chosen = [] if ratios is None else [f"run.train_dataset_ratios={json.dumps(ratios)}"]
    whole, losses = train("whole", host, options=chosen)
    assert len(whole) == len(losses) == 2 * sum(SIZES.values())
    wanted = SIZES if ratios is None else {"coco_caption": 2, "coco_vqa": 4, "m3it": 6}
    for epoch in (whole[:12], whole[12:]):
        assert shares(epoch) == wanted
    if ratios is None:  # every example of the epoch once, or what fills no batch not at all
        for source in SIZES:
            texts = [tuple(text) for name, _, *text in whole[:12] if name == source]
            assert len(texts) == len({str(text) for text in texts})
    before, _ = train("killed", host, killed_before=16, options=chosen)
    # Other workers read on from the last checkpoint, which is of batch 14.
    after, resumed = train("killed", host, options=[*chosen, "run.num_workers=2"])
    assert before == whole[:15]
    assert after == whole[14:]
    assert resumed == losses


@pytest.mark.slow
@pytest.mark.parametrize("host", HOSTS)
def test_shards_take_part(train, config, tmp_path, host):
    write_shards(tmp_path / "shards", make_groups(tmp_path / "a.jsonl", "a", "train", rows=36, texts_per_image=3))
    content = yaml.safe_load(config.read_text())
    size = content["datasets"].pop("m3it")["vis_processor"]
    content["datasets"]["m3it_wds"] = {"vis_processor": size, "build_info": {"shards": str(tmp_path / "shards")}}
    content["run"] |= {"train_dataset_ratios": {"coco_caption": 1, "coco_vqa": 1, "m3it_wds": 2}, "max_iters": 16}
    config.write_text(yaml.safe_dump(content))
    whole, losses = train("whole", host)
    assert shares(whole) == {"coco_caption": 4, "coco_vqa": 4, "m3it": 8}
    before, _ = train("killed", host, killed_before=8)
    after, resumed = train("killed", host)
    assert before == whole[:7] and after == whole[6:] and resumed == losses
