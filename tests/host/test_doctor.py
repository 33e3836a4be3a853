"""`gitllm doctor`: what it finds here, and what it says where things are missing."""

import importlib.util

import pytest
import torch

from gitllm_plugin.cli.main import main
from gitllm_plugin.common.device import CPU_PRECISION
from gitllm_plugin.host import doctor
from gitllm_plugin.runners.precision import resolve_precision

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}

EXAMINE = """
from gitllm_plugin.host.doctor import examine
report = examine()
for problem in report.problems:
    print(problem)
print(report.absent)
"""


@pytest.fixture(scope="module")
def report(host):
    return doctor.examine()


def test_a_machine_that_can_run_has_no_problems(report):
    assert report.problems == []
    assert report.ok


def test_versions_host_devices_and_hook_are_reported(report):
    facts = dict(report.facts)
    assert {"python", "torch", "transformers", "peft", "GPU", "bf16 on CPU", "import hook"} <= set(facts)
    assert facts["LAVIS"].startswith("1.0.2")


def test_the_doctor_and_the_runs_agree_on_bf16(host, monkeypatch):
    for choice, said in (("bf16", "fast, precision auto uses it"), ("fp32", "computes in fp32")):
        monkeypatch.setenv(CPU_PRECISION, choice)
        assert said in dict(doctor.examine().facts)["bf16 on CPU"]
        assert resolve_precision("auto", torch.device("cpu")) is PRECISIONS[choice]
    monkeypatch.setenv(CPU_PRECISION, "fp8")
    assert doctor.examine().problems[-1] == (
        "the environment variable GITLLM_CPU_PRECISION is 'fp8'; it may be fp32, bf16 or unset",
        "unset GITLLM_CPU_PRECISION",
    )


def test_a_fault_of_torchvision_is_a_note(host, monkeypatch):
    monkeypatch.setattr(doctor.torchvision_repair, "fault", "torchvision is broken")
    assert any(note.startswith("torchvision is broken") for note in doctor.examine().notes)


def test_what_is_missing_comes_with_the_command_that_installs_it(run_python):
    finished = run_python(EXAMINE, hidden=["peft", "decord", "torch"])
    assert finished.returncode == 0, finished.stderr
    assert "pip install peft" in finished.stdout
    assert "'decord': 'pip install decord'" in finished.stdout


DOCTOR = "from gitllm_plugin.cli.main import main; print('status', main(['doctor']))"


def test_without_lavis_a_trained_model_can_be_used(run_python):
    finished = run_python(DOCTOR, hidden=["lavis", "einops", "iopath", "pandas"])
    assert finished.returncode == 0, finished.stderr
    assert "ready to use a trained model; to train one, LAVIS is missing" in finished.stdout
    assert doctor.INSTALL_COMMAND in finished.stdout and finished.stdout.endswith("status 0\n")


@pytest.fixture
def mended(monkeypatch):
    """What pip would be asked, in a machine that lacks some packages; nothing is installed."""
    ran = []

    class Done:
        returncode, stderr = 0, ""

    monkeypatch.setattr(doctor.subprocess, "run", lambda words, **how: ran.append(words[1:]) or Done)
    return ran


def lacking(monkeypatch, *absent):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name in absent else find(name, *more))


FIXES = {
    "nothing": ((), []),
    "LAVIS": (("lavis", "java"), [doctor.INSTALL_COMMAND]),
    "LAVIS and what it imports": (
        ("lavis", "einops", "pandas"),
        [doctor.INSTALL_COMMAND, "pip install einops pandas"],
    ),
    "a library": (("peft",), ["pip install peft"]),
}


@pytest.mark.parametrize("case", FIXES)
def test_fix_runs_what_would_be_told(case, host, monkeypatch, mended, capsys):
    absent, commands = FIXES[case]
    lacking(monkeypatch, *absent)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert main(["doctor", "--fix", "--yes"]) == 0
    asked = [words for words in mended if words[:2] == ["-m", "pip"]]
    assert asked == [["-m", *command.split()] for command in commands]
    assert (mended[-1:] == [["-m", "gitllm_plugin", "doctor"]]) == bool(commands)


@pytest.mark.parametrize(("answer", "runs"), [("y", True), ("yes ", True), ("", False), ("n", False)])
def test_fix_asks_before(answer, runs, host, monkeypatch, mended):
    lacking(monkeypatch, "safetensors")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: answer)
    assert main(["doctor", "--fix"]) == 0
    assert (["-m", "pip", "install", "safetensors"] in mended) == runs


@pytest.mark.parametrize("options", [["--yes"], ["--fix"]], ids=["nothing to do", "nobody to ask"])
def test_fix_needs_somebody_who_says_yes(options, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(SystemExit) as ended:
        main(["doctor", *options])
    assert ended.value.code == 2 and "--yes" in capsys.readouterr().err


def test_a_command_that_fails_is_told(host, monkeypatch, capfd):
    lacking(monkeypatch, "peft")
    monkeypatch.setattr(doctor.sys, "executable", "/bin/false")
    assert main(["doctor", "--fix", "--yes"]) == 2
    assert "did not work" in capfd.readouterr().err


@pytest.mark.parametrize("missing", ["peft", "safetensors", "transformers"])
def test_without_lavis_what_a_model_needs_is_still_a_problem(missing, host, monkeypatch):
    find, absent = importlib.util.find_spec, {"lavis", "einops", "pandas", missing}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name in absent else find(name, *more))
    report = doctor.examine()
    assert [what for what, _ in report.problems] == [f"'{missing}' is not installed"] and not report.ok
    assert report.extras["lavis"] == doctor.LAVIS and report.absent == {}


def test_java_and_extras_are_facts_or_come_with_their_command(host, monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    monkeypatch.setattr(doctor, "EXTRAS", {"surely_not_installed": ("a use", "pip install it")})
    report = doctor.examine()
    assert report.extras == {"surely_not_installed": ("a use", "pip install it"), "java": doctor.JAVA}
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\necho 'openjdk version \"99\"' >&2\n")
    java.chmod(0o755)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: str(java))
    assert dict(doctor.examine().facts)["Java"] == f'openjdk version "99" ({java})'
    assert report.ok
