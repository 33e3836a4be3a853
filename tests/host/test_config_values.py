"""Values of a configuration, alone and together: what would be found late or never is told before anything is built."""

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import gitllm_plugin
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.host.config_check import check_config
from tests.small_run import write_small_run


@pytest.fixture(scope="module", autouse=True)
def registered_classes(host):
    gitllm_plugin.register()


def faults_of(tmp_path, *options, evaluating=False):
    """The errors of a small run of our own classes with these options, one a line."""
    path = write_small_run(tmp_path)
    try:
        check_config(path, options, evaluating)
    except ConfigError as error:
        assert str(error).startswith(str(path))
        return [line.removeprefix("  - ") for line in str(error).splitlines()[1:]]
    return []


def test_a_small_run_is_right(tmp_path):
    assert faults_of(tmp_path) == []
    options = ["run.init_lr=null", "run.max_epoch=null", "run.allow_untrained=true"]
    assert faults_of(tmp_path, *options, evaluating=True) == []
    (refused,) = faults_of(tmp_path, *options[:2], evaluating=True)
    assert refused.startswith("model: UNTRAINED weights would be evaluated")


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
        ("run.precision=fp16", "run.precision=fp16 needs a GPU, and this run computes on a CPU"),
        ("run.sharding=zero3", "run.sharding is 'zero3', expected one of none, fsdp"),
        ("run.device=tpu", "run.device is 'tpu', expected auto, cpu, cuda or cuda:N"),
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
    "model.lora.targets=5": "model.lora.targets is 5, expected text, or a list of texts",
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
    "datasets.m3it.text_processor.eval.template=mine": "template 'mine'; there are: article, heron, plain",
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
    ("option", "expected"),
    [
        ("model.arch=[git_llm]", "model.arch '['git_llm']' is unknown"),
        ("model.model_type=[x]", "model.model_type '['x']' is unknown"),
        ("datasets.m3it.type=[a]", "datasets.m3it.type '['a']' is unknown"),
        ("datasets.m3it.vis_processor.train.name=[x]", "vis_processor.train.name '['x']' is unknown"),
        ("run.task=[m3it]", "run.task '['m3it']' is unknown"),
        ("run.runner=[x]", "run.runner '['x']' is unknown"),
        ("run.lr_sched=[cosine]", "run.lr_sched '['cosine']' is unknown"),
        ("run.lr_sched={}", "run.lr_sched '{}' is unknown"),
        ("datasets.m3it.type=null", "datasets.m3it.type is missing; types of data set 'm3it' there are: default"),
        ("datasets.m3it=x", "datasets.m3it is 'x', expected a mapping"),
        ("datasets.coco_caption=[]", "datasets.coco_caption is [], expected a mapping"),
        ("datasets.m3it=null", "datasets.m3it is null, expected a mapping"),
        ("datasets.coco_caption=5", "datasets.coco_caption is 5, expected a mapping"),
        ("datasets.coco_caption.vis_processor=5", "datasets.coco_caption.vis_processor is 5, expected a mapping"),
        ("datasets.coco_caption.vis_processor={trian: {}}", "vis_processor.trian: unknown key 'trian' (did you mean"),
        ("datasets.m3it.vis_processor=null", "datasets.m3it.vis_processor is null, and nothing makes batches"),
        (
            "datasets.m3it.text_processor.train.name=git_llm_image_train",
            "text_processor.train.name 'git_llm_image_train' is made for vis_processor; for text_processor there are: "
            "git_llm_instruction",
        ),
        ("run.seed=4294967296", "run.seed is 4294967296, expected 0 or more and below 2147483648"),
        ("run.seed=1e30", "expected 0 or more and below 2147483648"),
        ("run.device=cuda:x", "run.device is 'cuda:x', expected auto, cpu, cuda or cuda:N"),
        ("run.device=cpu:3", "run.device is 'cpu:3', expected auto, cpu, cuda or cuda:N"),
        ("run.metrics={}", "run.metrics is {}, expected lists by configuration"),
        ("run.agg_metric=''", "run.agg_metric is '', expected text that is not empty"),
        ("run.agg_metric=/exact_match", "run.agg_metric is '/exact_match', expected a metric, or CONFIGURATION/METRIC"),
        ("run.min_len=9", "run.min_len is 9, more than max_len, which is 4"),
        ("run.min_lr=1", "run.min_lr is 1, above run.init_lr, which is 0.01"),
        ("run.train_splits=[]", "run.train_splits is empty, and there would be nothing to train on"),
        ("model.trainable=[]", "model.trainable is an empty list, and nothing would be trained"),
        ("run.train_dataset_ratios={m3itt: 2}", "run.train_dataset_ratios.m3itt: unknown key 'm3itt' (did you mean"),
        ("run.init_lr=fast", "run.init_lr is 'fast', expected a number"),
    ],
)
def test_names_and_nodes_of_another_kind_and_pairs_are_one_error(tmp_path, option, expected):
    faults = faults_of(tmp_path, option)
    assert expected in "\n".join(faults), faults
    assert len(faults) == 1, faults


def test_a_runner_of_null_is_lavis_own(tmp_path):
    from gitllm_plugin.host.launch import dry_run

    path = write_small_run(tmp_path)
    # It has no defaults.
    needed = {"lr_sched": "linear_warmup_cosine_lr", "min_lr": 0, "weight_decay": 0, "num_workers": 0}
    options = ["run.runner=null", *(f"run.{key}={value}" for key, value in needed.items())]
    assert faults_of(tmp_path, *options) == []
    missing = faults_of(tmp_path, "run.runner=null")
    assert {fault.split()[0] for fault in missing} == {f"run.{key}" for key in needed}
    with pytest.raises(ConfigError, match="--dry-run needs run.runner=git_llm, and it is 'runner_base'"):
        dry_run(path, options)


def test_other_builders_may_say_what_their_data_is_like(tmp_path, monkeypatch, caplog):
    from gitllm_plugin.datasets.settings import M3ITSettings

    monkeypatch.setattr(M3ITSettings, "STREAMS", True)
    monkeypatch.setattr(M3ITSettings, "named_splits", staticmethod(lambda values: None))
    assert faults_of(tmp_path, "run.iters_per_inner_epoch=3", "run.valid_splits=[anything]") == []
    assert not caplog.records


@pytest.mark.parametrize("option", ["run.train_splits.0=val", "run.train_splits[0]=val", "run.train_splits.0.name=val"])
def test_an_item_of_a_list_is_no_option(tmp_path, option):
    path = write_small_run(tmp_path, train_splits=["train"])
    expected = f"--options {option}: run.train_splits is a list; write it whole, as in run.train_splits=[val]"
    with pytest.raises(ConfigError, match=re.escape(expected)):
        check_config(path, [option])


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("datasets.m3it=[]", "datasets.m3it is a mapping in the file, and only a mapping may take its place"),
        ("run.train_splits={}", "run.train_splits is a list in the file, and only a list may take its place"),
    ],
)
def test_lists_and_mappings_are_not_merged(tmp_path, option, expected):
    path = write_small_run(tmp_path, train_splits=["train"])
    with pytest.raises(ConfigError, match=f"{expected}$"):
        check_config(path, ["run.seed=1", option])


def test_a_slip_in_a_name_hides_no_other_fault(tmp_path):
    faults = faults_of(tmp_path, "run.runner=git_lm", "run.task=m3itt", "run.max_len=0", "run.sed=1")
    assert [fault.split()[0] for fault in faults] == ["run.task", "run.runner", "run.sed:", "run.max_len"]


@pytest.mark.parametrize("name", ["m3it_wds", "m3it_instruct", "git_llm_visdial"])
def test_every_data_set_says_which_splits_it_has(tmp_path, name):
    info = {
        "m3it_wds": "{shards: here, splits: [train]}",
        "m3it_instruct": "{root: here, configs: coco, splits: train}",
        "git_llm_visdial": "{annotations: {train: {storage: gone.json}}}",
    }[name]
    faults = faults_of(tmp_path, "datasets={}", f"datasets.{name}.build_info={info}", "run.valid_splits=[vall]")
    # The small run's own data set stays: a merge takes nothing away.
    assert any("run.valid_splits names 'vall', but the data sets have files for: " in fault for fault in faults)


def test_missing_dialogues_are_told(tmp_path):
    option = f"datasets.git_llm_visdial.build_info.annotations.val.storage={tmp_path}/gone.json"
    begin = "datasets.git_llm_visdial.build_info.annotations.val.storage is "
    fault = next(fault for fault in faults_of(tmp_path, option) if fault.startswith(begin))
    assert "does not exist" in fault
    faults = faults_of(tmp_path, "datasets.git_llm_visdial.build_info.annotations.val_2.storage=a")
    fault = next(fault for fault in faults if "val_2" in fault)
    assert "annotations.val_2: unknown key 'val_2' (did you mean 'val'?)" in fault


def test_scores_of_the_catalog_are_known(tmp_path):
    assert faults_of(tmp_path, "run.metrics=m3it", "run.agg_metric=coco/exact_match") == []
    (fault,) = faults_of(tmp_path, "run.metrics=m3it", "run.agg_metric=foo")
    assert fault.startswith("run.agg_metric is 'foo', but computed are: ")


@pytest.mark.parametrize("key", ["load_in_4bit", "fused_kernels"])
def test_what_needs_a_gpu_is_refused_without_one(tmp_path, monkeypatch, key):
    import torch

    from gitllm_plugin.config import model

    (fault,) = faults_of(tmp_path, f"model.{key}=true")
    assert f"model.{key} needs a GPU, and run.device is cpu" in fault
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (fault,) = faults_of(tmp_path, f"model.{key}=true", "run.device=auto")
    assert f"model.{key} needs a CUDA GPU, and torch finds none" in fault
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(model, "find_spec", lambda name: None)
    (fault,) = faults_of(tmp_path, f"model.{key}=true", "run.device=auto")
    assert "is not installed: pip install " in fault


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        (
            "datasets.m3it_wds.build_info={shards: x, preset: article_exp3, configs: [coco]}",
            "datasets.m3it_wds.build_info has a preset and configs; give one of them",
        ),
        (
            "datasets.m3it_wds={build_info: {shards: x}, weights: {coco: 1}, temperature: 2}",
            "datasets.m3it_wds: weights and temperature are given",
        ),
    ],
)
def test_a_rule_about_a_node_names_the_node(tmp_path, option, expected):
    (fault,) = faults_of(tmp_path, option)
    assert fault.startswith(expected)


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


# Parts of examples/compare's configurations, which are whole when they are put together; tests/examples looks at those.
PARTS = Path("projects/git_llm/compare")


@pytest.mark.parametrize("path", sorted(set(Path("projects").rglob("*.yaml")) - set(PARTS.iterdir())), ids=str)
def test_every_configuration_of_the_package_is_right_but_for_files_that_are_elsewhere(path, caplog):
    if "runs" in OmegaConf.load(path):
        pytest.skip("an experiment, which names others")
    elsewhere = ("does not exist", "Cannot find the M3IT files", "cannot be computed here", "meteor", "cider")
    try:
        check_config(path, evaluating="eval" in path.parts)
    except ConfigError as error:
        faults = str(error).split("\n  - ")[1:]
        assert faults and all(any(words in fault for words in elsewhere) for fault in faults), error
    assert not caplog.records
