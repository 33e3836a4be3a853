"""LAVIS's own `runner_iter` on shards, in two processes: stopped and resumed, it is the run that was not stopped."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.m3it_shards import make_groups, write_shards

SCRIPT = Path(__file__).parent / "scripts" / "note_losses.py"
ITERATIONS, INNER = 6, 2


@pytest.fixture
def config(tmp_path):
    """36 texts about 12 pictures in three files; 6 iterations of 2 x 3 pictures are three epochs."""
    write_shards(tmp_path / "shards", make_groups(tmp_path / "a.jsonl", "a", "train", rows=36, texts_per_image=3))
    image = {"train": {"image_size": 32}, "eval": {"image_size": 32}}
    content = {
        "model": {"arch": "git_llm", "model_type": "tiny_opt", "self_test": False},
        "datasets": {
            "m3it_wds": {
                "texts_per_image": 2,
                "vis_processor": image,
                "build_info": {"shards": str(tmp_path / "shards")},
            }
        },
        "run": {
            "runner": "runner_iter",
            "task": "m3it",
            "device": "cpu",
            "distributed": True,
            "seed": 1,
            "amp": False,
            "lr_sched": "linear_warmup_step_lr",
            "lr_decay_rate": 1,
            "init_lr": 1e-2,
            "min_lr": 1e-2,
            "weight_decay": 0.0,
            "max_iters": ITERATIONS,
            "iters_per_inner_epoch": INNER,
            "batch_size_train": 3,
            "batch_size_eval": 3,
            "num_workers": 0,
            "train_splits": ["train"],
            "output_dir": str(tmp_path / "output"),
            "resume_ckpt_path": None,
            "evaluate": False,
            "log_freq": 1,
        },
    }
    path = tmp_path / "config.yaml"
    OmegaConf.save(OmegaConf.create(content), path)
    return path


@pytest.fixture
def train(run_python, config):
    """Trains in two processes, several times in turn; says whether they lived to the end."""

    def run(*runs: dict) -> bool:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        given = json.dumps({"config": str(config), "runs": runs})
        finished = run_python(args=["-W", "ignore", *torchrun, str(SCRIPT), given], timeout=280)
        if not any(run["stop_after"] for run in runs[-1:]):
            assert finished.returncode == 0, finished.stderr[-3000:]
        return finished.returncode == 0

    return run


def run_in(folder: Path, workers: int, resume: Path | None = None, stop_after: int = 0) -> dict:
    options = [f"run.num_workers={workers}"]
    return {
        "folder": str(folder),
        "options": options,
        "resume": resume and str(resume),
        "stop_after": stop_after,
    }


def losses_in(folder: Path) -> list[list[float]]:
    """Of each of the two ranks."""
    return [[float(line) for line in (folder / f"losses_rank{r}.txt").read_text().split()] for r in (0, 1)]


def check_losses(whole: Path, stopped: Path, resumed: Path) -> None:
    expected = losses_in(whole)
    assert [len(losses) for losses in expected] == [ITERATIONS, ITERATIONS]
    assert expected[0] != expected[1]
    assert losses_in(stopped) == [losses[:3] for losses in expected]
    assert losses_in(resumed) == [losses[2:] for losses in expected]
    assert sorted(path.name for path in resumed.rglob("*.pth")) == ["checkpoint_4.pth", "checkpoint_6.pth"]


def test_a_run_that_was_stopped_goes_on_as_if_it_was_not(train, tmp_path):
    whole, stopped, resumed = folders = [tmp_path / name for name in ("whole", "stopped", "resumed")]
    train(run_in(whole, 2), run_in(stopped, 0, stop_after=3), run_in(resumed, 1, resume=stopped))
    check_losses(*folders)


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_as_if_it_was_not(train, tmp_path):
    whole, killed, resumed = folders = [tmp_path / name for name in ("whole", "killed", "resumed")]
    assert not train(run_in(whole, 0), run_in(killed, 2, stop_after=3))
    train(run_in(resumed, 1, resume=killed))
    check_losses(*folders)
