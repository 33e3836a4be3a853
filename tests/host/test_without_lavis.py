"""What is done with a trained model is done in a process that can find neither LAVIS nor what LAVIS alone imports."""

import json

import pytest
from PIL import Image

from gitllm_plugin.cli.main import main
from gitllm_plugin.host.doctor import OF_LAVIS_ALONE
from tests.small_run import TINY_LORA, write_small_run

HIDDEN = ["lavis", *(name for name in OF_LAVIS_ALONE if name != "yaml")]  # which huggingface_hub imports too

PROCESS = """
import io, json, sys
sys.stdin = io.TextIOWrapper(io.BytesIO(b"what color?\\n"))
import gitllm_plugin.serving.server, gitllm_plugin.web.server
from gitllm_plugin.cli.main import main
served = []
gitllm_plugin.web.server.serve = lambda engine, *rest: served.append(engine)
gitllm_plugin.serving.server.serve = lambda engine, *rest: served.append(engine)
model = sys.argv[1]
commands = {
    "ask": ["ask", "teal.png", "what color?", "--model", model],
    "chat": ["chat", "teal.png", "--model", model],
    "caption": ["caption", "pictures", "--model", model, "--out", "captions.csv"],
    "predict": ["predict", "--input", "rows.jsonl", "--output", "answers.jsonl", "--model", model],
    "words": ["words", "teal.png", "--model", model],
    "conform": ["conform", "torch", model],
    "demo": ["demo", "--model", model, "--port", "0"],
    "serve": ["serve", "--model", model, "--port", "0"],
    "export": ["export", model, "exported"],
    "merge": ["merge", model, "merged"],
    "ask of what was made": ["ask", "teal.png", "what color?", "--model", "merged"],
    "plot": ["plot", model],
    "from-csv": ["m3it", "from-csv", "pictures", "rows"],
}
given = {name: main(command) for name, command in commands.items() if name in sys.argv[2:]}
print("\\n" + json.dumps({"status": given, "served": len(served), "lavis": "lavis" in sys.modules}))
"""
pytestmark = pytest.mark.timeout(1000)  # a dozen commands in a process, however busy the machine
OF_RUNS = ("export", "plot")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = write_small_run(folder, TINY_LORA, max_epoch=1)
    assert main(["train", str(config)]) == 0
    assert main(["export", str(folder / "output"), str(folder / "export")]) == 0
    return {"run": folder / "output" / "latest", "export": folder / "export"}


@pytest.mark.parametrize("form", ["run", "export"])
def test_a_model_is_used(form, models, run_python, tmp_path):
    pytest.importorskip("gradio")
    pytest.importorskip("fastapi")
    (tmp_path / "pictures" / "walls").mkdir(parents=True)
    for place in ("teal.png", "pictures/walls/teal.png"):
        Image.new("RGB", (40, 30), "teal").save(tmp_path / place)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": "teal.png", "question": "what color?"}) + "\n")
    names = [
        "ask",
        "chat",
        "caption",
        "predict",
        "words",
        "conform",
        "demo",
        "serve",
        "merge",
        "ask of what was made",
        "from-csv",
    ]
    names += OF_RUNS if form == "run" else ()
    code = f"import sys; sys.argv = ['', {str(models[form])!r}, *{names}]\n{PROCESS}"
    done = run_python(code, hidden=HIDDEN, cwd=tmp_path, timeout=900)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told == {
        "status": dict.fromkeys(sorted(names, key=list(told["status"]).index), 0),
        "served": 2,
        "lavis": False,
    }


@pytest.mark.parametrize(
    "command", [["train", "config.yaml"], ["evaluate", "config.yaml"], ["train", "--data", "a.csv"]]
)
def test_training_and_evaluating_say_that_lavis_is_needed(command, run_python, tmp_path):
    write_small_run(tmp_path)
    (tmp_path / "a.csv").write_text("image,answer\nteal.png,teal\n")
    Image.new("RGB", (40, 30), "teal").save(tmp_path / "teal.png")
    models = ["--language-model", "tiny:llama", "--image-encoder", "tiny:clip"] if "--data" in command else []
    code = f"import sys\nfrom gitllm_plugin.cli.main import main\nsys.exit(main({command + models}))"
    done = run_python(code, hidden=HIDDEN, cwd=tmp_path, timeout=900)
    assert done.returncode == 2 and "pip install --no-deps salesforce-lavis==1.0.2" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
