"""Configurations are checked before anything is built: every error, at once, with the names that exist."""

import argparse
from pathlib import Path

import pytest
from omegaconf import OmegaConf

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
            # Some name a model type that does not exist, some have no section `run`.
            with pytest.raises((AssertionError, AttributeError)):
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


def faults_of(tmp_path, *options, evaluating=False):
    """The errors of a small run of our own classes with these options, one a line."""
    from tests.small_run import write_small_run

    path = write_small_run(tmp_path)
    try:
        check_config(path, options, evaluating)
    except ConfigError as error:
        assert str(error).startswith(str(path))
        return [line.removeprefix("  - ") for line in str(error).splitlines()[1:]]
    return []


def test_a_small_run_is_right(tmp_path):
    assert faults_of(tmp_path) == []
    assert faults_of(tmp_path, "run.init_lr=null", "run.max_epoch=null", evaluating=True) == []


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("run.batch_size_train=many", "run.batch_size_train is 'many', expected a whole number"),
        ("run.batch_size_train=1.5", "run.batch_size_train is 1.5, expected a whole number"),
        ("run.init_lr=fast", "run.init_lr is 'fast', expected a number"),
        ("run.compile=1", "run.compile is 1, expected true or false"),
        ("run.valid_splits=val", "run.valid_splits is 'val', expected a list"),
        ("run.keep_last=0", "run.keep_last is 0, expected 1 or more"),
        ("run.best=maximum", "run.best is 'maximum', expected one of max, min"),
        ("run.trackers=[tensorbord]", "run.trackers has 'tensorbord', expected one of tensorboard, wandb"),
        ("run.sharding=zero3", "run.sharding is 'zero3', expected one of none, fsdp"),
        ("run.device=tpu", "run.device is 'tpu', expected one of auto, cpu, cuda"),
        ("run.max_epoch=null", "neither run.max_epoch nor run.max_iters is given"),
        ("run.resume_ckpt_path=nowhere.pth", "run.resume_ckpt_path is nowhere.pth, which does not exist"),
        ("run.test_splits=[tset]", "run.test_splits names 'tset', but the data sets have files for: test, train, val"),
        ("model.max_images=two", "model.max_images is 'two', expected a whole number"),
        ("model.untie=sometimes", "model.untie is 'sometimes', expected true or false"),
        ("model.dtype=float8", "model.dtype is 'float8', expected one of auto, float32"),
        ("model.folder=/no/where", "model.folder is /no/where, which does not exist"),
        ("model.lora={rank: big}", "model.lora.rank is 'big', expected a whole number"),
        ("model.load_finetuned=true", "model.load_finetuned is true, but model.finetuned names no checkpoint"),
        ("datasets.m3it.texts_per_image=some", "datasets.m3it.texts_per_image is 'some', expected a whole number"),
        (
            "datasets.m3it.build_info.annotations.val.storage=gone.jsonl",
            "annotations.val.storage: Cannot find the M3IT",
        ),
    ],
)
def test_one_wrong_value(tmp_path, option, expected):
    faults = faults_of(tmp_path, option)
    assert expected in "\n".join(faults) and len([fault for fault in faults if fault[:1] != " "]) == 1, faults


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["run.precision=fp16", "run.sharding=fsdp"], "knows no run.sharding=fsdp"),
        (["run.precision=bf16", "run.amp=False"], "run.amp=False means fp32"),
        (["model.load_in_4bit=true"], "model.load_in_4bit needs a GPU, and run.device is cpu"),
        (["model.load_in_4bit=true", "run.device=auto", "run.sharding=fsdp"], "exclude each other"),
        (["model.load_finetuned=true", "model.finetuned=a.pth"], "model.finetuned is a.pth, which does not exist"),
    ],
)
def test_what_excludes_each_other(tmp_path, options, expected):
    assert expected in "\n".join(faults_of(tmp_path, *options))


def test_wrong_values_of_all_sections_come_at_once(tmp_path):
    faults = faults_of(tmp_path, "run.seed=x", "model.max_images=x", "datasets.m3it.allow_text_only=x", "run.sed=1")
    assert len(faults) == 4


WRONG_VALUES = {
    # Found far from their cause, with a traceback.
    "run.beta2=1.5": "run.beta2 is 1.5, expected 0 or more and below 1",
    "model.trainable=5": "model.trainable is 5, expected modules (proj, lora, llm, vit, all, head) joined by '+'",
    "model.lora.targets=5": "model.lora.targets is 5, expected a list of texts",
    "run.max_len=abc": "run.max_len is 'abc', expected a whole number, 1 or more",
    "run.num_beams=0": "run.num_beams is 0, expected 1 or more",
    # Trained with, in silence.
    "model.lora.rslora=perhaps": "model.lora.rslora is 'perhaps', expected true or false",
    "model.max_images=0": "model.max_images is 0, expected 1 or more",
    # Found after weights or rows were read, one at a time.
    "run.log_freq=0": "run.log_freq is 0, expected 1 or more",
    "run.warmup_lr=-1": "run.warmup_lr is -1, expected 0 or more with run.lr_sched=cosine",
    "run.metrics=[exact_mach]": "run.metrics has exact_mach; there are exact_match",
    "run.agg_metric=cider": "run.agg_metric is 'cider', but computed are: exact_match, rouge_l, loss",
    "model.fused_kernels=maybe": "model.fused_kernels is 'maybe', expected true or false",
    "model.rank_by=best": "model.rank_by is 'best', expected one of sum, mean",
    "model.lora.rank=0": "model.lora.rank is 0, expected 1 or more",
    "model.lora.ranks=3": "model.lora.ranks: unknown key 'ranks' (did you mean 'rank'?)",
    "model.vision_layer=7": "model.vision_layer is 7, expected -1 or less",
    "model.lr_scale={projj: 3}": "model.lr_scale.projj: unknown key 'projj' (did you mean 'proj'?)",
    "datasets.m3it.build_info.annotation={}": "unknown key 'annotation' (did you mean 'annotations'?)",
    "datasets.m3it.texts_per_image=0": "datasets.m3it.texts_per_image is 0, expected 1 or more, or all",
    "datasets.m3it.vis_processor.train.resize=fit": "train.resize is 'fit', expected one of squash, shortest_edge",
    "datasets.m3it.text_processor.eval.template=chat": "unknown prompt template 'chat'; there are: article, plain",
}


@pytest.mark.parametrize(("option", "expected"), WRONG_VALUES.items(), ids=WRONG_VALUES)
def test_what_was_found_late_or_never_is_one_error_of_the_check(tmp_path, option, expected):
    (fault,) = faults_of(tmp_path, option)
    assert expected in fault


def test_they_are_all_told_at_once(tmp_path):
    # Each key once: the second of two options for one key would win.
    options = [option for option in WRONG_VALUES if option != "run.agg_metric=cider"]
    faults = faults_of(tmp_path, *options)
    for option in options:
        assert WRONG_VALUES[option] in "\n".join(faults)
    assert len(faults) == len(options)


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("run.lr_decay_rate=0.9", "it is read only by a lr_sched of LAVIS's, and lr_sched is 'cosine'"),
        ("run.iters_per_inner_epoch=3", "it is read only of data without an end, such as m3it_wds"),
        ("run.warmup_lr=1e-5", "it is read only where warmup_steps is above 0, and warmup_steps is 0"),
        ("run.train_dataset_ratios={m3it: 2}", "it is read only with several data sets"),
        ("model.finetuned=a.pth", "it is read only where load_finetuned is true"),
    ],
)
def test_a_value_without_effect_is_told(tmp_path, caplog, option, why):
    assert faults_of(tmp_path, option) == []
    key, _, _ = option.partition("=")
    (record,) = caplog.records
    assert f"{tmp_path}/config.yaml: {key} is " in record.message and "has no effect" in record.message
    assert why in record.message


@pytest.mark.parametrize(
    "options", [["run.lr_sched=constant", "run.min_lr=0.1"], ["run.metrics=[]", "run.num_beams=3"]]
)
def test_what_another_key_takes_the_effect_of_is_told(tmp_path, caplog, options):
    assert faults_of(tmp_path, *options) == []
    assert f"{options[1].partition('=')[0]} is " in caplog.text


@pytest.mark.parametrize(
    "options",
    [
        ["run.lr_sched=linear_warmup_step_lr", "run.lr_decay_rate=0.9"],
        ["run.warmup_steps=2", "run.warmup_lr=1e-5"],
        ["run.min_lr=0", "run.lr_sched=constant"],  # the default: nobody waits for an effect
        [],
    ],
)
def test_values_with_an_effect_are_not_spoken_of(tmp_path, caplog, options):
    assert faults_of(tmp_path, *options) == []
    assert not caplog.records


@pytest.mark.parametrize("path", sorted(Path("projects").rglob("*.yaml")), ids=str)
def test_every_configuration_of_the_package_is_right_but_for_files_that_are_elsewhere(path, caplog):
    if "runs" in OmegaConf.load(path):
        pytest.skip("an experiment, which names others")
    elsewhere = ("does not exist", "Cannot find the M3IT files", "cannot be computed here", "meteor", "cider")
    try:
        check_config(path, evaluating="eval" in path.parts)
    except ConfigError as error:
        faults = str(error).split("\n  - ")[1:]
        assert all(any(words in fault for words in elsewhere) for fault in faults), error
    assert not caplog.records
