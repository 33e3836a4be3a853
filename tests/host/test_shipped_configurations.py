"""Every configuration of `projects/` runs as it is under the host's own train.py or evaluate.py, on small data.

What is changed by options is the size alone: a tiny model, small pictures, a few steps, one process on a CPU.
"""

import json
import runpy
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import gitllm_plugin
from gitllm_plugin.cli.main import main
from gitllm_plugin.m3it.catalog import get_preset
from tests.benchmark_files import write_benchmarks
from tests.m3it_files import write_m3it_jsonl
from tests.m3it_tree import write_entry
from tests.preference_run import with_rejected

ROOT = Path(__file__).parents[2]
PROJECTS = ROOT / "projects" / "git_llm"
SCRIPTS = {"train": "train.py", "eval": "evaluate.py"}
# One of each kind; the others take a minute together.
QUICK = ("train/exp1_proj", "train/dpo_pairs", "eval/vqav2")
NEEDS_CAPTION_METRICS = ("coco_caption", "nocaps", "flickr30k")
CONFIGS = [
    pytest.param(path, id=name, marks=() if name in QUICK else pytest.mark.slow)
    for path in sorted([*PROJECTS.glob("train/*.yaml"), *PROJECTS.glob("eval/*.yaml")])
    for name in [f"{path.parent.name}/{path.stem}"]
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """M3IT's COCO, LAVIS's data sets, and a model's folder that reads up to two images."""
    from gitllm_plugin.modeling.build import BuildSettings, build_git_llm
    from gitllm_plugin.modeling.folder import save_folder

    gitllm_plugin.register()
    root = tmp_path_factory.mktemp("data")
    write_benchmarks(root / "lavis")
    for entry in get_preset("english"):
        if entry.name in ("coco", "textcap", "a-okvqa", "science-qa"):
            write_entry(root / "m3it", entry)
    model, tokenizer = build_git_llm("tiny:llama", "tiny:clip", BuildSettings(trainable="proj", max_images=2))
    save_folder(model, root / "model", tokenizer=tokenizer)
    return root


@pytest.fixture(scope="module")
def shards(data):
    """The 26 data sets of the article's third experiment, sharded."""
    for entry in get_preset("article_exp3"):
        write_entry(data / "m3it_of_exp3", entry)
    sharded = [str(data / "m3it_of_exp3"), str(data / "shards"), "--preset", "article_exp3", "--workers", "1"]
    assert not main(["m3it", "shard", *sharded])


@pytest.fixture
def here(data, tmp_path, monkeypatch):
    """A folder to stand in, and the variables that configurations ask for."""
    from lavis.common.registry import registry

    variables = {"M3IT_ROOT": data / "m3it", "M3IT_SHARDS": data / "shards", "LAVIS_DATA": data / "lavis"}
    for name, value in {**variables, "GITLLM_MODEL": data / "model", "GITLLM_CACHE": tmp_path / "cache"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.chdir(tmp_path)
    # LAVIS has one run a process.
    monkeypatch.setitem(registry.mapping, "paths", dict(registry.mapping["paths"]))
    demo = tmp_path / "cache" / "demo" / "easyvqa"
    places = ("train_short/a", "val/a", "test/caption", "test/open", "test_sample/yesno", "test_shuffled/a")
    for number, place in enumerate(places):
        write_m3it_jsonl(demo / f"{place}.jsonl", rows=6, config=f"part_{number}")
    for split in ("train", "val", "test"):
        write_m3it_jsonl(tmp_path / "data" / "stamps" / f"{split}.jsonl", rows=6)
        write_m3it_jsonl(tmp_path / "data" / "pairs" / f"{split}.jsonl", rows=6)
        with_rejected(tmp_path / "data" / "pairs" / f"{split}.jsonl")
    return tmp_path


def run(config, monkeypatch):
    """Run the host's script with a configuration; gives the run's folder."""
    from lavis.common.registry import registry

    given = OmegaConf.to_container(OmegaConf.load(config))
    kind = config.parent.name
    options = [
        f"datasets.{dataset}.vis_processor.{phase}.image_size=32"
        for dataset, node in given["datasets"].items()
        for phase in node.get("vis_processor", ("train", "eval"))
    ]
    options += ["run.device=cpu", "run.num_workers=0", "run.precision=fp32", "run.batch_size_eval=4", "run.max_len=3"]
    if "folder" not in given["model"]:
        family = next((name for name in ("opt", "mpt") if given["model"]["model_type"].startswith(name)), "llama")
        options += [f"model.model_type=tiny_{family}", f"model.language_model=tiny:{family}"]
        options += ["model.image_encoder=tiny:clip"]
    if kind == "train":
        options += ["run.max_iters=2", "run.batch_size_train=2", "run.accum_grad_iters=1", "run.warmup_steps=0"]
    if "conceptual_caption_3m" in given["datasets"]:
        images = "datasets.conceptual_caption_3m.build_info.images.storage=${oc.env:LAVIS_DATA}/coco/images"
        options.append(images)
    if config.stem in NEEDS_CAPTION_METRICS:
        options.append("run.report_metric=false")
    script = ROOT / "tests" / "host" / "scripts" / "of_lavis" / SCRIPTS[kind]
    monkeypatch.setattr(sys, "argv", [script.name, "--cfg-path", str(config), "--options", *options])
    runpy.run_path(str(script), run_name="__main__")
    return Path(registry.get_path("output_dir"))


@pytest.mark.parametrize("config", CONFIGS)
def test_it_runs_as_it_is(config, here, monkeypatch, request):
    if config.stem.startswith("exp3"):
        request.getfixturevalue("shards")
    if config.stem == "demo_easyvqa" and config.parent.name == "eval":
        with monkeypatch.context() as patch:
            from lavis.common.registry import registry

            patch.setitem(registry.mapping, "paths", dict(registry.mapping["paths"]))
            run(PROJECTS / "train" / config.name, patch)
    folder = run(config, monkeypatch)
    assert here in folder.parents
    written = OmegaConf.load(folder / "config.yaml").run
    assert written.seed == 42
    if config.parent.name == "train":
        losses = [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert len(losses) == 2
        assert list(folder.glob("checkpoint_*.pth"))
    else:
        assert any(folder.rglob("*.json")) or (folder / "evaluate.txt").is_file()


@pytest.mark.parametrize("name", ["exp1_proj", "exp2_mpt_7b", "exp3_llama2_7b"])
def test_the_articles_runs_train_on_every_text_token(name):
    assert OmegaConf.load(PROJECTS / "train" / f"{name}.yaml").model.loss_on == "all"


@pytest.mark.parametrize("seed", [None, 7, 0])
def test_a_run_without_a_seed_has_the_default(seed):
    gitllm_plugin.register()
    from lavis.common.config import Config

    node = {"run": {"task": "m3it"} | ({} if seed is None else {"seed": seed})}
    built = Config.build_runner_config(OmegaConf.create(node))
    assert built["run"]["seed"] == (42 if seed is None else seed)
