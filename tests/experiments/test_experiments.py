"""Experiments: plans, what is run and what is not run again, and the page; real runs of a tiny model."""

import json
import math
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from gitllm_plugin.cli.main import main
from gitllm_plugin.curves.read import RunCurves
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.experiments.plan import choose_runs, read_plan
from gitllm_plugin.experiments.report import confidence, mean_curves
from gitllm_plugin.experiments.run import RECORD
from gitllm_plugin.host.export import find_run
from tests.small_run import write_small_run

ROOT = Path(__file__).parents[2]
PROJECTS = ROOT / "projects" / "git_llm"
PRESETS = ["proj", "proj+lora", "proj+llm", "proj+vit", "proj+lora+vit", "proj+head", "proj+lora+head", "all"]


def write_plan(folder, *names, **changes):
    config = write_small_run(folder, {"model_type": "tiny_opt"}, test_splits=[], max_epoch=1)
    runs = [{"name": name, "cfg_path": str(config), "options": [f"model.trainable={name}"]} for name in names]
    plan = {"title": "Which modules", "output_dir": str(folder / "experiment"), "runs": runs, **changes}
    path = folder / "plan.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(plan)))
    return path


def test_runs_are_compared_and_not_run_again(tmp_path, capfd):
    plan = write_plan(tmp_path, "proj", "proj+lora")
    assert main(["experiment", str(plan)]) == 0
    folder = tmp_path / "experiment"
    results = {result["name"]: result for result in json.loads((folder / "results.json").read_text())}
    assert results["proj"]["trained_parameters"] < results["proj+lora"]["trained_parameters"]
    for result in results.values():
        assert result["steps"] == 3 and result["training_loss"] > 0 and result["validation_loss"] > 0
    page = (folder / "README.md").read_text()
    assert page.startswith("# Which modules") and "| proj+lora " in page
    for figure in ("training_loss.png", "validation_loss.png"):
        assert (folder / figure).stat().st_size > 10_000 and figure in page
    capfd.readouterr()
    assert main(["experiment", str(plan)]) == 0
    said = capfd.readouterr().out
    assert said.count("already done") == 2 and "\nproj+lora " in said
    assert len(list((folder / "proj").glob("2*"))) == 1


def take_for_the_pages(plan, folder, to, results):
    """As `python docs/_build/results.py` does: what was found, without where it lies, and the figures."""
    taking = runpy.run_path(str(ROOT / "docs" / "_build" / "results.py"))
    taking["take_experiment"](str(plan), folder, to, to)
    taken = json.loads((to / "plan.json").read_text())
    prints = [run.fingerprint() for run in read_plan(plan).runs]
    assert taken["runs"] == [
        {**{key: result[key] for key in result if key != "folder"}, "fingerprint": of_run}
        for result, of_run in zip(results, prints, strict=True)
    ]
    assert (taken["of"], taken["not_run"], "torch" in taken["environment"]) == (f"gitllm experiment {plan}", [], True)
    assert (to / "plan_training_loss.png").stat().st_size > 10_000 and not (to / "plan_validation_loss.png").exists()
    table = taking["table_of"](taken)
    assert table.header[-2:] == ["exact match", "each seed"] and [row[0] for row in table.rows] == ["proj", "proj+lora"]
    return taking


def take_from_another_machine(plan, folder, to, taking):
    """Runs that are not finished there stay as they were taken, while list and configuration are the same."""
    record = json.loads((folder / RECORD).read_text())
    here = {name: entry for name, entry in record.items() if name != "proj, seed 2"}
    (to / "other").mkdir()
    (to / "other" / RECORD).write_text(json.dumps(here))
    before = json.loads((to / "plan.json").read_text())
    taking["take_experiment"](str(plan), to / "other", to, to)
    assert json.loads((to / "plan.json").read_text())["runs"] == before["runs"]
    before["runs"][2]["fingerprint"] = "of another configuration"
    (to / "plan.json").write_text(json.dumps(before))
    taking["take_experiment"](str(plan), to / "other", to, to)
    after = json.loads((to / "plan.json").read_text())
    assert after["not_run"] == ["proj, seed 2"] and len(after["runs"]) == 3


def test_a_run_whose_options_changed_is_run_again_and_others_are_not(tmp_path):
    plan = write_plan(tmp_path, "proj", "proj+lora")
    assert main(["experiment", str(plan), "--only", "proj"]) == 0
    assert "Not run yet: proj+lora." in (tmp_path / "experiment" / "README.md").read_text()
    assert main(["experiment", str(plan), "--only", "proj", "--options", "run.seed=2"]) == 0
    assert len(list((tmp_path / "experiment" / "proj").glob("2*"))) == 2


def test_seeds_give_means_with_intervals_and_new_ones_are_run_alone(tmp_path, capfd):
    plan = write_plan(tmp_path, "proj", "proj+lora", seeds=[1, 2])
    assert main(["experiment", str(plan)]) == 0
    folder = tmp_path / "experiment"
    results = json.loads((folder / "results.json").read_text())
    assert [r["name"] for r in results] == ["proj, seed 1", "proj+lora, seed 1", "proj, seed 2", "proj+lora, seed 2"]
    taking = take_for_the_pages(plan, folder, tmp_path, results)
    take_from_another_machine(plan, folder, tmp_path, taking)
    first, second = (result["validation_loss"] for result in results if result["group"] == "proj")
    assert first != second
    # With two values, t is the tangent of 0.475 pi, and the standard error half their distance.
    reach = math.tan(0.475 * math.pi) * abs(first - second) / 2
    page = (folder / "README.md").read_text()
    assert f"{(first + second) / 2:.4f} ± {reach:.4f}" in page and "95% confidence" in page and "## Each run" in page
    capfd.readouterr()
    assert main(["experiment", str(write_plan(tmp_path, "proj", "proj+lora", seeds=[1, 2, 5])), "--only", "proj"]) == 0
    assert capfd.readouterr().out.count("already done") == 2
    assert len(json.loads((folder / "results.json").read_text())) == 5


@pytest.mark.parametrize("values", [[0.25, 0.75], [1.0, 2.0, 4.0], [-0.4, 0.1, 0.2, 0.9, 1.3], list(range(10))])
def test_an_interval_is_student_s(values):
    stats = pytest.importorskip("scipy.stats")
    mean, reach = confidence(values)
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    assert np.allclose((mean, reach), ((low + high) / 2, (high - low) / 2), rtol=3e-4)


def test_curves_of_several_seeds_become_their_mean_where_all_have_it():
    runs = [
        RunCurves(
            "a", [{"step": n, "loss": loss} for n, loss in enumerate(losses)], [{"split": "val", "step": 2, **val}]
        )
        for losses, val in (([1.0, 2.0, 3.0], {"loss": 1.0}), ([3.0, 4.0], {"loss": 2.0}))
    ]
    mean = mean_curves("both", runs)
    assert [(entry["step"], entry["loss"]) for entry in mean.steps] == [(0, 2.0), (1, 3.0)]
    assert [entry["loss"] for entry in mean.evaluations_of("val")] == [1.5]


@pytest.mark.parametrize("seeds", [3, [1], [1, 1], [1, -2], [1, True], ["a", "b"], [0.5, 1], list(range(11)), []])
def test_seeds_that_are_none_are_refused(tmp_path, capsys, seeds):
    assert main(["experiment", str(write_plan(tmp_path, "proj", seeds=seeds))]) == 2
    assert "expected 2 to 10 different whole numbers, as [1, 2, 3]" in capsys.readouterr().err


def test_a_seed_is_said_in_one_place(tmp_path, capsys):
    plan = write_plan(tmp_path, "proj", seeds=[1, 2], options=["run.seed=4"])
    assert main(["experiment", str(plan)]) == 2
    assert "run proj has an option run.seed, and the experiment has seeds" in capsys.readouterr().err


def test_a_run_that_fails_does_not_stop_the_others_and_is_named(tmp_path, capfd):
    plan = write_plan(tmp_path, "prij", "proj")
    assert main(["experiment", str(plan)]) == 2
    error = capfd.readouterr().err
    assert "unknown module 'prij'" in error and error.strip().endswith(
        "error: prij failed; the reasons stand above. The same command tries again."
    )
    assert [result["name"] for result in json.loads((tmp_path / "experiment/results.json").read_text())] == ["proj"]


def test_a_run_that_was_killed_is_told_with_the_batch_sizes_to_lower(tmp_path, capfd, monkeypatch):
    plan = write_plan(tmp_path, "proj")
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    start = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **how: start([sys.executable, "-c", killed], **how))
    assert main(["experiment", str(plan), "--options", "run.batch_size_eval=16"]) == 2
    error = capfd.readouterr().err
    assert "was killed, perhaps because memory ran out. Lower run.batch_size_train from 4 to 2" in error
    assert f"run.batch_size_eval from 16 to 8 (configuration: {tmp_path / 'config.yaml'})" in error


def test_a_dry_run_prints_the_commands(tmp_path, capsys):
    assert main(["experiment", str(write_plan(tmp_path, "proj", "all")), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[1].endswith(f"model.trainable=all run.output_dir={tmp_path}/experiment/all")
    assert not (tmp_path / "experiment").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"titel": "x"}, "unknown key 'titel' .did you mean 'title'"),
        ({"title": ""}, "title missing; an experiment has title, output_dir and runs"),
        ({"runs": [{"name": "a"}]}, "each run has a name and a cfg_path"),
        ({"runs": [{"name": "a", "cfg_path": "nowhere.yaml"}]}, "no configuration file 'nowhere.yaml'"),
    ],
)
def test_plans_that_cannot_be_run(tmp_path, capsys, changes, message):
    assert main(["experiment", str(write_plan(tmp_path, "proj", **changes))]) == 2
    import re

    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("changes", "words", "launched"),
    [
        ({"processes": 2}, [], [2, 2]),
        ({"processes": 2}, ["--processes", "4"], [4, 4]),
        ({}, ["--processes", "1"], [1, 1]),
        ({"processes": 1}, [], [1, 1]),
    ],
)
def test_runs_for_several_gpus_are_started_by_torchrun(tmp_path, capsys, changes, words, launched):
    assert main(["experiment", str(write_plan(tmp_path, "proj", "all", **changes)), "--dry-run", *words]) == 0
    for line, count in zip(capsys.readouterr().out.splitlines(), launched, strict=True):
        start = f"python -m torch.distributed.run --standalone --nproc_per_node={count} -m gitllm_plugin train "
        assert line.startswith(start if count > 1 else "python -m gitllm_plugin train ")


def test_one_run_may_have_more_processes_than_the_others(tmp_path, capsys):
    path = write_plan(tmp_path, "proj", "all")
    plan = OmegaConf.load(path)
    plan.runs[1].processes = 3
    OmegaConf.save(plan, path)
    assert [run.processes for run in read_plan(path).runs] == [1, 3]


@pytest.mark.parametrize("count", [0, -1, "two", 1.5, True])
def test_a_number_of_processes_is_a_number(tmp_path, capsys, count):
    assert main(["experiment", str(write_plan(tmp_path, "proj", processes=count))]) == 2
    assert f"processes is {count!r}, expected a whole number, 1 or more" in capsys.readouterr().err


def test_plans_for_eight_gpus_say_so():
    """Their configurations' first lines start eight processes."""
    for plan in (PROJECTS / "experiments").glob("*.yaml"):
        for run in read_plan(plan).runs:
            first = (ROOT / run.cfg_path).read_text().splitlines()[0]
            assert f"--nproc_per_node={run.processes} " in first or (run.processes == 1 and "torchrun" not in first)


def test_names_are_unique_and_known(tmp_path, capsys):
    assert main(["experiment", str(write_plan(tmp_path, "proj", "proj"))]) == 2
    assert "the same name: proj" in capsys.readouterr().err
    assert main(["experiment", str(write_plan(tmp_path, "proj")), "--only", "lora"]) == 2
    assert "there is no run lora; the runs are proj" in capsys.readouterr().err


@pytest.mark.parametrize("plan", sorted((PROJECTS / "experiments").glob("*.yaml")), ids=lambda path: path.stem)
def test_our_own_plans_are_whole(plan):
    first = plan.read_text().splitlines()[0]
    assert first == f"# gitllm experiment projects/git_llm/experiments/{plan.name}"
    assert len(choose_runs(read_plan(plan), [])) >= 2


def test_experiment_1_has_every_row_of_the_article_and_they_differ_in_what_is_trained_alone():
    runs = read_plan(PROJECTS / "experiments" / "exp1.yaml").runs
    configs = [OmegaConf.to_container(OmegaConf.load(ROOT / run.cfg_path)) for run in runs]
    assert [config["model"]["trainable"] for config in configs] == PRESETS
    for config, run in zip(configs, runs, strict=True):
        has_lora = "lora" in config["model"]["trainable"] or config["model"]["trainable"] == "all"
        assert (config["model"].pop("lora") is not None) == has_lora
        for key in ("trainable", "untie"):
            config["model"].pop(key, None)
        assert config["run"].pop("output_dir") == f"output/exp1/{run.name}"
        assert config == configs[0]


@pytest.mark.parametrize("config", sorted((PROJECTS / "train").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_training_says_its_command_and_passes_the_check(config, monkeypatch):
    from gitllm_plugin.host.config_check import check_config
    from gitllm_plugin.host.locate import prepare

    prepare()
    import gitllm_plugin

    gitllm_plugin.register()
    assert config.read_text().splitlines()[0].endswith(f"train --cfg-path projects/git_llm/train/{config.name}")
    try:
        check_config(config)
    except ConfigError as error:  # data and models are the user's
        not_here = ("storage: Cannot find", "no such file", "no file matches", "which does not exist")
        assert all(any(words in line for words in not_here) for line in str(error).splitlines()[1:])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: &t [*t]\noutput_dir: o\nruns: []\n", "refers to itself"),
        ("title: t\noutput_dir: o\nruns: " + "[" * 60 + "]" * 60, "nested more than"),
        (
            "title: aaaaaaaaaa\n" + "".join(f"k{n + 1}: ${{k{n}}}${{k{n}}}\n" for n in range(40)) + "k0: ${title}\n",
            "would have more than",
        ),
        ("- a list\n", "must hold title, output_dir and runs"),
    ],
)
def test_a_plan_that_stands_for_too_much_ends_in_one_line(tmp_path, text, message):
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_plan(tmp_path / "plan.yaml")


@pytest.mark.parametrize("text", ["run: &r\n  a: *r\n", "a: " + "{b: " * 60 + "1" + "}" * 60, "a: ${b}\nb: ${a}${a}\n"])
def test_a_run_s_configuration_that_has_no_end_is_refused(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    (tmp_path / "checkpoint_best.pth").write_bytes(b"never read")
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        find_run(tmp_path / "checkpoint_best.pth")
