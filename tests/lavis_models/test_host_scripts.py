"""Models of LAVIS's under the host's own train.py and evaluate.py, its tasks and its runner, on small data."""

import contextlib
import io
import json
import sys
from pathlib import Path

import pytest

import gitllm_plugin
from tests.benchmark_files import write_benchmarks
from tests.lavis_models import run_tiny, trial
from tests.lavis_models.host_configs import CASES, write_config

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "tests" / "host" / "scripts" / "of_lavis"
TRAINED = ("blip_vqa", "albef_vqa")


@pytest.fixture(autouse=True)
def paths(monkeypatch, tmp_path):
    """LAVIS has one run a process; where its data lies."""
    gitllm_plugin.register()
    from lavis.common.registry import registry

    monkeypatch.setitem(registry.mapping, "paths", dict(registry.mapping["paths"]))
    monkeypatch.setenv("LAVIS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("GITLLM_MODEL", "unused")
    write_benchmarks(tmp_path / "data")
    return registry.mapping["paths"]


def start(script, config, monkeypatch, paths):
    """Run a script in this process; gives the run's folder."""
    paths.pop("result_dir", None)
    paths.pop("output_dir", None)
    monkeypatch.setattr(sys, "argv", ["run_tiny", str(SCRIPTS / script), "--cfg-path", str(config)])
    with contextlib.redirect_stdout(io.StringIO()):
        run_tiny.main()
    return Path(paths["output_dir"])


@pytest.mark.parametrize(
    "name", [name if name == "blip_vqa" else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_the_hosts_scripts_train_and_evaluate_it(name, tmp_path, monkeypatch, paths):
    split = CASES[name][-1]
    with trial.workshop() as folder:
        config = write_config(name, folder, tmp_path / "out")
        output = start("evaluate.py", config, monkeypatch, paths)
        results = json.loads(next((output / "result").glob(f"{split}_*.json")).read_text())
        assert len(results) == {"vqa": 10, "captioning": 5, "multimodal_classification": 3}[CASES[name][2]]
        if name in TRAINED:
            output = start("train.py", config, monkeypatch, paths)
            lines = [line for line in (output / "log.txt").read_text().splitlines() if line.startswith('{"train_')]
            losses = [float(json.loads(line)["train_loss"]) for line in lines]
            assert losses[1] < losses[0]
            assert (output / "checkpoint_1.pth").is_file()
