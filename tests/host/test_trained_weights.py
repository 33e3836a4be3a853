"""An evaluation evaluates trained weights, whichever way it is started: a run's own, those named, or it is refused."""

import json
import logging
import os
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from PIL import Image

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.host import import_hook, launch
from gitllm_plugin.host.export import find_files
from gitllm_plugin.host.open_model import open_pipeline
from tests.small_run import TINY_LORA, write_small_run

SCRIPT = Path(__file__).parent / "scripts" / "of_lavis" / "evaluate.py"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trained(host, tmp_path_factory):
    """A configuration of a model with LoRA, and the folder of its run, whose best weights are not its newest."""
    config = write_small_run(tmp_path_factory.mktemp("trained"), TINY_LORA, max_epoch=2, agg_metric="loss", init_lr=0.2)
    runner = launch.train(config)
    # Whichever came out better: here the one that is not the newest is called the best.
    (run,) = {path.resolve() for path in (config.parent / "output").glob("*") if path.name != "latest"}
    first, second = sorted((run / "checkpoints").glob("step_*.pth"))
    runner.parts.checkpoints.best.unlink()
    shutil.copy(first, runner.parts.checkpoints.best)
    return config, run


@pytest.fixture(scope="module")
def losses(trained):
    """The loss on the test split by what is named: the best weights, the newest, and none."""
    config, run = trained
    named = {name: f"model.finetuned={run / f'checkpoint_{name}.pth'}" for name in ("best", "latest")}
    options = {name: ["model.load_finetuned=true", option] for name, option in named.items()}
    options["none"] = ["run.allow_untrained=true"]
    found = {name: loss_of(launch.evaluate(config, given)) for name, given in options.items()}
    assert len(set(found.values())) == 3
    return found


def loss_of(runner):
    return json.loads((Path(runner.output_dir) / "test_metrics.json").read_text())["loss"]


def newest_loss(folder):
    return json.loads((folder / "output" / "latest_evaluation" / "test_metrics.json").read_text())["loss"]


@pytest.mark.parametrize("given", ["run", "above", "config"])
def test_a_run_is_evaluated_with_its_best_weights(trained, losses, caplog, given):
    config, run = trained
    caplog.set_level(logging.INFO)
    if given == "config":
        runner = launch.evaluate(run / "config.yaml")
    else:
        runner = launch.evaluate_run(run if given == "run" else run.parent)
    assert loss_of(runner) == losses["best"]
    assert f"Evaluating the weights of {run / 'checkpoint_best.pth'}" in caplog.text
    # The evaluation's own configuration says what was evaluated, and does it again.
    assert loss_of(launch.evaluate(Path(runner.output_dir) / "config.yaml")) == losses["best"]


def test_other_weights_that_are_named_go_before(trained, losses):
    config, run = trained
    newest = run / "checkpoint_latest.pth"
    assert loss_of(launch.evaluate_run(newest)) == losses["latest"]
    assert loss_of(launch.evaluate_run(run, [f"model.finetuned={newest}"])) == losses["latest"]
    assert loss_of(launch.evaluate(config, [f"model.finetuned={newest}"])) == losses["latest"]
    assert loss_of(launch.evaluate_run(run, ["run.evaluate=true", "run.test_splits=[test]"])) == losses["best"]


def test_a_run_without_validation_is_evaluated_with_its_newest(trained, losses, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(trained[1], copy)
    for file in copy.glob("checkpoint_best.*"):
        file.unlink()
    assert loss_of(launch.evaluate_run(copy)) == losses["latest"]


def test_where_a_training_began_is_not_what_is_evaluated(trained, losses, tmp_path):
    _, run = trained
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    config, gone = OmegaConf.load(copy / "config.yaml"), str(tmp_path / "gone.pth")
    config.model.update(load_finetuned=True, finetuned=gone)
    config.run.resume_ckpt_path = gone
    OmegaConf.save(config, copy / "config.yaml")
    assert loss_of(launch.evaluate_run(copy)) == losses["best"]


def test_a_run_that_began_with_a_folder_is_evaluated_with_its_own_weights(trained, losses, tmp_path):
    from gitllm_plugin.host.export import export_run

    config, run = trained
    export_run(run, tmp_path / "folder")
    folder = f"model.folder={tmp_path / 'folder'}"
    # A folder's model is trained, and LoRA that is new in it changes nothing.
    assert loss_of(launch.evaluate(config, [folder])) == pytest.approx(losses["best"], abs=1e-3)
    export_run(run, tmp_path / "merged", merge=True)
    merged = loss_of(launch.evaluate(config, [f"model.folder={tmp_path / 'merged'}"]))
    assert merged == pytest.approx(losses["best"], abs=1e-3)

    again = launch.train(config, [folder, f"run.output_dir={tmp_path / 'again'}", "run.max_epoch=1"])
    after = json.loads((Path(again.output_dir) / "test_metrics.json").read_text())["loss"]
    assert after != losses["best"]
    assert loss_of(launch.evaluate_run(tmp_path / "again")) == after


def test_what_was_trained_just_now_is_evaluated_as_it_is(trained, tmp_path):
    _, run = trained
    # Trained anew with the configuration of another run: its weights are not taken for this one's.
    options = [f"run.output_dir={tmp_path}", "run.max_epoch=1", "run.test_splits=[]", "run.init_lr=0.01"]
    runner = launch.train(run / "config.yaml", options)
    runner.config.run_cfg.test_splits = ["test"]
    before = {name: value.clone() for name, value in runner.parts.bare_model.trainable_state_dict().items()}
    assert runner.evaluate(skip_reload=True).keys() == {"test"}
    after = runner.parts.bare_model.trainable_state_dict()
    assert all(value.equal(after[name]) for name, value in before.items())


UNTRAINED = "UNTRAINED weights would be evaluated"


def test_untrained_weights_are_refused(trained):
    config, _ = trained
    with pytest.raises(ConfigError, match=UNTRAINED) as refused:
        launch.evaluate(config)
    for way in ("gitllm evaluate RUN", "model.finetuned=PATH", "model.folder=FOLDER", "run.allow_untrained=true"):
        assert way in str(refused.value)
    with pytest.raises(ConfigError, match=UNTRAINED):
        launch.train(config, ["run.evaluate=true"])
    with pytest.raises(ConfigError, match=UNTRAINED):
        launch.evaluate(config, ["run.runner=runner_base"])
    with pytest.raises(ConfigError, match=UNTRAINED):
        launch.evaluate(config, ["model.load_finetuned=false"])
    with pytest.raises(ConfigError, match="is not a run"):
        launch.evaluate_run(config.parent / "nowhere")


def test_they_are_evaluated_where_that_is_asked_for(trained, caplog):
    launch.evaluate(trained[0], ["run.allow_untrained=true"])
    assert "UNTRAINED weights are evaluated, as run.allow_untrained says" in caplog.text
    caplog.clear()
    launch.train(trained[0], ["run.allow_untrained=true", "run.evaluate=true"])
    assert "UNTRAINED weights are evaluated" in caplog.text


@pytest.mark.parametrize(
    "way", ["gitllm run", pytest.param("two processes", marks=pytest.mark.slow), "hook", "LAVIS's runner"]
)
def test_every_way_in_takes_a_runs_weights_and_refuses_random_ones(trained, losses, run_python, tmp_path, way):
    config, run = trained

    def start(cfg_path, *options):
        given = ["--cfg-path", str(cfg_path), "--options", f"run.output_dir={tmp_path / 'output'}", *options]
        env = None
        script = [str(SCRIPT)]
        if way in ("gitllm run", "LAVIS's runner"):
            script = ["-m", "gitllm_plugin", "run", *script]
        elif way == "two processes":
            script = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "gitllm_plugin", "run"]
            script.append(str(SCRIPT))
        else:
            place = tmp_path / "start"
            place.mkdir(exist_ok=True)
            import_hook.install(place)
            (place / "sitecustomize.py").write_text(f"import site; site.addsitedir({str(place)!r})")
            env = {"PYTHONPATH": os.pathsep.join([str(place), str(ROOT)])}
        return run_python(args=["-W", "ignore", *script, *given], env=env, cwd=tmp_path, timeout=300)

    if way == "LAVIS's runner":
        refused = start(config, "run.runner=runner_base", "run.test_splits=[test]")
    else:
        finished = start(run / "config.yaml")
        assert finished.returncode == 0, finished.stderr
        assert f"Evaluating the weights of {run / 'checkpoint_best.pth'}" in finished.stdout + finished.stderr
        assert newest_loss(tmp_path) == pytest.approx(losses["best"], abs=1e-6)
        refused = start(config)
    assert refused.returncode != 0
    assert UNTRAINED in refused.stdout + refused.stderr


@pytest.mark.parametrize("below", ["", "runs", "my models/runs"])
def test_a_folder_of_a_folder_of_runs_means_its_latest(below, tmp_path):
    runs = tmp_path / below / "again"
    (runs / "1").mkdir(parents=True)
    for name in ("config.yaml", "checkpoint_latest.pth"):
        (runs / "1" / name).touch()
    (runs / "latest").symlink_to("1")
    assert find_files(runs.parent)[0].resolve() == runs / "1" / "checkpoint_latest.pth"
    (runs.parent / "other").symlink_to("again")
    with pytest.raises(ConfigError, match=r"there are runs in .*again, .*other: name one"):
        find_files(runs.parent)


@pytest.mark.parametrize("words", ["blip_caption", "blip_question", "git_llm_instruction"])
def test_a_run_is_asked_whatever_processed_its_words(words, trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained[1], run)
    config = OmegaConf.load(run / "config.yaml")
    for node in config.datasets.values():
        node.text_processor = {"train": {"name": words}, "eval": {"name": words}}
    OmegaConf.save(config, run / "config.yaml")
    assert isinstance(open_pipeline(run).answer(Image.new("RGB", (30, 20), "teal"), "what?"), str)


def test_a_run_with_another_processor_of_pictures_is_refused(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained[1], run)
    config = OmegaConf.load(run / "config.yaml")
    for node in config.datasets.values():
        node.vis_processor = {"train": {"name": "blip_image_eval"}, "eval": {"name": "blip_image_eval"}}
    OmegaConf.save(config, run / "config.yaml")
    with pytest.raises(ConfigError, match="blip_image_eval; only git_llm_"):
        open_pipeline(run)
