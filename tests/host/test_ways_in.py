"""Every way to a GIT-LLM run, for real: a tiny random model, data made on the spot, a process of its own."""

import os
import shutil
from pathlib import Path

import pytest

from gitllm_plugin.host import import_hook
from tests.small_run import write_small_run

SCRIPT = Path(__file__).parent / "scripts" / "of_lavis" / "train.py"
MODEL_TYPE = "tiny_opt"


@pytest.fixture
def config(tmp_path):
    """Path of a configuration with its data beside it."""
    return write_small_run(tmp_path, {"model_type": MODEL_TYPE}, max_epoch=1)


@pytest.fixture
def gitllm(run_python):
    """Runs the command line; `ranks` starts that many processes by torchrun."""

    def run(*args, ranks=0):
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks else []
        return run_python(args=["-W", "ignore", *launcher, "-m", "gitllm_plugin", *map(str, args)], timeout=300)

    return run


def trained_in(folder):
    """The run folders below a configuration's output folder that hold a log."""
    return sorted(path.parent for path in (folder / "output").rglob("log.txt"))


def test_train_then_evaluate(gitllm, config):
    finished = gitllm("train", "--cfg-path", config)
    assert finished.returncode == 0, finished.stderr
    (folder,) = {path.resolve() for path in trained_in(config.parent)}
    assert list(folder.rglob("*.pth"))

    finished = gitllm("evaluate", config.parent / "output", "--options", "run.max_len=3")
    assert finished.returncode == 0, finished.stderr
    assert "exact_match" in finished.stdout + finished.stderr


def test_an_unmodified_script_of_lavis_in_two_processes(gitllm, config):
    finished = gitllm("run", SCRIPT, "--cfg-path", config, ranks=2)
    assert finished.returncode == 0, finished.stderr
    assert "distributed init (rank 1, world 2, gloo)" in finished.stdout
    assert len({path.resolve() for path in trained_in(config.parent)}) == 1


def test_a_plain_script_with_the_import_hook(run_python, config, tmp_path):
    start = tmp_path / "start"
    start.mkdir()
    import_hook.install(start)
    (start / "sitecustomize.py").write_text(f"import site; site.addsitedir({str(start)!r})")
    shutil.copy(SCRIPT, tmp_path)
    path = os.pathsep.join([str(start), str(SCRIPT.parents[4])])
    finished = run_python(
        args=["-W", "ignore", "train.py", "--cfg-path", str(config)],
        cwd=tmp_path,
        env={"PYTHONPATH": path},
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr
    assert len({path.resolve() for path in trained_in(tmp_path)}) == 1


def test_lavis_as_a_library(run_python, config):
    code = f"""
import warnings
warnings.simplefilter("ignore")
import gitllm_plugin
gitllm_plugin.register()
gitllm_plugin.register()
from lavis.datasets.builders import dataset_zoo, load_dataset
from lavis.models import load_model_and_preprocess, model_zoo
from omegaconf import OmegaConf

assert {MODEL_TYPE!r} in dict(model_zoo)["git_llm"]
assert "m3it" in dataset_zoo.get_names()
model, vis, txt = load_model_and_preprocess("git_llm", {MODEL_TYPE!r}, is_eval=True)
data = load_dataset("m3it", {str(config)!r})
item = data["val"][0]
from PIL import Image
image = vis["eval"](Image.new("RGB", (40, 30)))[None]
print(model.generate({{"image": image, "text_input": [txt["eval"]("what is it?")]}}, max_length=3))
"""
    finished = run_python(code)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("model.model_type=tiny_otp", f"Did you mean '{MODEL_TYPE}'?"),
        ("run.task=m3itt", "Did you mean 'm3it'? Tasks there are:"),
        ("datasets.m3it.vis_processor.train.name=git_llm_image_trian", "Did you mean 'git_llm_image_train'?"),
        ("run.max_epochs=3", "run.max_epochs: unknown key 'max_epochs' (did you mean 'max_epoch'?)"),
        ("run.lr_sched=cosin", "cosine, linear, linear_warmup_cosine_lr"),
        ("run.prompt=x", "run.prompt: unknown key 'prompt'"),  # LAVIS's own tasks read it, m3it does not
    ],
)
def test_wrong_names_of_our_own_classes(host, config, capsys, option, expected):
    from gitllm_plugin.cli.main import main

    assert main(["train", "--cfg-path", str(config), "--options", option]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and expected in error


def test_missing_data_file(host, config, capsys):
    from gitllm_plugin.cli.main import main

    (config.parent / "train.jsonl").unlink()
    assert main(["train", "--cfg-path", str(config)]) == 2
    assert "train.jsonl" in capsys.readouterr().err
