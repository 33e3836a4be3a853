"""Commands that are printed for the user to paste."""

import sys
from pathlib import Path

import pytest

from gitllm_plugin.runners.messages import evaluation_command, resume_command

CHECKPOINT = Path("out/checkpoint_latest.pth")
TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("argv", "environment", "start"),
    [
        ("python /env/bin/gitllm train --cfg-path a.yaml", {}, "gitllm train"),
        ("py -W ignore -m gitllm_plugin train --options a=1 --cfg-path a.yaml", {}, "py -m gitllm_plugin train"),
        ("python /env/bin/gitllm run LAVIS/train.py --cfg-path=a.yaml", {}, "gitllm run LAVIS/train.py"),
        ("python train.py --cfg-path a.yaml", {}, "python train.py"),
        ("python /env/bin/gitllm train a.yaml", {}, "gitllm train"),
        ("python /env/bin/gitllm train a.yaml --options run.seed=1", {}, "gitllm train"),
        ("py -m gitllm_plugin train --data mine.csv --output out", {}, "py -m gitllm_plugin train"),
        ("python mine.py a.yaml", {}, "gitllm train"),
        ("python /env/bin/jupyter lab", {}, "gitllm train"),
        ("python -c pass --cfg-path a.yaml", {}, "gitllm train"),
        (
            "python -u -m gitllm_plugin train --cfg-path a.yaml",
            {**TORCHRUN, "WORLD_SIZE": "2"},
            "torchrun --nproc_per_node=2 -m gitllm_plugin train",
        ),
        (
            "python -u LAVIS/train.py --cfg-path a.yaml",
            {**TORCHRUN, "WORLD_SIZE": "8"},
            "torchrun --nnodes=4 --nproc_per_node=2 LAVIS/train.py",
        ),
    ],
)
def test_resuming_starts_as_the_run_was_started(monkeypatch, argv, environment, start):
    monkeypatch.setattr(sys, "orig_argv", argv.split())
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    command = resume_command("a.yaml", ["run.seed=1", "run.resume_ckpt_path=auto"], CHECKPOINT)
    assert command == f"{start} --cfg-path a.yaml --options run.seed=1 run.resume_ckpt_path={CHECKPOINT}"


def test_pairs_of_options_and_replaced_ones():
    options = ["run.note", "two words", "model.finetuned", "old.pth", "run.resume_ckpt_path", "auto"]
    assert evaluation_command("a.yaml", options, CHECKPOINT) == (
        "gitllm evaluate --cfg-path a.yaml --options 'run.note=two words' model.load_finetuned=True "
        f"model.finetuned={CHECKPOINT}"
    )
