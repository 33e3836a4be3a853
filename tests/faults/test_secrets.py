"""What a configuration takes from the environment under a secret's name is written down nowhere."""

import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from gitllm_plugin.errors import ConfigError, exit_status
from gitllm_plugin.experiments.plan import read_plan
from gitllm_plugin.runners.saved_config import without_secrets
from gitllm_plugin.runners.settings import fill_defaults
from gitllm_plugin.secret_values import hide_secrets, is_secret
from tests.small_run import ENVIRONMENT, write_small_run

VALUE = "hf_9f2c77aa41Qz"


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN",
        "hf_token",
        "AWS_SECRET_ACCESS_KEY",
        "S3_KEY",
        "DB_PASSWORD",
        "GOOGLE_CREDENTIALS",
        "APIKEY",
        "TOKENS",
    ],
)
def test_names_of_secrets(name):
    assert is_secret(name)


@pytest.mark.parametrize("name", ["HOME", "M3IT_ROOT", "TOKENIZER", "TOKENIZERS_PARALLELISM", "KEYPOINTS_ROOT", "OMP"])
def test_names_of_others(name):
    assert not is_secret(name)


# What is written, and what stands in the file; `name` is a variable that anybody may read.
WRITTEN = {
    "${oc.env:SPOT_TOKEN}": "${oc.env:SPOT_TOKEN}",
    "https://me:${oc.env:SPOT_TOKEN}@host/${oc.env:SPOT_PLACE}": "https://me:${oc.env:SPOT_TOKEN}@host/here",
    "${oc.env:ABSENT_KEY,${oc.env:SPOT_TOKEN}}": "${oc.env:ABSENT_KEY,'${oc.env:SPOT_TOKEN}'}",
    '${oc.env:ABSENT_KEY,"it\'s"}': "${oc.env:ABSENT_KEY,'it\\'s'}",
    "${oc.env:ABSENT_KEY,null}": "${oc.env:ABSENT_KEY,null}",
    "${oc.env:${name}}": "${oc.env:SPOT_TOKEN}",
    "${inner.value}": "${oc.env:SPOT_TOKEN}",
    "${oc.decode:${oc.env:SPOT_SECRET}}": "${oc.decode:${oc.env:SPOT_SECRET}}",
    "${oc.env:SPOT_PLACE}": "here",
    "${oc.decode:'[1, 2]'}": [1, 2],
    "plain": "plain",
}


@pytest.mark.parametrize("text", WRITTEN)
def test_a_configuration_is_written_with_the_names_and_read_as_it_was(text, monkeypatch):
    monkeypatch.setenv("SPOT_TOKEN", VALUE)
    monkeypatch.setenv("SPOT_SECRET", "17")
    monkeypatch.setenv("SPOT_PLACE", "here")
    config = OmegaConf.create(
        {"name": "SPOT_TOKEN", "inner": {"value": "${oc.env:SPOT_TOKEN}"}, "key": text, "list": [{"deep": text}]}
    )
    before = OmegaConf.to_container(config, resolve=True)
    written = without_secrets(config)
    assert written["key"] == written["list"][0]["deep"] == WRITTEN[text]
    assert VALUE not in str(written)
    again = OmegaConf.create(OmegaConf.to_yaml(OmegaConf.create(written)))
    assert OmegaConf.to_container(again, resolve=True) == before
    assert OmegaConf.to_container(config, resolve=True) == before, "OmegaConf resolves as before afterwards"


def test_a_missing_variable_is_an_error_and_changes_nothing(monkeypatch):
    monkeypatch.setenv("SPOT_TOKEN", VALUE)
    with pytest.raises(Exception, match="ABSENT_TOKEN"):
        without_secrets(OmegaConf.create({"a": "${oc.env:ABSENT_TOKEN}"}))
    assert OmegaConf.create({"a": "${oc.env:SPOT_TOKEN}"}).a == VALUE


def test_defaults_of_a_run_take_no_secret_out_of_the_environment(monkeypatch):
    monkeypatch.setenv("SPOT_TOKEN", VALUE)
    run = OmegaConf.create(
        {
            "task": "m3it",
            "init_lr": "1e-3",
            "max_epoch": 1,
            "output_dir": "x/${oc.env:SPOT_TOKEN}",
            "metrics": ["cider"],
        }
    )
    fill_defaults(run)
    assert VALUE not in str(OmegaConf.to_container(run)) and run.output_dir == f"x/{VALUE}"
    assert run.init_lr == 1e-3


@pytest.mark.parametrize(
    ("environment", "text", "shown"),
    [
        ({"A_TOKEN": VALUE}, f"{VALUE} is no model", "${oc.env:A_TOKEN} is no model"),
        ({"A_KEY": VALUE[:8], "B_KEY": VALUE}, f"{VALUE}, {VALUE[:8]}", "${oc.env:B_KEY}, ${oc.env:A_KEY}"),
        ({"HOME": "/home/me", "A_PASSWORD": "yes"}, "/home/me says yes", "/home/me says yes"),
    ],
)
def test_messages_name_the_variable(environment, text, shown):
    assert hide_secrets(text, environment) == shown


def test_a_commands_error_names_the_variable(monkeypatch, capsys):
    monkeypatch.setenv("SPOT_TOKEN", VALUE)

    def fail() -> int:
        raise ConfigError(f"run.seed is {VALUE!r}")

    assert exit_status(fail) == 2
    assert capsys.readouterr().err == "error: run.seed is '${oc.env:SPOT_TOKEN}'\n"


def test_an_experiments_options_keep_the_name(tmp_path, monkeypatch):
    monkeypatch.setenv("SPOT_TOKEN", VALUE)
    monkeypatch.setenv("SPOT_PLACE", str(tmp_path))
    (tmp_path / "run.yaml").write_text("model: {}\n")
    plan = {
        "title": "t",
        "output_dir": "${oc.env:SPOT_PLACE}/out",
        "options": ["model.folder=${oc.env:SPOT_TOKEN}"],
        "runs": [
            {"name": "a", "cfg_path": "${oc.env:SPOT_PLACE}/run.yaml", "options": ["run.seed=${oc.env:SPOT_TOKEN}"]}
        ],
    }
    OmegaConf.save(OmegaConf.create(plan), tmp_path / "plan.yaml")
    read = read_plan(tmp_path / "plan.yaml")
    assert read.runs[0].options == ("model.folder=${oc.env:SPOT_TOKEN}", "run.seed=${oc.env:SPOT_TOKEN}")
    assert read.output_dir == tmp_path / "out" and read.runs[0].cfg_path == str(tmp_path / "run.yaml")


def gitllm(*words: object, **environment: str) -> str:
    """Everything that a command said."""
    finished = subprocess.run(
        [sys.executable, "-m", "gitllm_plugin", *map(str, words)],
        env={**ENVIRONMENT, "HF_HUB_OFFLINE": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stdout
    return finished.stdout


def files_with(folder: Path, value: str) -> list[str]:
    """Files below a folder that hold a text; those of torch hold texts as they are, too."""
    return [str(path) for path in folder.rglob("*") if path.is_file() and value.encode() in path.read_bytes()]


@pytest.mark.slow
def test_a_run_with_a_secret_in_its_prompt_is_resumed_evaluated_and_exported(tmp_path):
    config = write_small_run(tmp_path, max_epoch=1)
    content = OmegaConf.load(config)
    spoken = {"name": "git_llm_instruction", "instruction": "${oc.env:SPOT_TOKEN} ${run.task}"}
    content.datasets.m3it.text_processor = {"train": spoken, "eval": spoken}
    OmegaConf.save(content, config)
    told = gitllm("train", "--cfg-path", config, "--dry-run", SPOT_TOKEN=VALUE)
    assert "${oc.env:SPOT_TOKEN} m3it" in told
    told += gitllm("train", "--cfg-path", config, SPOT_TOKEN=VALUE)
    run = (tmp_path / "output" / "latest").resolve()
    more = ["run.max_epoch=2", "run.resume_ckpt_path=auto"]
    told += gitllm("train", "--cfg-path", run / "config.yaml", "--options", *more, SPOT_TOKEN=VALUE)
    assert (tmp_path / "output" / "latest").resolve() == run, "the saved configuration is of the same run"
    told += gitllm("evaluate", "--cfg-path", run / "config.yaml", SPOT_TOKEN=VALUE)
    told += gitllm("export", run, tmp_path / "model", SPOT_TOKEN=VALUE)
    assert VALUE not in told
    assert files_with(tmp_path, VALUE) == []
    assert "${oc.env:SPOT_TOKEN} m3it" in (run / "config.yaml").read_text()
    assert "${oc.env:SPOT_TOKEN}" in (tmp_path / "model" / "git_llm.json").read_text()
