"""A run is taken wherever a model is: its folder, the one above, a checkpoint, its configuration, or an export."""

import io
import json

import pytest
from PIL import Image

from gitllm_plugin.cli.command import Command
from gitllm_plugin.cli.main import COMMANDS, main
from tests.small_run import TINY_LORA, write_small_run

FORMS = ("folder", "folder above", "latest", "checkpoint", "configuration", "export")

TAKES = {
    "ask": lambda model, out: ["ask", str(out / "cat.png"), "what is it?", "--model", model],
    "chat": lambda model, out: ["chat", str(out / "cat.png"), "--model", model],
    "caption": lambda model, out: ["caption", str(out / "cat.png"), "--model", model],
    "predict": lambda model, out: [
        *("predict", "--input", str(out / "rows.jsonl"), "--output", str(out / "answers.jsonl"), "--model", model)
    ],
    "words": lambda model, out: ["words", str(out / "cat.png"), "--model", model, "--out", str(out / "words")],
    "serve": lambda model, out: ["serve", "--model", model, "--port", "0"],
    "demo": lambda model, out: ["demo", "--model", model, "--port", "0"],
    "conform": lambda model, out: ["conform", "torch", model, "--json"],
    "export": lambda model, out: ["export", model, str(out / "exported")],
    "merge": lambda model, out: ["merge", model, str(out / "merged")],
    "evaluate": lambda model, out: ["evaluate", model],
    "parameters": lambda model, out: ["parameters", model],
}
RUNS_ALONE = {"export", "evaluate", "parameters"}
"""What is made of a run, or its data is asked for: a folder of an export is none."""


@pytest.fixture(scope="module")
def models(tmp_path_factory, cpu_precision):
    folder = tmp_path_factory.mktemp("run")
    config = write_small_run(folder, TINY_LORA, max_epoch=1)
    assert main(["train", str(config)]) == 0
    above = folder / "output"
    assert main(["export", str(above), str(folder / "export")]) == 0
    run = (above / "latest").resolve()
    paths = (run, above, above / "latest", run / "checkpoint_latest.pth", run / "config.yaml", folder / "export")
    return dict(zip(FORMS, map(str, paths), strict=True))


@pytest.fixture
def served(monkeypatch):
    """Servers that are asked for, and do not run."""
    kept = []
    for name in ("gitllm_plugin.web.server.serve", "gitllm_plugin.serving.server.serve"):
        monkeypatch.setattr(name, lambda engine, *rest: kept.append(engine))
    return kept


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("command", TAKES)
def test_it_is_taken(command, form, models, served, tmp_path, capsys, monkeypatch):
    if form == "export" and command in RUNS_ALONE:
        pytest.skip("needs a run")
    for package in {"demo": ["gradio"], "serve": ["fastapi", "uvicorn"]}.get(command, []):
        pytest.importorskip(package)
    Image.new("RGB", (40, 30), "teal").save(tmp_path / "cat.png")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": "cat.png", "question": "what is it?"}) + "\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"what is it?\n")))
    assert main(TAKES[command](models[form], tmp_path)) == 0, capsys.readouterr().err
    if command in ("demo", "serve"):
        assert len(served) == 1


def test_all_commands_that_take_a_model_are_asked():
    def leaves(commands, before=()):
        for command in commands:
            if command.actions:
                yield from leaves(command.actions, (*before, command.name))
            else:
                yield " ".join((*before, command.name)), command

    def takes_model(command: Command) -> bool:
        names = {name for each in command.arguments for name in each.names}
        return bool(names & {"--model", "run", "source", "folder"})

    others = {"convert-checkpoint"}  # reads what another program wrote
    assert {name for name, command in leaves(COMMANDS) if takes_model(command)} - others == {*TAKES} - {"parameters"}
