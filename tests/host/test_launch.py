"""LAVIS's main sequence with a task, model, data set and runner that only record that they were used."""

import os
import random
import shutil
import signal
import sys

import pytest

import gitllm_plugin
from gitllm_plugin import resources
from gitllm_plugin.errors import ConfigError, LostProcessError
from gitllm_plugin.host import launch
from tests.small_run import write_small_run

CONFIG = """
model: {arch: recorded, model_type: small}
datasets: {recorded: {}}
run: {task: recorded, runner: recorded, seed: 3, device: cpu}
"""


class Recorder:
    """Task, builder, model and runner in one; keeps what was called in `calls`."""

    PRETRAINED_MODEL_CONFIG_DICT = DATASET_CONFIG_DICT = {"small": "", "default": ""}
    defaults = ""
    calls: list = []

    def __init__(self, *args, **kwargs):
        self.given = kwargs

    @classmethod
    def default_config_path(cls, *args, **kwargs):
        return cls.defaults

    @classmethod
    def setup_task(cls, cfg):
        return cls()

    def build_datasets(self, cfg):
        self.calls.append(("datasets", random.random()))
        return "the datasets"

    def build_model(self, cfg):
        return f"a {cfg.model_cfg.model_type} model"

    def train(self):
        self.calls.append("train")

    def evaluate(self, skip_reload=False):
        self.calls.append(("evaluate", skip_reload))


@pytest.fixture
def config(host, tmp_path, monkeypatch):
    from lavis.common.registry import registry

    for kind in ("model", "builder", "task", "runner"):
        monkeypatch.setitem(registry.mapping[f"{kind}_name_mapping"], "recorded", Recorder)
    (tmp_path / "defaults.yaml").write_text("model: {}\n")
    monkeypatch.setattr(Recorder, "defaults", str(tmp_path / "defaults.yaml"))
    monkeypatch.setattr(Recorder, "calls", [])
    monkeypatch.setattr(gitllm_plugin, "REGISTERED_MODULES", ())
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "config.yaml").write_text(CONFIG)
    return tmp_path / "config.yaml"


def test_training_follows_the_main_sequence(config):
    runner = launch.train(config)
    assert (runner.given["model"], runner.given["datasets"]) == ("a small model", "the datasets")
    assert isinstance(runner.given["task"], Recorder) and runner.given["job_id"]
    assert Recorder.calls[1:] == ["train"]


def test_seeds_are_set_before_anything_is_built(config):
    launch.train(config)
    launch.train(config, ["run.seed=4"])
    drawn = [call[1] for call in Recorder.calls if call != "train"]
    assert drawn == [random.Random(3).random(), random.Random(4).random()]


def test_evaluation_uses_the_configured_runner_and_its_weights_as_they_are(config):
    assert isinstance(launch.evaluate(config), Recorder)
    assert Recorder.calls[1:] == [("evaluate", True)]


def test_an_evaluation_does_not_resume(config):
    for command, options in ((launch.evaluate, []), (launch.train, ["run.evaluate=True"])):
        with pytest.raises(ConfigError, match="model.load_finetuned=True model.finetuned=PATH"):
            command(config, ["run.resume_ckpt_path=auto", *options])
    assert Recorder.calls == []


def test_configurations_of_the_package_are_found_from_any_folder(config, tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "gitllm_plugin"
    own = package / "projects" / "git_llm" / "own.yaml"
    own.parent.mkdir(parents=True)
    own.write_text(config.read_text())
    monkeypatch.setattr(resources, "files", lambda name: package)
    monkeypatch.chdir(tmp_path)

    assert launch.train("projects/git_llm/own.yaml").given["cfg"].args.cfg_path == str(own)
    (tmp_path / "script.py").write_text("import sys; open('seen', 'w').write(' '.join(sys.argv[1:]))")
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    launch.run_script("script.py", ["--cfg-path", "projects/git_llm/own.yaml"])
    launch.run_script("script.py", ["--cfg-path=projects/git_llm/own.yaml"])
    assert (tmp_path / "seen").read_text() == f"--cfg-path={own}"

    mine = tmp_path / "projects" / "git_llm" / "own.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text(config.read_text())
    assert launch.train("projects/git_llm/own.yaml").given["cfg"].args.cfg_path == "projects/git_llm/own.yaml"
    with pytest.raises(ConfigError) as raised:
        launch.train("projects/nowhere.yaml")
    for folder in (tmp_path, package):
        assert str(folder / "projects" / "nowhere.yaml") in str(raised.value)


def test_a_wrong_configuration_builds_nothing(config):
    with pytest.raises(ConfigError, match="run.task 'nothing' is unknown"):
        launch.train(config, ["run.task=nothing"])
    assert Recorder.calls == []


def test_a_script_sees_its_arguments_its_folder_and_the_plugin(config, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "beside_the_script.py").write_text("")
    (tmp_path / "script.py").write_text(
        "import sys, beside_the_script\n"
        "from lavis.common.dist_utils import init_distributed_mode\n"
        "assert __name__ == '__main__'\n"
        "open(sys.argv[1], 'w').write(init_distributed_mode.__module__)\n"
    )
    launch.run_script(tmp_path / "script.py", [str(tmp_path / "seen")])
    assert (tmp_path / "seen").read_text() == "gitllm_plugin.host.distributed"


def test_a_scripts_configuration_is_checked_before_it_starts(config, tmp_path):
    (tmp_path / "script.py").write_text("raise AssertionError('started')")
    with pytest.raises(ConfigError, match="Did you mean 'recorded'"):
        launch.run_script(
            tmp_path / "script.py", ["--cfg-path", str(config), "--other", "--options", "run.task=recordd"]
        )


def test_no_script(config, tmp_path):
    with pytest.raises(ConfigError, match=r"there is no script '.*nowhere\.py'"):
        launch.run_script(tmp_path / "nowhere.py")


def kill_this_worker(*_):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("command", "lowered"),
    [
        (
            "train",
            "run.batch_size_train from 4 to 2 and run.batch_size_eval from 2 to 1 and run.num_workers from 2 to 1",
        ),
        ("evaluate", "run.batch_size_eval from 2 to 1 and run.num_workers from 2 to 1"),
    ],
)
def test_a_killed_worker_is_told_with_what_to_lower(command, lowered, tmp_path, monkeypatch):
    from torch.utils.data._utils import fetch

    config = write_small_run(tmp_path, num_workers=2, allow_untrained=True)
    monkeypatch.setattr(fetch._MapDatasetFetcher, "fetch", kill_this_worker)  # workers are forked: they have it too
    with pytest.raises(LostProcessError) as raised:
        getattr(launch, command)(str(config))
    said = "A process that loads data was killed, perhaps because memory ran out. "
    assert str(raised.value) == f"{said}Lower {lowered}"


SCRIPT = """
import lavis
from lavis.common.registry import registry
print("library:", lavis.__file__)
print("added:", registry.get_model_class("added_to_a_checkout"))
print("ours:", registry.get_model_class("git_llm").__name__)
"""


@pytest.mark.slow
@pytest.mark.parametrize("with_library", [True, False])
def test_a_checkouts_script_runs_with_its_library(with_library, run_python, tmp_path):
    from gitllm_plugin.host.locate import locate

    (tmp_path / "train.py").write_text(SCRIPT)
    library = locate().folder
    if with_library:
        copy = tmp_path / "lavis"
        shutil.copytree(library, copy, ignore=shutil.ignore_patterns("__pycache__", "projects"))
        lines = [
            "from lavis.common.registry import registry",
            "Added = type('Added', (BaseModel,), {'PRETRAINED_MODEL_CONFIG_DICT': {}})",
            "registry.register_model('added_to_a_checkout')(Added)",
        ]
        init = copy / "models" / "__init__.py"
        init.write_text(init.read_text() + "\n".join(lines) + "\n")
        library = copy
    command = ["-W", "ignore", "-m", "gitllm_plugin", "run", str(tmp_path / "train.py")]
    finished = run_python(args=command)
    assert finished.returncode == 0, finished.stderr
    assert f"library: {library / '__init__.py'}" in finished.stdout
    assert ("added: None" in finished.stdout) is not with_library
    assert "ours: GitLLM" in finished.stdout
    assert f"train.py runs with LAVIS of {library}" in finished.stderr
    assert ("salesforce-lavis 1.0.2" in finished.stderr) is not with_library
