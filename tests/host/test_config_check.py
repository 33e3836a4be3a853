"""Configurations are checked before anything is built: every error, at once, with the names that exist."""

import argparse

import pytest

import gitllm_plugin
from gitllm_plugin.config import node
from gitllm_plugin.config.run import LaunchSettings
from gitllm_plugin.datasets.settings import DataSetSettings
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.host.config_check import check_config

GOOD = """
model: {arch: checked_model, model_type: small, width: 8}
datasets:
  checked_data:
    storage: here
    vis_processor: {train: {name: checked_processor, image_size: 8}}
run: {task: checked_task, runner: checked_runner, lr_sched: linear_warmup_cosine_lr, max_epoch: 1, seed: 1}
"""


@node("model")
class ModelSettings:
    arch: str
    model_type: str
    width: int = 1


@node("datasets")
class DataSettings(DataSetSettings):
    storage: str = ""


@node("processor")
class ProcessorSettings:
    name: str
    image_size: int = 8


@node("run")
class TaskSettings:
    metrics: tuple[str, ...] = ()


@node("run")
class RunnerSettings(LaunchSettings):
    max_epoch: int = 1
    lr_sched: str = "cosine"


@pytest.fixture(scope="module", autouse=True)
def registered_classes(host):
    """Adds classes that declare their keys to LAVIS's registry, and takes them out again."""
    gitllm_plugin.register()  # our runner's schedules
    from lavis.common.registry import registry

    def cls(settings, **attributes):
        return type("Checked", (), {"Settings": settings, **attributes})

    classes = {
        "model": cls(ModelSettings, PRETRAINED_MODEL_CONFIG_DICT={"small": "", "large": ""}),
        "builder": cls(DataSettings, DATASET_CONFIG_DICT={"default": ""}),
        "processor": cls(ProcessorSettings),
        "task": cls(TaskSettings),
        "runner": cls(RunnerSettings),
    }
    names = {kind: "checked_data" if kind == "builder" else f"checked_{kind}" for kind in classes}
    for kind, name in names.items():
        registry.mapping[f"{kind}_name_mapping"][name] = classes[kind]
    yield
    for kind, name in names.items():
        del registry.mapping[f"{kind}_name_mapping"][name]


@pytest.fixture
def errors_of(tmp_path):
    """The message for a configuration's text and options."""

    def check(text=GOOD, options=()):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        with pytest.raises(ConfigError) as caught:
            check_config(path, options)
        return str(caught.value)

    return check


def test_a_good_configuration_passes(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(GOOD)
    check_config(path)
    check_config(path, ["model.model_type=large", "run.lr_sched=cosine"])
    check_config(path, ["model.model_type", "large"])  # LAVIS's other way to write it


def test_of_the_configurations_that_lavis_ships_only_those_it_cannot_read_are_refused(host):
    from lavis.common.config import Config

    paths = sorted((host.folder / "projects").rglob("*.yaml"))
    assert len(paths) > 40
    for path in paths:
        try:
            check_config(path)
        except ConfigError:
            # Some name a model type that does not exist, some have no section `run`, one is empty.
            with pytest.raises((AssertionError, AttributeError, ConfigError)):
                Config(argparse.Namespace(cfg_path=str(path), options=[]))


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("model.arch=checked_modle", "model.arch 'checked_modle' is unknown. Did you mean 'checked_model'?"),
        (
            "model.model_type=smal",
            "Did you mean 'small'? Types of model 'checked_model' there are: large, small",
        ),
        ("model.widht=4", "model.widht: unknown key 'widht' (did you mean 'width'?)"),
        (
            "run.task=checked_tusk",
            "run.task 'checked_tusk' is unknown. Did you mean 'checked_task'? Tasks there are:",
        ),
        ("run.runner=checked_runer", "Did you mean 'checked_runner'? Runners there are:"),
        ("run.lr_sched=cosin", "Did you mean 'cosine'? Learning-rate schedules there are: constant, cosine"),
        ("run.max_epochs=2", "run.max_epochs: unknown key 'max_epochs' (did you mean 'max_epoch'?)"),
        (
            "datasets.checked_data.storge=x",
            "datasets.checked_data.storge: unknown key 'storge' (did you mean 'storage'?)",
        ),
        (
            "datasets.checked_data.vis_processor.train.name=x",
            "vis_processor.train.name 'x' is unknown. Processors",
        ),
        (
            "datasets.checked_data.vis_processor.train.size=9",
            "Keys of processor 'checked_processor' there are: image_size, name",
        ),
        ("datasets.coco_captoin.x=1", "Did you mean 'coco_caption'? Data sets there are:"),
        ("datasets.checked_data.type=other", "datasets.checked_data.type 'other' is unknown"),
        ("modle.arch=x", "modle: unknown key 'modle' (did you mean 'model'?)"),
    ],
)
def test_one_wrong_name(errors_of, option, expected):
    assert expected in errors_of(options=[option])


def test_all_errors_come_at_once(errors_of):
    message = errors_of(options=["run.lr_sched=a", "model.model_type=b", "run.max_epochs=1", "datasets.nothing.x=1"])
    assert "4 errors" in message
    for part in ("run.lr_sched 'a'", "model.model_type 'b'", "run.max_epochs", "datasets 'nothing'"):
        assert part in message


def test_keys_of_classes_that_do_not_declare_any_are_not_checked(errors_of):
    message = errors_of(options=["run.task=captioning", "run.of_that_task=1", "run.runner=none"])
    assert "of_that_task" not in message


def test_missing_sections_and_names(errors_of):
    message = errors_of("model: {width: 4}\nrun: [1]\n")
    assert "section 'datasets' is missing" in message
    assert "section 'run' is missing or not a mapping" in message
    assert "model.arch is missing; models there are:" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: {arch: [", "is not a YAML file that can be read"),
        ("- model", "must hold the sections model, datasets, run"),
        ("", "must hold the sections model, datasets, run"),
        ("model: {arch: '${no.such.key}'}\n", "no.such.key"),
    ],
)
def test_unreadable_files(errors_of, text, expected):
    assert expected in errors_of(text)


def test_no_file(tmp_path):
    with pytest.raises(ConfigError, match=r"no configuration file '.*nowhere\.yaml'; looked for "):
        check_config(tmp_path / "nowhere.yaml")


def test_an_evaluation_is_not_given_a_training_to_resume(errors_of, tmp_path):
    hint = "--options model.load_finetuned=True model.finetuned=PATH"
    assert hint in errors_of(options=["run.evaluate=True", "run.resume_ckpt_path=auto"])
    path = tmp_path / "config.yaml"
    (tmp_path / "weights.pth").touch()
    with pytest.raises(ConfigError, match=r"model\.finetuned=.*weights\.pth"):
        check_config(path, [f"run.resume_ckpt_path={tmp_path}/weights.pth"], evaluating=True)
    check_config(path, ["run.resume_ckpt_path=null"], evaluating=True)


@pytest.mark.parametrize("options", [["run.seed"], ["run.seed=1", "run.device"], ["=1"]])
def test_options_without_a_key_or_value(errors_of, options):
    assert "--options takes key.subkey=value" in errors_of(options=options)


def test_options_that_do_not_parse(errors_of):
    assert "--options run.seed=[1" in errors_of(options=["run.seed=[1"])
