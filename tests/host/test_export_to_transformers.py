"""A run that is trained, exported as transformers' own class, and used as its card says, without this package."""

import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

import gitllm_plugin.common.torchvision_repair as repair
from gitllm_plugin.cli.main import main
from gitllm_plugin.host.open_model import open_pipeline
from gitllm_plugin.inference.pipeline import Pipeline
from gitllm_plugin.modeling.folder import stored_dtypes
from gitllm_plugin.modeling.tiny import tiny_image_encoder, tiny_language_model, tiny_tokenizer
from gitllm_plugin.processors.image_transform import NORMALIZATIONS, ImageTransform
from tests.small_run import ENVIRONMENT, TINY_LORA, write_small_run

# The card's lines in a process that has no gitllm_plugin; torchvision may need its repair beside a CPU-only torch.
ALONE = f"""
import runpy, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "gitllm_plugin":
            raise ModuleNotFoundError("blocked: " + name)

try:
    import torchvision
except RuntimeError:
    import types
    errors = types.ModuleType("gitllm_plugin.errors")
    errors.HostError = ImportError
    sys.modules["gitllm_plugin.errors"] = errors
    kept = runpy.run_path({repair.__file__!r})
    kept["repair_torchvision"]()
    del sys.modules["gitllm_plugin.errors"]
sys.meta_path.insert(0, Blocked())
try:
    import gitllm_plugin
    raise SystemExit("gitllm_plugin can be imported")
except ModuleNotFoundError:
    pass
"""

PICTURES = {"red": "circle?", "teal": "what color is the shape?", "gray": "is there a red circle?"}


def train(folder, **model):
    config = write_small_run(folder, {**TINY_LORA, "projection": "linear", "dtype": "float32", **model})
    assert main(["train", "--cfg-path", str(config)]) == 0
    return (folder / "output" / "latest").resolve()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(tmp_path_factory.mktemp("run"))


def lines_of_card(folder):
    return re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL).group(1)


def answers_alone(folder, tmp_path):
    lines, answers = lines_of_card(folder), {}
    script = ALONE
    for color, question in PICTURES.items():
        Image.new("RGB", (32, 32), color).save(tmp_path / f"{color}.png")
        asked = lines.replace('"picture.jpg"', repr(str(tmp_path / f"{color}.png")))
        script += asked.replace("'what is in the picture?'", repr(question)).replace(
            f"name, picture, question = {folder.name!r}", f"name, picture, question = {str(folder)!r}"
        )
        script += "print('<next>')\n"
    finished = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=ENVIRONMENT, cwd=tmp_path
    )
    assert finished.returncode == 0, finished.stderr
    for color, answer in zip(PICTURES, finished.stdout.split("<next>\n"), strict=False):
        answers[color] = answer.strip()
    return answers


def check_answers(run, folder, tmp_path):
    pipeline = open_pipeline(run)
    found = answers_alone(folder, tmp_path)
    for color, question in PICTURES.items():
        assert found[color] == pipeline.answer(tmp_path / f"{color}.png", question)
    assert any(found.values())


def test_the_cards_lines_answer_as_the_run_does(run, tmp_path):
    folder = tmp_path / "stock"
    assert main(["export", str(run), str(folder), "--to", "transformers"]) == 0
    assert {file.suffix for file in folder.iterdir()} <= {".json", ".md", ".safetensors", ".png"}
    check_answers(run, folder, tmp_path)


@pytest.mark.parametrize(
    "changes", [{"model_type": "tiny_llama", "chat_template": True}, {"language_model": "tiny:qwen3"}]
)
def test_conversations_and_other_families_too(changes, tmp_path):
    run = train(tmp_path, **changes)
    assert main(["export", str(run), str(tmp_path / "stock"), "--to", "transformers"]) == 0
    check_answers(run, tmp_path / "stock", tmp_path)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({"projection": "linear_norm"}, "projection is linear_norm"),
        ({"language_model": "tiny:opt"}, "learned and belong to text alone"),
        ({"max_images": 2}, "reads up to 2 images"),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(model, reason, tmp_path, capsys):
    run = train(tmp_path, **model)
    capsys.readouterr()
    assert main(["export", str(run), str(tmp_path / "stock"), "--to", "transformers"]) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "stock").exists()
    # For this package it is a model like any other.
    assert main(["export", str(run), str(tmp_path / "folder")]) == 0


@pytest.mark.parametrize("form", [[], ["--merge"], ["--without-base"], ["--to", "transformers"]])
def test_every_export_has_a_card(run, form, tmp_path):
    assert main(["export", str(run), str(tmp_path / "my-model"), *form]) == 0
    card = (tmp_path / "my-model" / "README.md").read_text()
    for part in ("# my-model", "pipeline_tag: image-text-to-text", "tiny:llama", "test.jsonl", "rank 4"):
        assert part in card
    assert str(run) not in card and str(run.parents[1]) not in card
    scores = json.loads((run / "test_metrics.json").read_text())
    assert f"loss {scores['loss']:.4g}" in card and f"| test | best | {scores['num_examples']} |" in card
    if "transformers" not in form:
        assert "Pipeline.from_pretrained('my-model')" in card and "gitllm ask picture.jpg" in card


def test_a_folder_of_a_linear_projection_gives_the_same_answers(run, tmp_path):
    assert main(["export", str(run), str(tmp_path / "folder")]) == 0
    one, other = open_pipeline(run), Pipeline.from_pretrained(tmp_path / "folder", dtype="float32")
    for color, question in PICTURES.items():
        picture = Image.new("RGB", (40, 30), color)
        assert one.answer(picture, question) == other.answer(picture, question)
    assert json.loads((tmp_path / "folder" / "git_llm.json").read_text())["projection"] == "linear"


@pytest.fixture(scope="module")
def run_of_folders(run, tmp_path_factory):
    """The run, as if its parts, its picture processor and its data were named by folders of this machine."""
    home = tmp_path_factory.mktemp("home")
    copied = shutil.copytree(run, home / "output" / "20300101000000")
    tiny_language_model("llama").save_pretrained(home / "parts" / "llama")
    tiny_tokenizer().save_pretrained(home / "parts" / "llama")
    tiny_image_encoder("clip", final_norm=True).tower.save_pretrained(home / "parts" / "clip")
    preprocessor = ImageTransform(32, *NORMALIZATIONS["clip"]).as_preprocessor_config()
    (home / "parts" / "clip" / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    (home / "parts" / "clip" / "README.md").write_text("---\nlicense: mit\n---\n")
    config = OmegaConf.load(copied / "config.yaml")
    config.model.language_model, config.model.image_encoder = (str(home / "parts" / n) for n in ("llama", "clip"))
    config.datasets.m3it.vis_processor.eval.encoder = str(home / "parts" / "clip")
    config.datasets.m3it.build_info.annotations.train.storage = str(home / "data" / "secret-place" / "train.jsonl")
    OmegaConf.save(config, copied / "config.yaml")
    Image.new("RGB", (8, 8)).save(copied / "train_loss.png")
    return home, copied


@pytest.mark.parametrize("form", [[], ["--merge"], ["--to", "transformers"], ["--dtype", "bfloat16"]])
def test_nothing_that_is_exported_names_a_folder_of_this_machine(run_of_folders, form, tmp_path):
    home, copied = run_of_folders
    assert main(["export", str(copied), str(tmp_path / "my-model"), *form]) == 0
    for file in (path for path in (tmp_path / "my-model").rglob("*") if path.is_file()):
        content = file.read_bytes()
        assert str(home).encode() not in content and str(tmp_path).encode() not in content, file
    card = (tmp_path / "my-model" / "README.md").read_text()
    assert "](train_loss.png)" in card and (tmp_path / "my-model" / "train_loss.png").is_file()
    assert "`clip`: mit" in card and "| language model | `llama` |" in card and "secret-place" not in card
    if not form:
        settings = json.loads((tmp_path / "my-model" / "git_llm.json").read_text())["settings"]
        assert settings["run"] == "20300101000000/checkpoint_best.pth"
        assert settings["vis_processor"]["encoder"] == "clip"
    if "bfloat16" in form:
        assert set(stored_dtypes(tmp_path / "my-model").values()) == {torch.bfloat16}


def test_the_lines_of_a_folders_card_answer(run, tmp_path, monkeypatch, capsys):
    assert main(["export", str(run), str(tmp_path / "my-model")]) == 0
    Image.new("RGB", (32, 32), "teal").save(tmp_path / "picture.jpg")
    monkeypatch.chdir(tmp_path)
    card = (tmp_path / "my-model" / "README.md").read_text()
    capsys.readouterr()
    for lines in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        exec(compile(lines, "card", "exec"), {})
    command = re.search(r"```bash\n(.*?)\n```", card).group(1)
    assert main(shlex.split(command)[1:]) == 0
    answers = {line.strip() for line in capsys.readouterr().out.splitlines()}
    assert answers == {Pipeline.from_pretrained("my-model").answer("picture.jpg", "what is in the picture?")}


WITHOUT_LAVIS = """
import sys
from gitllm_plugin.cli.main import main
sys.argv = ["gitllm"]
status = [main(["export", {run!r}, {one!r}]), main(["export", {run!r}, {two!r}, "--to", "transformers"])]
status.append(main(["ask", {picture!r}, "circle?", "--model", {run!r}]))
print("lavis" in sys.modules, status)
"""


def test_a_run_is_exported_and_asked_without_lavis(run, run_python, tmp_path, capsys):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    places = {name: str(tmp_path / name) for name in ("one", "two")}
    code = WITHOUT_LAVIS.format(run=str(run), picture=str(tmp_path / "red.png"), **places)
    finished = run_python(code, hidden=["lavis", "iopath", "einops"])
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines()[-1] == "False [0, 0, 0]"
    assert open_pipeline(run).answer(tmp_path / "red.png", "circle?") in finished.stdout.splitlines()
    assert main(["export", str(run), str(tmp_path / "with")]) == 0
    for file in ("projection.safetensors", "adapter/adapter_model.safetensors", "git_llm.json", "config.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "with" / file).read_bytes(), file
    assert (tmp_path / "two" / "model.safetensors").is_file()
