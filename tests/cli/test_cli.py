"""The command line: it parses, calls, and turns expected errors into a line and an exit status."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from gitllm_plugin import __version__
from gitllm_plugin.cli.main import COMMANDS, build_parser, main
from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.host import doctor, import_hook, launch

COMMAND_NAMES = [command.name for command in COMMANDS]


@pytest.fixture
def called(monkeypatch):
    """What the command passed to the launcher."""
    calls = []
    for name in ("train", "evaluate", "run_script"):
        monkeypatch.setattr(launch, name, lambda *args, name=name: calls.append((name, *args)))
    return calls


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_train_and_evaluate_pass_file_and_options(called, command):
    assert main([command, "--cfg-path", "my.yaml"]) == 0
    assert main([command, "--cfg-path", "my.yaml", "--options", "run.seed=1", "run.device=cpu"]) == 0
    assert called == [(command, "my.yaml", []), (command, "my.yaml", ["run.seed=1", "run.device=cpu"])]


def test_run_passes_the_scripts_arguments_untouched(called):
    assert main(["run", "train.py", "--cfg-path", "my.yaml", "--options", "run.seed=1"]) == 0
    assert called == [("run_script", "train.py", ["--cfg-path", "my.yaml", "--options", "run.seed=1"])]


@pytest.mark.parametrize("error", [ConfigError("no such model"), DataError("no such file")])
def test_expected_errors_are_one_line_and_status_2(monkeypatch, capsys, error):
    def fail(*args):
        raise error

    monkeypatch.setattr(launch, "train", fail)
    assert main(["train", "--cfg-path", "my.yaml"]) == 2
    assert capsys.readouterr().err == f"error: {error}\n"


def test_unexpected_errors_keep_their_traceback(monkeypatch):
    monkeypatch.setattr(launch, "train", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["train", "--cfg-path", "my.yaml"])


def test_interruption_is_status_130(monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "train", interrupt)
    assert main(["train", "--cfg-path", "my.yaml"]) == 130


@pytest.mark.parametrize("command", [[], *([command] for command in COMMAND_NAMES)])
def test_every_command_has_help(capsys, command):
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert "usage: gitllm" in printed and "examples:\n  " in printed


def test_alone_it_says_what_it_can_do(capsys):
    said = _help_of([], capsys)
    assert said == _help_of(["--help"], capsys) and "usage: gitllm" in said and "\n    train " in said


def _help_of(typed, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(typed)
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", ["train", "evaluate", "m3it", "m3it from-messages", "serve"])
def test_help_fits_the_terminal(command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    said = _help_of([*command.split(), "--help"], capsys).partition("examples:")[0]
    assert max(len(line) for line in said.splitlines()) <= 80


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("trian my.yaml", "'train'"),
        ("m3it chek data", "'check'"),
        ("export --mrge run out", "'--merge'"),
        ("train my.yaml --dryrun", "'--dry-run'"),
        ("train --cfg-pth=my.yaml other.yaml", "'--cfg-path'"),
        ("ask a.png what --modle m", "'--model'"),
    ],
)
def test_what_there_is_none_of_is_asked_back(typed, meant, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(typed.split())
    assert stopped.value.code == 2
    assert f"(did you mean {meant}?)" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "evaluate", "parameters", "m3it features"])
def test_a_configuration_needs_no_name(command, capsys, tmp_path):
    for words in (["none.yaml"], ["--cfg-path", "none.yaml"]):
        assert main([*command.split(), *words]) == 2
        assert "there is no configuration file 'none.yaml'" in capsys.readouterr().err
    for words in ([], ["none.yaml", "--cfg-path", "other.yaml"]):
        with pytest.raises(SystemExit) as stopped:
            main([*command.split(), *words])
        assert stopped.value.code == 2
        assert "--cfg-path" in capsys.readouterr().err


def test_examples_are_commands_that_parse(capsys):
    """Every example in a help text, as far as it is a command of `gitllm`."""
    parser, checked = build_parser(), 0
    for command in [[], *([name] for name in COMMAND_NAMES)]:
        with pytest.raises(SystemExit):
            main([*command, "--help"])
        for line in capsys.readouterr().out.partition("examples:\n")[2].splitlines():
            if line.startswith("  gitllm "):
                words = shlex.split(re.split(r"  +|[>;]", line.strip())[0])
                parser.parse_args(words[1:])
                checked += 1
    assert checked > 20


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [("gitllm expo", ["export"]), ("gitllm words --bef", ["--before-training"]), ("gitllm hook in", ["install"])],
)
def test_bash_completes(typed, offered, capsys, tmp_path):
    assert main(["completion", "bash"]) == 0
    (tmp_path / "completion").write_text(capsys.readouterr().out)
    words = typed.split()
    script = (
        f"source {tmp_path / 'completion'}; COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; "
        f'_shtab_gitllm gitllm {words[-1]} {words[-2]}; echo "${{COMPREPLY[@]}}"'
    )
    finished = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=30)
    assert finished.stdout.split() == offered, finished.stderr


def test_bars_become_lines_where_they_are_piped(monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "")
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS")
    assert main(["hook", "status"]) == 0
    assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "1"


def test_version_through_the_module():
    finished = subprocess.run(
        [sys.executable, "-m", "gitllm_plugin", "--version"], capture_output=True, text=True, check=True
    )
    assert finished.stdout == f"gitllm {__version__}\n"


def test_hook_says_where_its_file_is(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(import_hook.sysconfig, "get_path", lambda name: str(tmp_path))
    assert [main(["hook", action]) for action in ("status", "install", "status", "remove")] == [0, 0, 0, 0]
    path = tmp_path / import_hook.FILE_NAME
    said = [f"{state}: {path}" for state in ("not installed", "installed", "installed", "not installed")]
    assert capsys.readouterr().out.splitlines() == said


def test_doctor_prints_what_is_wrong_and_what_helps(monkeypatch, capsys):
    report = doctor.Diagnosis(
        facts=[("python", "3")],
        extras={"java": ("captions scored by LAVIS", "apt-get install default-jre-headless")},
        absent={"cv2": "pip install opencv-python-headless"},
        notes=["this CPU is slow"],
        problems=[("'peft' is not installed", "pip install peft")],
    )
    monkeypatch.setattr(doctor, "examine", lambda: report)
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    for part in (
        "python  3\n",
        "pip install opencv-python-headless",
        "this CPU is slow",
        "pip install peft",
        "captions scored by LAVIS  apt-get install default-jre-headless",
        "1 problem",
    ):
        assert part in printed
    report.problems.clear()
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.endswith("ready\n")
