"""LAVIS's ``train.py`` and ``evaluate.py``, unmodified: of its release and git main, each way, with two models."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from gitllm_plugin.host import import_hook
from tests.benchmark_files import write_benchmarks
from tests.lavis_models.host_configs import write_config
from tests.lavis_models.trial import PAGE
from tests.small_run import TINY_LORA, write_small_run

ROOT = Path(__file__).parents[2]
RELEASE = ROOT / "tests" / "host" / "scripts" / "of_lavis"
"""The release's scripts; its library is the installed one."""
CHECKOUT = os.environ.get("GITLLM_TEST_LAVIS_MAIN", "")
HOSTS = {"1.0.2": RELEASE, **({"git main": Path(CHECKOUT)} if CHECKOUT else {})}
MODELS = ("blip_vqa", "git_llm")
BEGIN, END = "<!-- scripts: tests/lavis_models/test_ways.py -->\n", "<!-- end of scripts -->\n"
TOLERANCE = 1e-4
"""Of losses, relative: sums of two processes are of another order."""

# LAVIS's sizes are hard-coded: they are made tiny from outside, so that scripts, plugin and LAVIS stay as they are.
_AT_START = """
from gitllm_plugin.common.import_watch import ImportWatcher

def shrink():
    global sizes
    from tests.lavis_models.sizes import tiny
    sizes = tiny()  # kept: it ends when it is freed
    sizes.__enter__()

ImportWatcher("lavis.models", shrink).watch()
"""


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to start a script.

    Attributes:
        words: what stands between Python and the script.
        hook: whether it needs ``gitllm hook install``.
        ranks: processes.
    """

    words: tuple[str, ...]
    hook: bool
    ranks: int = 1


WAYS = {
    "`gitllm run train.py`": Way(("-m", "gitllm_plugin", "run"), hook=False),
    "`python train.py`, hook": Way((), hook=True),
    "`torchrun --nproc_per_node=2 train.py`, hook": Way(
        ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"), hook=True, ranks=2
    ),
}


@dataclasses.dataclass
class Outcome:
    """What a script gave.

    Attributes:
        losses: of training, one an epoch; none of an evaluation.
        scores: of the last evaluation.
        answers: of the last evaluation, by question.
        weights: the best checkpoint; None of an evaluation.
    """

    losses: list[float]
    scores: dict[str, float]
    answers: dict[str, str]
    weights: Path | None

    def agrees(self, other: "Outcome") -> bool:
        """Say whether answers are the same, and numbers within the tolerance."""
        if self.answers != other.answers or self.scores.keys() != other.scores.keys():
            return False
        pairs = [
            *zip(self.losses, other.losses, strict=True),
            *((self.scores[k], other.scores[k]) for k in self.scores),
        ]
        return all(math.isclose(*pair, rel_tol=TOLERANCE) for pair in pairs)


class Workplace:
    """A folder in which scripts are run: data, models, and what Python does at its start.

    Args:
        folder: that it is; it is made.
        models: folder of LAVIS's models' files, see :func:`tests.lavis_models.trial.workshop`.
    """

    def __init__(self, folder: Path, models: Path) -> None:
        self.folder = folder
        self.models = models
        for hooked in (False, True):
            start = folder / f"start_{hooked}"
            start.mkdir(parents=True)
            (start / "sitecustomize.py").write_text(f"import site; site.addsitedir({str(start)!r})" + _AT_START)
            if hooked:
                import_hook.install(start)
        write_benchmarks(folder / "data")

    def config(self, model: str, ranks: int, output: Path) -> Path:
        """Write a model's configuration: each step trains on all of its data, so that their order does not matter."""
        output.mkdir(parents=True)
        if model == "git_llm":
            run = {"batch_size_train": 12 // ranks, "max_epoch": 12, "max_len": 8, "init_lr": 0.02}
            return write_small_run(output, TINY_LORA, agg_metric="loss", **run)
        run = {"batch_size_train": 10 // ranks, "valid_splits": ["val"], "max_epoch": 12, "init_lr": 1e-2}
        return write_config(model, self.models, output, **run)

    def train(self, host: Path, way: Way, model: str, output: Path) -> Outcome:
        """Run a host's ``train.py``."""
        self._start(host / "train.py", way, self.config(model, way.ranks, output))
        return _outcome(output, trained=True)

    def evaluate(self, host: Path, way: Way, model: str, output: Path, weights: Path) -> Outcome:
        """Run a host's ``evaluate.py`` on trained weights."""
        options = ("model.load_finetuned=true", f"model.finetuned={weights}")
        self._start(host / "evaluate.py", way, self.config(model, way.ranks, output), options)
        return _outcome(output, trained=False)

    def _start(self, script: Path, way: Way, config: Path, options: tuple[str, ...] = ()) -> None:
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("GITLLM_")},
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(self.folder / f"start_{way.hook}"), str(ROOT)]),
            "LAVIS_DATA": str(self.folder / "data"),
        }
        given = ["--cfg-path", str(config), *(["--options", *options] if options else [])]
        command = [sys.executable, "-W", "ignore", *way.words, str(script), *given]
        finished = subprocess.run(
            command, env=environment, cwd=self.models, capture_output=True, text=True, check=False
        )
        assert finished.returncode == 0, finished.stderr[-3000:]


def _outcome(output: Path, trained: bool) -> Outcome:
    """Read the one run below a folder, of LAVIS's runner or of ours."""
    (log,) = {path.resolve() for path in output.rglob("log.txt" if trained else "result")}
    folder = log.parent
    losses = []
    if trained:
        lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith('{"train_')]
        losses = [float(line["train_loss"]) for line in lines]
    results = sorted((folder / "result").glob("test_*.jsonl"))
    if results:
        rows = [json.loads(line) for line in results[-1].read_text().splitlines()]
        metrics = json.loads((folder / "test_metrics.json").read_text())
        scores = {name: value for name, value in metrics.items() if isinstance(value, float)}
        answers = {str(row["instance_id"]): row["prediction"] for row in rows}
    else:
        rows = json.loads((folder / "result" / "val_vqa_result.json").read_text())
        scores = json.loads((folder / "evaluate.txt").read_text().splitlines()[-1])
        answers = {str(row["question_id"]): row["answer"] for row in rows}
    weights = folder / "checkpoint_best.pth"
    return Outcome(losses, scores, answers, weights if trained else None)


def try_all(host: Path, model: str, place: Workplace) -> dict[str, tuple[Outcome, Outcome]]:
    """Train a model and evaluate what was trained, each way."""
    found = {}
    for number, (name, way) in enumerate(WAYS.items()):
        trained = place.train(host, way, model, place.folder / f"train_{number}")
        evaluated = place.evaluate(host, way, model, place.folder / f"evaluate_{number}", trained.weights)
        found[name] = trained, evaluated
    return found


def rows(model: str, host: str, found: Mapping[str, tuple[Outcome, Outcome]]) -> list[str]:
    """Give rows of the table: whether losses fell, what is evaluated is what was tested, and all is as by the first."""
    first, first_evaluated = next(iter(found.values()))
    lines = []
    for way, (trained, evaluated) in found.items():
        said = (
            trained.losses[-1] < trained.losses[0],
            Outcome([], trained.scores, trained.answers, None).agrees(evaluated),
            trained.agrees(first) and evaluated.agrees(first_evaluated),
        )
        lines.append(f"| `{model}` | {host} | {way} | " + " | ".join("yes" if each else "no" for each in said) + " |")
    return lines


def written_rows() -> list[str]:
    """Give the rows that the page has."""
    written = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    return written.splitlines()[2:]
