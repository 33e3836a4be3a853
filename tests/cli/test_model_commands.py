"""The commands about a model: what they list, and that what they write answers and trains again."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from gitllm_plugin.cli.main import main
from gitllm_plugin.m3it.prompts import build_prompt
from tests.small_run import write_small_run

MODEL = {"model_type": "tiny_llama", "lora": {"rank": 4, "alpha": 8, "dropout": 0.0}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, cpu_precision):
    """Configuration and folder of a run."""
    folder = tmp_path_factory.mktemp("run")
    config = write_small_run(folder, MODEL)
    assert main(["train", "--cfg-path", str(config)]) == 0
    return config, (folder / "output" / "latest").resolve()


@pytest.mark.parametrize("form", [[], ["--merge"]])
def test_an_exported_run_gives_the_same_answers_without_it(trained, form, tmp_path):
    config, run = trained
    folder = tmp_path / "model"
    assert main(["export", str(run), str(folder), *form]) == 0
    assert (folder / "adapter").exists() != bool(form)
    processor = json.loads((folder / "image_encoder" / "preprocessor_config.json").read_text())
    assert processor["size"] == {"height": 32, "width": 32}
    changed = OmegaConf.load(config)
    trainable = "proj" if form else "proj+lora"
    changed.model = {"arch": "git_llm", "model_type": "tiny_opt", "folder": str(folder), "trainable": trainable}
    if form:
        changed.model.lora = None
    changed.run.output_dir = str(tmp_path / "output")
    OmegaConf.save(changed, tmp_path / "evaluate.yaml")
    assert main(["evaluate", "--cfg-path", str(tmp_path / "evaluate.yaml")]) == 0
    again = tmp_path / "output" / "latest_evaluation" / "result" / "test_epochbest.jsonl"
    assert again.read_text() == (run / "result" / "test_epochbest.jsonl").read_text()


def test_an_exported_model_trains_on(trained, tmp_path):
    config, run = trained
    assert main(["export", str(run), str(tmp_path / "model")]) == 0
    options = [f"model.folder={tmp_path / 'model'}", f"run.output_dir={tmp_path / 'output'}", "run.test_splits=[]"]
    assert main(["train", "--cfg-path", str(config), "--options", *options]) == 0
    metrics = [json.loads(line) for line in (tmp_path / "output/latest/metrics.jsonl").read_text().splitlines()]
    first = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert metrics[0]["loss"] < first[0]["loss"]


def test_merging_an_export_equals_exporting_merged(trained, tmp_path):
    _, run = trained
    for command in (
        ["export", str(run), str(tmp_path / "model")],
        ["merge", str(tmp_path / "model"), str(tmp_path / "merged")],
        ["export", str(run / "checkpoint_best.pth"), str(tmp_path / "at-once"), "--merge"],
    ):
        assert main(command) == 0
    from gitllm_plugin.modeling import load_folder

    one, other = (load_folder(tmp_path / name, dtype="float32") for name in ("merged", "at-once"))
    for (name, value), wanted in zip(one.model.state_dict().items(), other.model.state_dict().values(), strict=True):
        torch.testing.assert_close(value, wanted, atol=1e-6, rtol=0, msg=name)
    assert one.settings == {**other.settings, "run": one.settings["run"]}


def test_the_table_of_parameters(trained, capsys):
    config, _ = trained
    assert main(["parameters", "--cfg-path", str(config), "--options", "model.trainable=proj"]) == 0
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if line.startswith("projection.0.weight"))
    assert row.split() == ["projection.0.weight", "64x48", "3,072", "yes", "float32"]
    assert "language_model.model.layers.{0-1}.self_attn.q_proj" in printed
    assert "3,264 of " in printed.splitlines()[-1]


def test_a_published_checkpoint_is_converted(tmp_path, capsys):
    source = Path(__file__).parents[1] / "data" / "published" / "llama"
    shutil.copytree(source, tmp_path / "published")
    (tmp_path / "published" / "weights.safetensors").rename(tmp_path / "published" / "model.safetensors")
    command = ["convert-checkpoint", str(tmp_path / "published"), str(tmp_path / "ours")]
    assert main(command) == 0
    assert capsys.readouterr().out == f"written: {tmp_path / 'ours'}\n"
    assert main(command) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "prompt"),
    [
        ([], "##Instruction: Answer the question about the image. ##Question: why? ##Answer:"),
        (["--template", "heron"], "##human: why?\n##gpt:"),
        (["--template", "question"], "why?"),
    ],
)
def test_a_converted_checkpoint_keeps_the_template_of_its_prompts(options, prompt, tmp_path):
    source = Path(__file__).parents[1] / "data" / "published" / "llama"
    shutil.copytree(source, tmp_path / "published")
    (tmp_path / "published" / "weights.safetensors").rename(tmp_path / "published" / "model.safetensors")
    assert main(["convert-checkpoint", str(tmp_path / "published"), str(tmp_path / "ours"), *options]) == 0
    said = json.loads((tmp_path / "ours" / "git_llm.json").read_text())["settings"]["text_processor"]
    assert build_prompt(said["template"], said.get("instruction"), "why?") == prompt


def test_a_template_that_there_is_not_is_told_before_anything_is_read(tmp_path, capsys):
    assert main(["convert-checkpoint", "nowhere", str(tmp_path / "ours"), "--template", "llama2"]) == 2
    assert "unknown prompt template 'llama2'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "nowhere", "out"], "nowhere is not a run: expected a folder with config.yaml"),
        (["merge", "nowhere", "out"], "nowhere is not a folder of a GIT-LLM"),
        (["convert-checkpoint", "nowhere", "out"], "it has no config.json"),
    ],
)
def test_what_cannot_be_used_is_named(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_merged_model_cannot_be_without_its_base(trained, capsys, tmp_path):
    assert main(["export", str(trained[1]), str(tmp_path / "out"), "--merge", "--without-base"]) == 2
    assert "no longer its base" in capsys.readouterr().err
