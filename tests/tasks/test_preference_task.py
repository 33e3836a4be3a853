"""Task `git_llm_dpo`: runs of it, what they write, and what is refused."""

import json
import math

import pytest

from gitllm_plugin.host import launch
from tests.preference_run import write_preference_run

LOGGED = {
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
}


def lines(folder, name="metrics.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def train(path, *options):
    runner = launch.train(str(path), list(options))
    return runner.output_dir, lines(runner.output_dir)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_learns_what_is_preferred_and_says_so(tmp_path, precision):
    folder, steps = train(write_preference_run(tmp_path, precision=precision, max_epoch=4))
    assert len(steps) == 4 * 3 and all(step.keys() >= LOGGED for step in steps)
    first, last = steps[0], steps[-3:]
    # Policy and reference are one model, and both answers equally preferred.
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6 if precision == "fp32" else 1e-2)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-5 if precision == "fp32" else 0.05)
    assert sum(step["loss"] for step in last) / 3 < first["loss"]
    assert sum(step["rewards/accuracies"] for step in last) / 3 > 0.6
    evaluations = lines(folder, "evaluations.jsonl")
    assert len(evaluations) == 4 and all(line.keys() >= LOGGED | {"loss", "agg_metrics"} for line in evaluations)
    assert evaluations[-1]["agg_metrics"] == -evaluations[-1]["loss"]
    assert evaluations[-1]["rewards/margins"] == pytest.approx(
        evaluations[-1]["rewards/chosen"] - evaluations[-1]["rewards/rejected"], abs=1e-4
    )
