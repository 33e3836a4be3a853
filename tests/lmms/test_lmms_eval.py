"""lmms-eval's own command line on local tasks, with a folder's model: its answers and choices are the model's own."""

import base64
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed: pip install 'gitllm-plugin[lmms-eval]'")

from gitllm_plugin.errors import DataError
from gitllm_plugin.m3it.prompts import build_prompt
from gitllm_plugin.modeling import TextEncoder
from gitllm_plugin.modeling.build import BuildSettings, build_git_llm
from gitllm_plugin.modeling.folder import save_folder
from gitllm_plugin.processors.image_transform import NORMALIZATIONS, ImageTransform
from tests.m3it_files import COLORS, write_m3it_jsonl

ROOT = Path(__file__).parents[2]
TRANSFORM = ImageTransform(32, *NORMALIZATIONS["clip"])
CHOICES = sorted(COLORS)
INSTRUCTION = "Answer in one word."

VISUALS = """
import base64, io
from PIL import Image

def pictures(doc):
    texts = doc["image_base64_str"]
    return [Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB") for text in texts]
"""
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
doc_to_visual: !function visuals.pictures
doc_to_text: "<image> {{{{inputs}}}}"
"""
GENERATE = """
output_type: generate_until
doc_to_target: "{{outputs}}"
generation_kwargs: {max_new_tokens: 5, temperature: 0, do_sample: false, until: ["\\n\\n"]}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true}]
"""
CHOOSE = f"""
output_type: multiple_choice
doc_to_choice: {json.dumps(CHOICES)}
doc_to_target: "{{{{outputs}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    """Two tasks, seven rows of two pictures each, and the folder of a model that reads two."""
    folder = tmp_path_factory.mktemp("lmms")
    rows = write_m3it_jsonl(folder / "rows.jsonl", rows=7, images_per_row=2, texts_per_image=2)
    (folder / "tasks").mkdir()
    (folder / "tasks" / "visuals.py").write_text(VISUALS)
    for name, rest in (("toy_generate", GENERATE), ("toy_choose", CHOOSE)):
        task = TASK.format(name=name, rows=folder / "rows.jsonl") + rest
        (folder / "tasks" / f"{name}.yaml").write_text(task)
    model, tokenizer = build_git_llm("tiny:llama", "tiny:clip", BuildSettings(trainable="proj", max_images=2))
    settings = {"text_processor": {"name": "git_llm_instruction", "template": "plain", "instruction": INSTRUCTION}}
    save_folder(
        model,
        folder / "model",
        tokenizer=tokenizer,
        image_processor=TRANSFORM.as_preprocessor_config(),
        settings=settings,
    )
    return folder, rows, model.eval(), TextEncoder(tokenizer)


@pytest.fixture(scope="module")
def samples(setup):
    """What lmms-eval wrote, by task: its results and its samples in the order of the rows."""
    folder = setup[0]
    command = [sys.executable, "-m", "gitllm_plugin.lmms", "--model", "git_llm", "--model_args"]
    command += [f"pretrained={folder / 'model'},dtype=float32,device=cpu", "--tasks", "toy_generate,toy_choose"]
    command += ["--include_path", str(folder / "tasks"), "--batch_size", "3", "--log_samples"]
    command += ["--output_path", str(folder / "output")]
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "cache"),
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (results,) = (folder / "output").rglob("*results.json")
    found = {"results": json.loads(results.read_text())["results"]}
    for name in ("toy_generate", "toy_choose"):
        (path,) = (folder / "output").rglob(f"*samples_{name}.jsonl")
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        found[name] = sorted(lines, key=lambda line: line["doc_id"])
    return found


def inputs(setup):
    """Each row's prompt and pixels, made here."""
    _, rows, model, text_encoder = setup
    for row in rows:
        files = [io.BytesIO(base64.b64decode(text)) for text in row["image_base64_str"]]
        pixels = [TRANSFORM(Image.open(file)) for file in files]
        prompt = build_prompt("plain", INSTRUCTION, row["inputs"])
        yield prompt, text_encoder.prompts([prompt]).input_ids, torch.stack(pixels)[None], model


@pytest.mark.timeout(300)
def test_answers_are_the_models_own(setup, samples):
    expected = []
    for _, ids, pixels, model in inputs(setup):
        tokens = model.generate(ids, None, pixels, max_new_tokens=5, do_sample=False, **setup[3].special_tokens)
        expected.append(setup[3].decode(tokens)[0])
    answers = ["".join(sample["filtered_resps"]) for sample in samples["toy_generate"]]
    assert answers == expected and len(answers) == 7
    right = [answer.lower() == row["outputs"] for answer, row in zip(answers, setup[1], strict=True)]
    (score,) = [value for key, value in samples["results"]["toy_generate"].items() if key.startswith("exact_match,")]
    assert score == pytest.approx(sum(right) / 7)


def test_choices_are_the_most_likely_ones(setup, samples):
    right = []
    for (_, ids, pixels, model), sample, row in zip(inputs(setup), samples["toy_choose"], setup[1], strict=True):
        candidates = [[setup[3].tokenizer(f" {choice}", add_special_tokens=False)["input_ids"] for choice in CHOICES]]
        scores = model.score_candidates(ids, None, pixels, candidates=candidates)
        theirs = [-float(response[0]) for response in sample["filtered_resps"]]
        assert theirs == pytest.approx(scores.log_likelihood[0].tolist(), abs=1e-3)
        right.append(CHOICES[scores.best()[0]] == row["outputs"])
    (score,) = [value for key, value in samples["results"]["toy_choose"].items() if key.startswith("acc,")]
    assert score == pytest.approx(sum(right) / 7)


def test_what_it_cannot_read_is_named(setup):
    from gitllm_plugin.lmms.model import GitLLMForLmmsEval

    model = GitLLMForLmmsEval(str(setup[0] / "model"), dtype="float32", device="cpu")
    for visuals, message in (([b"video"], "reads pictures, not videos"), (3 * [None], "reads pictures, not videos")):
        model.task_dict = {"toy": {"test": [visuals]}}
        request = SimpleNamespace(args=("what?", {}, lambda document: document, 0, "toy", "test"))
        with pytest.raises(DataError, match=message):
            model.generate_until([request])
