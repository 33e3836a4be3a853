"""Runs whose ranks hang outside of training's steps, whose loaders' processes end, and that may open few files."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.small_run import ENVIRONMENT

SCRIPT = Path(__file__).with_name("troubled_run.py")
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
STUCK = 75


def run(folder: Path, trouble: str, *settings: str, ranks: int = 1, files: int | None = None):
    limit = None if files is None else lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    launcher = TWO if ranks == 2 else []
    command = [sys.executable, *launcher, str(SCRIPT), trouble, str(folder), "max_epoch=1", *settings]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=150, preexec_fn=limit)


@pytest.mark.parametrize(
    ("trouble", "places"),
    [
        (
            "hanging val",
            ["rank 1", "at: batch 1 of the evaluation on val", "rank 0", "the results of the evaluation on val"],
        ),
        pytest.param("hanging test", ["rank 1", "at: batch 1 of the evaluation on test"], marks=pytest.mark.slow),
        pytest.param("scores", ["rank 1", "the results of the evaluation on val"], marks=pytest.mark.slow),
    ],
)
def test_a_rank_that_hangs_in_an_evaluation_ends_all(tmp_path, trouble, places):
    done = run(tmp_path, trouble, "step_timeout_minutes=0.08", ranks=2)
    assert done.returncode != 0 and f"exitcode  : {STUCK}" in done.stderr
    for words in (*places, "has made no progress for 0.08 minutes (run.step_timeout_minutes)"):
        assert words in done.stderr
    assert list(tmp_path.rglob("checkpoint_latest.pth")), "what was trained is saved before it is evaluated"


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("killed val", "was killed, perhaps because memory ran out. Lower run.batch_size_train from 4 to 2"),
        ("crashed train", "was ended by the signal Segmentation fault. A library that decodes pictures"),
        pytest.param("left test", "it ended by itself. A library that decodes pictures", marks=pytest.mark.slow),
        pytest.param("killed train", "was killed, perhaps because memory ran out", marks=pytest.mark.slow),
        pytest.param("crashed test", "with run.num_workers=0 the run reads the data itself", marks=pytest.mark.slow),
    ],
)
def test_a_loader_process_that_ends_is_one_error(tmp_path, trouble, said):
    done = run(tmp_path, trouble, "num_workers=1")
    assert done.returncode == 2, done.stderr
    assert said in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


@pytest.mark.parametrize("files", [32, *(pytest.param(n, marks=pytest.mark.slow) for n in (23, 28, 48))])
def test_too_few_open_files_for_workers_are_one_error(tmp_path, files):
    done = run(tmp_path, "none", "num_workers=2", files=files)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    said = f"error: this process may open {files} files, and run.num_workers=2 needs 64"
    assert done.stderr.splitlines()[-1].startswith(said)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "files"), [(0, 32), (2, 64), (1, 52)])
def test_as_many_as_are_asked_for_are_enough(tmp_path, workers, files):
    done = run(tmp_path, "none", f"num_workers={workers}", files=files)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
