"""LAVIS's own runners keep the best weights whatever the sign of the score, and some in any case."""

import json
import logging
import math
import warnings
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

import gitllm_plugin
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.host.config_check import check_config
from tests.host.test_runners_on_cpu import ITERATIONS, small_run

NAN = math.nan


@pytest.fixture(autouse=True)
def paths(monkeypatch):
    """LAVIS has one run a process: it registers its folders once."""
    gitllm_plugin.register()
    from lavis.common.registry import registry

    monkeypatch.setitem(registry.mapping, "paths", dict(registry.mapping["paths"]))


class Model(torch.nn.Module):
    """One weight, which the task raises by one a step."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(self.layer.weight)

    @property
    def device(self):
        return self.layer.weight.device


class GroupedModel(Model):
    def optimizer_groups(self, weight_decay):
        return [{"params": [self.layer.weight], "weight_decay": 0.125, "lr_scale": 0.5}]


class Task:
    """Trains by adding one; gives scores from a list; notes the weight that is tested."""

    def __init__(self, scores):
        self.scores, self.tested = list(scores), None

    def train_epoch(self, model, **_):
        model.layer.weight.data += 1
        return {}

    train_iters = train_epoch

    def before_evaluation(self, **_):
        pass

    def evaluation(self, model, loader):
        return model.layer.weight.item()

    def after_evaluation(self, val_result, **_):
        if not self.scores:
            self.tested = val_result
            return {"agg_metrics": 0.0}
        return {"agg_metrics": self.scores.pop(0)}


def runner(tmp_path, kind, scores, model=None, **run):
    from lavis.common.registry import registry

    for name in ("result_dir", "output_dir"):
        registry.mapping["paths"].pop(name, None)
    tmp_path.mkdir(exist_ok=True)
    given = {
        "device": "cpu",
        "distributed": False,
        "evaluate": False,
        "output_dir": str(tmp_path),
        "lr_sched": "linear_warmup_cosine_lr",
        "init_lr": 0.25,
        "min_lr": 0.0,
        "weight_decay": 0.5,
        "max_epoch": len(scores),
        "max_iters": 2 * len(scores),
        "iters_per_inner_epoch": 2,
        "train_splits": ["train"],
        "valid_splits": ["val"],
        "test_splits": ["test"],
        **run,
    }
    run_cfg = OmegaConf.create(given)
    config = SimpleNamespace(run_cfg=run_cfg, model_cfg=OmegaConf.create({}), to_dict=lambda: {"run": given})
    made = registry.get_runner_class(kind)(config, Task(scores), model or Model(), {}, "job")
    splits = ("train", "val", "test", "other")
    made._dataloaders = {split: [0] for split in splits}
    made.datasets = dict.fromkeys(splits)
    return made


def checkpoints(tmp_path):
    found = {}
    for path in tmp_path.rglob("*.pth"):
        found[path.stem] = torch.load(path, weights_only=True)["model"]["layer.weight"].item()
    return found


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        pytest.param([-3.0, -1.0, -2.0], 2, id="losses"),
        pytest.param([-1.0, -2.0, -3.0], 1, id="losses that rise"),
        pytest.param([0.0, 0.0], 1, id="a score of zero"),
        pytest.param([-0.5, 0.0, 0.25, 0.125], 3, id="from below to above"),
        pytest.param([0.5, -0.5, 0.25], 1, id="from above to below"),
        pytest.param([NAN, -2.0, -4.0], 2, id="no number at first"),
    ],
)
@pytest.mark.parametrize("kind", ["runner_base", "runner_iter"])
def test_the_best_is_kept_and_named(kind, scores, best, tmp_path):
    made = runner(tmp_path, kind, scores)
    made.train()
    assert checkpoints(tmp_path) == {"checkpoint_best": best}
    assert made.task.tested == (best if kind == "runner_base" else len(scores))  # runner_iter tests what is last
    (log,) = tmp_path.rglob("log.txt")
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith('{"val_')]
    named = lines[-1].get("val_best_epoch", lines[-1].get("val_best_iters"))
    assert named == (best - 1 if kind == "runner_base" else 2 * best)


@pytest.mark.parametrize(
    ("scores", "splits"),
    [([NAN, NAN], ["val"]), ([0.25, 0.5], ["other"]), ([-1.0, -2.0], ["test"])],
)
@pytest.mark.parametrize(("kind", "name"), [("runner_base", "checkpoint_1"), ("runner_iter", "checkpoint_4")])
def test_the_last_is_kept_where_none_is_best(kind, name, scores, splits, tmp_path, caplog):
    made = runner(tmp_path, kind, scores, valid_splits=splits)
    with caplog.at_level(logging.WARNING):
        made.train()
    assert checkpoints(tmp_path) == {name: 2}
    assert made.task.tested == 2
    assert f"kept as {name}.pth" in caplog.text


def test_without_validation_all_is_as_it_was(tmp_path):
    runner(tmp_path, "runner_base", [1.0, 1.0], valid_splits=[], test_splits=[]).train()
    assert checkpoints(tmp_path) == {"checkpoint_0": 1, "checkpoint_1": 2}


@pytest.mark.parametrize("kind", ["runner_base", "runner_iter"])
def test_groups_of_a_model_have_their_rates(kind, tmp_path):
    made = runner(tmp_path, kind, [0.0] * 4, GroupedModel())
    (group,) = made.optimizer.param_groups
    assert (group["weight_decay"], group["lr_scale"]) == (0.125, 0.5)
    made.lr_scheduler.step(cur_epoch=0, cur_step=0)
    assert group["lr"] == 0.125
    for _ in range(3):  # the scale does not pile up
        made.lr_scheduler.step(cur_epoch=2, cur_step=0)
    assert group["lr"] == pytest.approx(0.25 * 0.5 * 0.5)


class PartlyFrozen(Model):
    def __init__(self):
        super().__init__()
        self.frozen = torch.nn.Linear(1, 2)
        self.frozen.requires_grad_(requires_grad=False)


def resumed(tmp_path, model, checkpoint, epochs=3, score=-0.5, kind="runner_base"):
    """One epoch is left."""
    length = {"max_epoch": epochs, "max_iters": 2 * epochs}
    made = runner(tmp_path / "again", kind, [score], model, resume_ckpt_path=str(checkpoint), **length)
    made.train()
    return made


def test_a_training_with_frozen_weights_is_resumed(tmp_path, caplog):
    first = runner(tmp_path, "runner_base", [-2.0, -1.0], PartlyFrozen())
    with caplog.at_level(logging.WARNING):
        first.train()
    assert "Key mismatch" not in caplog.text
    (checkpoint,) = tmp_path.rglob("checkpoint_best.pth")
    assert set(torch.load(checkpoint, weights_only=True)["model"]) == {"layer.weight"}
    again = resumed(tmp_path, PartlyFrozen(), checkpoint)
    assert again.task.tested == 3
    assert again._model.layer.weight.item() == 3
    assert "load_state_dict" not in vars(again._model)


@pytest.mark.parametrize("kind", ["runner_base", "runner_iter"])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    ("scores", "later", "best"),
    [([-2.0, -1.0], -1.5, 2), ([0.25, 0.75], 0.5, 2), ([-0.5, 0.0], -0.25, 2), ([0.25, 0.5], 0.75, 3)],
)
def test_a_resumed_training_keeps_what_was_better(kind, known, scores, later, best, tmp_path, caplog):
    runner(tmp_path / "first", kind, scores).train()
    (checkpoint,) = tmp_path.rglob("checkpoint_best.pth")
    if not known:  # a training without these repairs
        log = checkpoint.with_name("log.txt")
        log.write_text("".join(line for line in log.read_text().splitlines(True) if "best_agg" not in line))
        best = 3
    with caplog.at_level(logging.WARNING):
        again = resumed(tmp_path, Model(), checkpoint, score=later, kind=kind)
    assert checkpoints(tmp_path / "again") == {"checkpoint_best": best}
    assert again.task.tested == (best if kind == "runner_base" else 3)
    assert ("what is best counts from here on" in caplog.text) == (not known)
    lines = [json.loads(line) for line in (again.output_dir / "log.txt").read_text().splitlines() if '{"val_' in line]
    last = lines[-1]
    assert last["val_best_agg_metrics"] == (later if best == 3 else scores[1])
    assert {last.get("val_best_epoch"), last.get("val_best_iters")} == {
        None,
        best - 1 if kind == "runner_base" else 2 * best,
    }


@pytest.mark.parametrize("kind", ["runner_base", "runner_iter"])
def test_what_was_best_later_is_not_of_a_training_that_goes_on_from_before(kind, tmp_path):
    first = runner(tmp_path / "first", kind, [0.5, 0.75])
    first.train()
    before = first.output_dir / "earlier.pth"
    state = torch.load(first.output_dir / "checkpoint_best.pth", weights_only=True)
    torch.save({**state, **({"epoch": 0} if kind == "runner_base" else {"iters": 2})}, before)
    resumed(tmp_path, Model(), before, epochs=2, score=0.25, kind=kind)
    assert set(checkpoints(tmp_path / "again")) == {"checkpoint_best"}
    (log,) = (tmp_path / "again").rglob("log.txt")
    assert '"val_best_agg_metrics": 0.25' in log.read_text()


@pytest.mark.parametrize("absent", [{}, {"agg_metrics": None}, {"agg_metrics": "none"}])
@pytest.mark.parametrize(("kind", "name"), [("runner_base", "checkpoint_1"), ("runner_iter", "checkpoint_4")])
def test_a_task_without_a_score_keeps_the_last(kind, name, absent, tmp_path, caplog):
    made = runner(tmp_path, kind, [0.0, 0.0])
    made.task.after_evaluation = lambda **_: dict(absent)
    with caplog.at_level(logging.WARNING):
        made.train()
    assert checkpoints(tmp_path) == {name: 2}
    assert f"kept as {name}.pth" in caplog.text
    lines = [json.loads(line) for line in (made.output_dir / "log.txt").read_text().splitlines() if '{"val_' in line]
    assert [line["val_agg_metrics"] for line in lines] == [None, None]


def test_a_checkpoint_of_another_model_is_not_resumed(tmp_path):
    runner(tmp_path, "runner_base", [-2.0, -1.0], PartlyFrozen()).train()
    (checkpoint,) = tmp_path.rglob("checkpoint_best.pth")
    other = Model()
    other.more = torch.nn.Linear(1, 1)
    with pytest.raises(RuntimeError, match="Missing key"):
        resumed(tmp_path, other, checkpoint)


@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize(
    ("kind", "told"), [("runner_base", "run.max_epoch is {}"), ("runner_iter", "run.max_iters is")]
)
def test_a_finished_training_is_not_resumed(kind, told, epochs, tmp_path):
    runner(tmp_path, kind, [-2.0, -1.0]).train()
    (checkpoint,) = tmp_path.rglob("checkpoint_best.pth")
    with pytest.raises(ConfigError, match=f"{told.format(epochs)}.*: nothing is left to train"):
        resumed(tmp_path, Model(), checkpoint, epochs, kind=kind)


def test_other_models_groups_stay_lavis_s(tmp_path):
    made = runner(tmp_path, "runner_base", [0.0])
    assert [group["weight_decay"] for group in made.optimizer.param_groups] == [0.5, 0]
    made.lr_scheduler.step(cur_epoch=0, cur_step=0)
    assert {group["lr"] for group in made.optimizer.param_groups} == {0.25}


def test_loaders_do_not_warn_of_a_gpu_that_is_not_there(tmp_path):
    made = runner(tmp_path, "runner_base", [0.0], num_workers=0, batch_size_train=1, batch_size_eval=1)
    data = torch.utils.data.TensorDataset(torch.zeros(3, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (loader,) = made.create_loaders([data], 0, [1], [True], [None])
        next(loader)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"max_epohc": 3}, "unknown key 'max_epohc' (did you mean 'max_epoch'?)"),
        ({"num_worker": 1}, "unknown key 'num_worker' (did you mean 'num_workers'?)"),
        ({"acum_grad_iters": 2}, "(did you mean 'accum_grad_iters'?)"),
        ({"precision": "fp99"}, "run.precision is 'fp99', expected one of"),
        ({"keep_last": 0}, "run.keep_last is 0"),
        ({"sharding": "all"}, "run.sharding is 'all'"),
        ({"lr_sched": "cosine"}, "run.lr_sched is 'cosine', which counts steps"),
        ({"lr_sched": "constant"}, "run.lr_sched is 'constant', which counts steps"),
        ({"min_lr": None}, "run.min_lr is missing, and run.runner=runner_base cannot do without"),
        ({**ITERATIONS, "iters_per_inner_epoch": None}, "run.iters_per_inner_epoch is missing"),
    ],
)
def test_what_lavis_s_runners_cannot_read_is_told_before(changes, told, tmp_path):
    config = small_run(tmp_path, **{"runner": "runner_base", **changes})
    with pytest.raises(ConfigError) as caught:
        check_config(config)
    assert told in str(caught.value)


@pytest.mark.parametrize("changes", [{"sharding": "fsdp"}, {"keep_best": 3}, {"trackers": ["tensorboard"]}])
def test_what_only_our_runner_reads_is_told_of(changes, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        check_config(small_run(tmp_path, **{"runner": "runner_base", **changes}))
    assert f"run.{next(iter(changes))} has no effect with run.runner=runner_base" in caplog.text
