"""The order of steps, what is skipped, and what interruptions and failures leave, with commands that only pretend."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from examples.easyvqa import demo, training
from examples.easyvqa.commands import run_module
from examples.easyvqa.errors import DemoError
from examples.easyvqa.packages import EASY_VQA, PACKAGES
from examples.easyvqa.paths import EVAL_CONFIG, TRAIN_CONFIG, Cache
from gitllm_plugin.common.run_files import LATEST_EVALUATION, LATEST_RUN
from gitllm_plugin.experiments.record import StepRecord
from gitllm_plugin.runners.run_folder import point_to

ROOT = Path(__file__).resolve().parents[2]


class PretendedCommands:
    """Stands for `run_module`: writes the files that the real commands write.

    Attributes:
        calls: the arguments of each call.
        interrupt: whether the next training ends by Ctrl-C, with a checkpoint to go on from.
    """

    def __init__(self):
        self.calls = []
        self.interrupt = False

    def __call__(self, arguments, cache):
        self.calls.append(list(arguments))
        if arguments[:2] == ["gitllm_plugin", "train"]:
            run = Path("output/demo/train") / f"run{len(self.calls)}"
            run.mkdir(parents=True)
            point_to(run, LATEST_RUN)
            if self.interrupt:
                self.interrupt = False
                (run / "checkpoint_latest.pth").touch()
                raise KeyboardInterrupt
            (run / "checkpoint_best.pth").write_text(str(len(self.calls)))
        elif arguments[:2] == ["gitllm_plugin", "evaluate"]:
            run = Path("output/demo/evaluate") / f"run{len(self.calls)}"
            run.mkdir(parents=True)
            point_to(run, LATEST_EVALUATION)
            (run / "test_metrics.json").touch()

    def count(self, name):
        return sum(name in call for call in self.calls)


@pytest.fixture
def commands(tmp_path, monkeypatch, easy_vqa):
    """A checkout in which every command only pretends."""
    for config in (TRAIN_CONFIG, EVAL_CONFIG):
        (tmp_path / config).parent.mkdir(parents=True)
        (tmp_path / config).write_text("run: {}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GITLLM_CACHE", str(tmp_path / "cache"))
    pretended = PretendedCommands()
    monkeypatch.setattr(training, "run_module", pretended)
    monkeypatch.setattr(demo, "run_module", pretended)
    pretended.fetched = []
    monkeypatch.setattr(demo, "fetch_packages", lambda cache, packages=PACKAGES: pretended.fetched.extend(packages))
    monkeypatch.setattr(demo, "convert", lambda source, target: (target / "train").mkdir(parents=True, exist_ok=True))
    monkeypatch.setattr(demo, "_report", lambda *_: "TABLE")
    return pretended


def test_all_steps_run_in_order_and_the_end_says_where_things_are(commands, capsys):
    assert demo.main([]) == 0
    assert [call[1] if len(call) > 1 else call[0] for call in commands.calls] == [
        "examples.easyvqa.weights",
        "train",
        "evaluate",
    ]
    output = capsys.readouterr().out
    assert [line for line in output.splitlines() if line.startswith("[")] == [
        "[1/6] Packages (115 MB)",
        "[2/6] Weights",
        "[3/6] Data",
        "[4/6] Training",
        "[5/6] Evaluation",
        "[6/6] Report",
    ]
    assert "TABLE" in output and "output/demo/README.md" in output
    assert "model.finetuned=output/demo/train/run2/checkpoint_best.pth" in commands.calls[2]


def test_models_alone_are_fetched_for_own_pictures(commands):
    assert demo.main(["--models-only"]) == 0
    assert commands.calls == [["examples.easyvqa.weights"]] and not Path("output").exists()
    assert {package.name for package in commands.fetched} == {p.name for p in PACKAGES} - {EASY_VQA.name}


def test_second_run_skips_what_is_finished_and_says_how_to_force_it(commands, capsys):
    demo.main([])
    seconds = json.loads(Path("output/demo/steps.json").read_text())["training"]["seconds"]
    capsys.readouterr()
    assert demo.main([]) == 0
    assert commands.count("train") == 1 and commands.count("evaluate") == 1
    output = capsys.readouterr().out
    assert "already trained: output/demo/train/run2" in output and "--fresh" in output
    assert json.loads(Path("output/demo/steps.json").read_text())["training"]["seconds"] == seconds


def test_fresh_trains_and_evaluates_again_from_the_beginning(commands):
    demo.main([])
    assert demo.main(["--fresh"]) == 0
    assert commands.count("train") == 2 and commands.count("evaluate") == 2
    assert commands.count("run.resume_ckpt_path=auto") == 0


def test_changed_configuration_is_trained_anew(commands):
    demo.main([])
    TRAIN_CONFIG.write_text("run: {max_iters: 2}")
    assert demo.main([]) == 0
    assert commands.count("train") == 2 and commands.count("evaluate") == 2
    assert commands.count("run.resume_ckpt_path=auto") == 0


def test_interrupted_training_goes_on_where_it_was(commands, capsys):
    commands.interrupt = True
    assert demo.main([]) == 130
    assert "The same command goes on from here" in capsys.readouterr().err
    assert demo.main([]) == 0
    assert commands.count("run.resume_ckpt_path=auto") == 1
    assert commands.count("evaluate") == 1


def test_interrupted_training_does_not_go_on_after_the_configuration_changed(commands):
    commands.interrupt = True
    demo.main([])
    time.sleep(0.05)  # longer than the clock of the file system takes to move on
    TRAIN_CONFIG.write_text("run: {max_iters: 2}")
    assert demo.main([]) == 0
    assert commands.count("run.resume_ckpt_path=auto") == 0


def test_failure_is_one_line_and_exit_status_1(commands, monkeypatch, capsys):
    def fail(cache):
        raise DemoError("The package toy==1.0 cannot be downloaded")

    monkeypatch.setattr(demo, "fetch_packages", fail)
    assert demo.main([]) == 1
    error = capsys.readouterr().err
    assert error == "error: The package toy==1.0 cannot be downloaded\n"
    assert commands.calls == []


def test_another_working_directory_is_an_error(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert demo.main([]) == 1
    assert "run this from the checkout's root" in capsys.readouterr().err


def test_missing_libraries_are_named_with_the_command(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(demo, "find_spec", lambda name: None if name in ("gguf", "timm") else object())
    assert demo.main([]) == 1
    error = capsys.readouterr().err
    assert "lacks timm, gguf" in error and "pip install -e '.[host,demo]'" in error


def test_time_of_a_step_adds_up_over_interruptions(tmp_path):
    record = StepRecord(tmp_path / "steps.json")
    record.note("training", seconds=10.0)
    with pytest.raises(KeyboardInterrupt), StepRecord(tmp_path / "steps.json").timed("training"):
        raise KeyboardInterrupt
    assert StepRecord(tmp_path / "steps.json").get("training", "seconds") >= 10.0


def test_failed_command_is_named(tmp_path):
    with pytest.raises(DemoError, match=r"`python -m no_such_module x` ended with exit status 1"):
        run_module(["no_such_module", "x"], Cache(tmp_path))


@pytest.mark.parametrize(
    ("command", "config", "advice"),
    [
        ("train", TRAIN_CONFIG, "Lower run.batch_size_train from 4 to 2 and run.batch_size_eval from 64 to 32"),
        ("evaluate", EVAL_CONFIG, "Lower run.batch_size_eval from 32 to 16"),
    ],
)
def test_a_killed_command_is_told_with_the_batch_size_to_lower(command, config, advice, tmp_path, monkeypatch):
    """The package itself is replaced by one that ends as the system ends a process that takes too much memory."""
    (tmp_path / "gitllm_plugin").mkdir()
    (tmp_path / "gitllm_plugin" / "__init__.py").touch()
    (tmp_path / "gitllm_plugin" / "__main__.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONSAFEPATH", "1")  # `python -m` would look in the checkout first
    monkeypatch.chdir(ROOT)
    with pytest.raises(DemoError) as raised:
        run_module(["gitllm_plugin", command, "--cfg-path", str(config)], Cache(tmp_path))
    assert str(raised.value) == (
        f"`python -m gitllm_plugin {command} --cfg-path {config}` was killed, perhaps because memory ran out. "
        f"{advice} (configuration: {config})"
    )


def test_ctrl_c_waits_for_the_command_to_save(tmp_path):
    """Both get the signal, as from a terminal; the command takes a second to save."""
    (tmp_path / "saves.py").write_text(
        "import pathlib, sys, time\n"
        "try:\n    print('ready', flush=True); time.sleep(30)\n"
        "except KeyboardInterrupt:\n    time.sleep(1); pathlib.Path('saved').touch(); sys.exit(130)\n"
    )
    code = (
        "import pathlib\nfrom examples.easyvqa.commands import run_module\n"
        "from examples.easyvqa.paths import Cache\n"
        "try:\n    run_module(['saves'], Cache(pathlib.Path('cache')))\n"
        "except KeyboardInterrupt:\n    print('interrupted')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=30)[0] == "interrupted\n"
    assert (tmp_path / "saved").exists()


@pytest.fixture
def configs(monkeypatch, tmp_path):
    monkeypatch.setenv("GITLLM_CACHE", str(tmp_path))
    paths = {"train": ROOT / TRAIN_CONFIG, "evaluate": ROOT / EVAL_CONFIG}
    return {name: OmegaConf.to_container(OmegaConf.load(path), resolve=True) for name, path in paths.items()}


def test_first_line_of_each_configuration_is_the_command_that_runs_it():
    for command, path in (("train", TRAIN_CONFIG), ("evaluate", EVAL_CONFIG)):
        assert (ROOT / path).read_text().splitlines()[0] == f"# gitllm {command} --cfg-path {path}"


def test_configurations_read_the_cache_and_write_where_the_demo_looks(configs, tmp_path):
    cache = Cache(tmp_path)
    for config in configs.values():
        assert config["model"]["language_model"] == str(cache.language_model)
        assert config["model"]["image_encoder"] == str(cache.image_encoder)
    annotations = configs["train"]["datasets"]["m3it"]["build_info"]["annotations"]
    assert {Path(node["storage"]).parent for node in annotations.values()} == {
        cache.data / "train_short",
        cache.data / "val",
    }
    assert configs["train"]["run"]["output_dir"] == "output/demo/train"
    assert configs["evaluate"]["run"]["output_dir"] == "output/demo/evaluate"


def test_evaluation_uses_the_model_and_the_processors_of_the_training(configs):
    train, evaluate = configs["train"], configs["evaluate"]
    for key in ("language_model", "image_encoder", "lora"):
        assert evaluate["model"][key] == train["model"][key]
    for key in ("vis_processor", "text_processor"):
        assert evaluate["datasets"]["m3it"][key]["eval"] == train["datasets"]["m3it"][key]["eval"]


def test_cache_is_in_the_home_folder_unless_the_environment_says_otherwise(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("GITLLM_CACHE", raising=False)
    home = Cache.from_environment()
    assert home.demo == tmp_path / ".cache" / "gitllm" / "demo"
    config = OmegaConf.to_container(OmegaConf.load(ROOT / TRAIN_CONFIG), resolve=True)
    assert config["model"]["language_model"] == str(home.language_model)
    monkeypatch.setenv("GITLLM_CACHE", "some/where")
    assert Cache.from_environment().root.is_absolute()
