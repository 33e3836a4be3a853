"""The ``run`` node: what the runner and the launcher read of it; tasks declare their own keys."""

from collections.abc import Collection, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from gitllm_plugin.config.model import is_there, missing_path
from gitllm_plugin.config.node import ReadIf, Rule, node, unknown_key
from gitllm_plugin.config.values import DefaultIs, Says

STEP_SCHEDULES = ("cosine", "linear", "constant")
"""Schedules of this package, which count steps; LAVIS's count epochs."""

_LEVEL_SCHEDULES = ("constant", "constant_lr")

Precision = Literal["auto", "fp32", "bf16", "fp16"]
NO_FP16 = "this run computes on a CPU, where torch has no training in float16; use bf16, fp32 or auto"
Sharding = Literal["none", "fsdp"]
Order = Literal["max", "min"]

_Count = Annotated[int, Field(ge=1)]
_NumberOf = Annotated[int, Field(ge=0)]
_NotNegative = Annotated[float, Field(ge=0)]
_IF_VALIDATED = ReadIf(("valid_splits",), bool, "where there are valid_splits")


def _sharding_faults(precision: str, sharding: str, amp: bool | None) -> Iterable[str]:
    if precision == "fp16" and sharding == "fsdp":
        yield ".precision=fp16 needs a gradient scaler, which knows no run.sharding=fsdp; use bf16 or fp32"
    if precision in ("fp16", "bf16") and amp is False:
        yield f".amp=False means fp32, and run.precision is {precision}; leave run.amp out"


def _half_precision_fault(precision: str, device: str, gpu: bool) -> str | None:
    if precision == "fp16" and (device == "cpu" or (device == "auto" and not gpu)):
        return f".precision=fp16 needs a GPU, and {NO_FP16}"
    return None


def _training_faults(training: bool, init_lr: float | None, max_epoch: int | None, max_iters: int | None) -> Any:
    if not training:
        return
    if init_lr is None:
        yield ".init_lr is missing"
    if max_epoch is None and max_iters is None:
        yield "neither run.max_epoch nor run.max_iters is given; give at least one"


def _nothing_to_train_on_fault(training: bool, splits: tuple[str, ...]) -> str | None:
    return ".train_splits is empty, and there would be nothing to train on" if training and not splits else None


def _rates_fault(init_lr: float | None, min_lr: float, lr_sched: str) -> str | None:
    # A schedule that does not fall reads no min_lr.
    if init_lr is None or lr_sched in _LEVEL_SCHEDULES or min_lr <= init_lr:
        return None
    return f".min_lr is {min_lr:g}, above run.init_lr, which is {init_lr:g}; the schedule falls from one to the other"


def _ratios_faults(ratios: dict[str, float] | None, datasets: Collection[str]) -> Iterable[str]:
    yield from (
        unknown_key(".train_dataset_ratios", name, datasets, "Data sets")
        for name in ratios or ()
        if name not in datasets
    )


def _warm_up_fault(lr_sched: str, warmup_lr: float | None) -> str | None:
    # LAVIS's own schedules take -1 for "none".
    if warmup_lr is None or warmup_lr >= 0 or (warmup_lr == -1 and lr_sched not in STEP_SCHEDULES):
        return None
    none = "" if lr_sched in STEP_SCHEDULES else ", or -1 for none,"
    return f".warmup_lr is {warmup_lr:g}, expected 0 or more{none} with run.lr_sched={lr_sched}"


def _resume_fault(resume: str | None, training: bool) -> str | None:
    """Refuse it in an evaluation, which does not read it: other weights than those meant would be evaluated."""
    if resume is None or training:
        return None
    path = resume if is_there(resume) and Path(resume).is_file() else "PATH"
    return (
        f".resume_ckpt_path={resume} continues a training and is not read in an evaluation; leave it out and "
        f"give the weights to evaluate with --options model.load_finetuned=True model.finetuned={path}"
    )


def _checkpoint_fault(resume: str | None, training: bool) -> str | None:
    if resume is None or resume == "auto" or not training:
        return None
    fault = missing_path(".resume_ckpt_path", resume)
    return f"{fault}; give a checkpoint, a run's folder or 'auto'" if fault else None


def _missing_trackers(trackers: tuple[str, ...]) -> Iterable[str]:
    for name in trackers:
        if find_spec(name) is None:
            yield f".trackers has {name!r}, which is not installed: pip install {name}"


def endless_fault(key: str, split: str) -> str:
    """Say that a split cannot be evaluated on because its data has no end; ``key`` begins with a dot, or with run."""
    return (
        f"{key} names {split!r}, whose data is a stream without an end, so that its evaluation would have none; "
        "name val or test. To see how well a model knows what it was trained on, give the rows of the training split "
        "as a split of their own: datasets.m3it.build_info.annotations.test_train.storage=FILE, run.test_splits="
        "[test_train]"
    )


def _endless_faults(streams: bool, *named: tuple[str, ...]) -> Iterable[str]:
    for key, names in zip(("valid_splits", "test_splits"), named, strict=True):
        if streams and "train" in names:
            yield endless_fault(f".{key}", "train")


def _split_faults(training: bool, splits: Iterable[str], *named: tuple[str, ...]) -> Iterable[str]:
    """Find splits that no data set has files for, else found only when their turn comes."""
    for key, names in zip(("train_splits", "valid_splits", "test_splits"), named, strict=True):
        for name in names if training or key != "train_splits" else ():
            if name not in splits:
                known = ", ".join(sorted(splits)) or "none"
                yield f".{key} names {name!r}, but the data sets have files for: {known}"


@node("run")
class LaunchSettings:
    """What LAVIS and the launcher read or set, whatever the runner and the task."""

    runner: Annotated[str | None, DefaultIs("runner_base")] = None
    """The runner's registered name; ``runner_base`` of LAVIS where it is missing."""

    task: Annotated[str | None, DefaultIs("needed")] = None
    """The task's registered name."""

    # NumPy takes no more than 32 bits, and each process adds its number.
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 42
    """Of everything random."""

    device: str | None = None
    """Where to compute."""

    evaluate: bool = False
    """Evaluate only."""

    allow_untrained: bool = False
    """Evaluate weights that were drawn at random too, where nothing is trained or loaded: an error otherwise."""

    resume_ckpt_path: Annotated[str, Field(min_length=1)] | None = None
    """A checkpoint, a run's folder, or ``auto``: the newest run of this configuration below ``output_dir``."""

    train_splits: tuple[str, ...] = ()
    """What is trained on."""

    valid_splits: tuple[str, ...] = ()
    """What is evaluated after each epoch."""

    test_splits: tuple[str, ...] = ()
    """What is evaluated at the end."""

    distributed: bool | None = None
    """Set by the launcher: whether there are several processes."""

    world_size: Annotated[int, Field(ge=1)] | None = None
    """Set by the launcher: how many processes there are."""

    rank: Annotated[int, Field(ge=0)] | None = None
    """Set by the launcher: the number of this one."""

    gpu: Annotated[int, Field(ge=0)] | None = None
    """Set by the launcher: the number of its GPU."""

    dist_url: str | None = None
    """Where the processes meet."""

    dist_backend: str | None = None
    """How they talk."""

    RULES = (
        Rule(("resume_ckpt_path", "run.training"), _resume_fault),
        Rule(("datasets.streams", "valid_splits", "test_splits"), _endless_faults),
        Rule(("run.training", "datasets.splits", "train_splits", "valid_splits", "test_splits"), _split_faults),
    )


@node("run")
class LogSettings:
    """How often progress is told."""

    log_freq: _Count = 50
    """Batches between two lines of the log."""


@node("run")
class RunSettings(LaunchSettings, LogSettings):
    """What the runner ``git_llm`` reads."""

    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$"), Says("auto, cpu, cuda or cuda:N")] = "auto"
    """Where to compute; ``auto`` is a GPU where there is one."""

    precision: Precision = "auto"
    """What is computed in; ``auto`` is bf16 where the hardware has it."""

    amp: bool | None = None
    """LAVIS's switch of mixed precision; ``precision`` says it better."""

    sharding: Sharding = "none"
    """With ``fsdp``, weights, gradients and optimizer are divided among the ranks."""

    compile: bool = False
    """Compile the layers with torch.compile."""

    output_dir: Annotated[str, Field(min_length=1)] = "output/git_llm"
    """Folder of runs, relative to where you stand."""

    train_splits: tuple[str, ...] = ("train",)
    """What is trained on."""

    init_lr: _NotNegative | None = None
    """Learning rate after warming up; needed to train."""

    lr_sched: str = "cosine"
    """``cosine``, ``linear`` or ``constant``, by step; or a schedule of LAVIS's."""

    min_lr: Annotated[
        _NotNegative,
        ReadIf(("lr_sched",), lambda name: name not in _LEVEL_SCHEDULES, "by a lr_sched that falls"),
    ] = 0.0
    """Where the schedule ends."""

    warmup_lr: Annotated[
        float | None,
        ReadIf(("warmup_steps",), lambda steps: steps > 0, "where warmup_steps is above 0"),
    ] = None
    """Where warming up begins."""

    warmup_steps: _NumberOf = 0
    """Optimizer steps of warming up."""

    lr_decay_rate: Annotated[
        Annotated[float, Field(gt=0)] | None,
        ReadIf(("lr_sched",), lambda name: name not in STEP_SCHEDULES, "by a lr_sched of LAVIS's"),
    ] = None
    """Of LAVIS's ``linear_warmup_step_lr``."""

    weight_decay: _NotNegative = 0.05
    """Of matrices; biases and norms have none."""

    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Of AdamW."""

    max_epoch: _Count | None = None
    """Epochs; this or ``max_iters`` is needed to train."""

    max_iters: _Count | None = None
    """Optimizer steps; with ``max_epoch``, whichever comes first."""

    iters_per_inner_epoch: Annotated[
        _Count | None,
        ReadIf(
            ("datasets.streams", "datasets.count"),
            lambda streams, count: streams or count > 1,
            "of data without an end, such as m3it_wds, and of several data sets",
        ),
    ] = None
    """Batches an epoch, where data has no end or several data sets are mixed."""

    train_dataset_ratios: Annotated[
        dict[str, Annotated[float, Field(gt=0)]] | None,
        ReadIf(("datasets.count",), lambda count: count > 1, "with several data sets"),
    ] = None
    """Shares of the batches that several data sets have; exact to within one batch, at any time."""

    batch_size_train: _Count = 8
    """Images a batch, on each process."""

    tokens_per_batch: _Count | None = None
    """Image and text tokens a batch, on each process, in the place of ``batch_size_train``: each image's once, each
    text's, near to so many and not above."""

    batch_size_eval: _Count | None = None
    """The same in evaluation; null for ``batch_size_train``."""

    accum_grad_iters: _Count = 1
    """Batches a step."""

    max_grad_norm: _NotNegative = 1.0
    """Gradients are scaled down to this norm; 0 for no bound."""

    max_skipped_steps: _NumberOf = 5
    """Steps in a row that may be skipped because loss or gradients are not finite; more end the run."""

    num_workers: Annotated[int, Field(ge=0, le=1024)] = 0
    """Processes that read data."""

    use_dist_eval_sampler: bool = True
    """Whether ranks share an evaluation."""

    keep_last: _Count = 2
    """How many of the newest checkpoints are kept."""

    keep_best: Annotated[_Count, _IF_VALIDATED] = 1
    """How many of the best checkpoints are kept."""

    save_every_steps: _Count | None = None
    """Optimizer steps between two checkpoints within an epoch."""

    save_every_minutes: _NotNegative = 30.0
    """Minutes between two checkpoints within an epoch."""

    best: Annotated[Order, _IF_VALIDATED] = "max"
    """Whether the highest (``max``) or the lowest (``min``) score of ``agg_metric`` is the best."""

    step_timeout_minutes: _NotNegative = 30.0
    """After so long without a step a run that is stuck ends, and says where."""

    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where scores are sent besides ``metrics.jsonl``."""

    RULES = (
        Rule(("precision", "sharding", "amp"), _sharding_faults),
        Rule(("precision", "device", "machine.gpu"), _half_precision_fault),
        Rule(("run.training", "init_lr", "max_epoch", "max_iters"), _training_faults),
        Rule(("run.training", "train_splits"), _nothing_to_train_on_fault),
        Rule(("init_lr", "min_lr", "lr_sched"), _rates_fault),
        Rule(("train_dataset_ratios", "datasets.names"), _ratios_faults),
        Rule(("lr_sched", "warmup_lr"), _warm_up_fault),
        Rule(("resume_ckpt_path", "run.training"), _checkpoint_fault),
        Rule(("trackers",), _missing_trackers),
        Rule(
            ("device", "machine.gpu"),
            lambda device, gpu: (
                f".device is {device!r} but torch finds no GPU; use run.device=cpu or auto"
                if device.startswith("cuda") and not gpu
                else None
            ),
        ),
    )
