"""A configuration that names a folder asks its model as the folder says, and says where it does not."""

import argparse
import json
import logging
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from PIL import Image

import gitllm_plugin

gitllm_plugin.register()

from lavis.common.config import Config  # noqa: E402
from lavis.common.registry import registry  # noqa: E402
from lavis.models import load_model, load_model_and_preprocess  # noqa: E402

from gitllm_plugin.errors import ConfigError  # noqa: E402
from gitllm_plugin.inference.pipeline import Pipeline  # noqa: E402
from gitllm_plugin.m3it.prompts import TEMPLATES, build_prompt, find_template  # noqa: E402
from gitllm_plugin.modeling.folder import DESCRIPTION  # noqa: E402
from gitllm_plugin.processors.git_llm_image import GitLLMImageEvalProcessor  # noqa: E402
from tests.tiny_folder import write_tiny_folder  # noqa: E402

SHIPPED = sorted((Path(__file__).resolve().parents[2] / "projects/git_llm/eval").glob("*.yaml"))
PICTURE = Image.radial_gradient("L").convert("RGB").resize((70, 41))
WAYS = {
    # What a folder was evaluated with, as `gitllm export` keeps it.
    "bird": ({"image_size": 48, "normalization": "imagenet"}, {"template": "plain"}, False),
    "boat": (
        {"image_size": 64, "mean": [0.4, 0.3, 0.2], "std": [0.3, 0.2, 0.1], "resize": "shortest_edge"},
        {"template": "question", "instruction": "Which boat?"},
        False,
    ),
    "bell": (
        {"image_size": 40, "normalization": "siglip", "resampling": "bilinear"},
        {"instruction": "Name the bell's metal."},
        True,
    ),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with random weights, of which each test makes its own."""
    return {
        name: write_tiny_folder(tmp_path_factory.mktemp(name) / "model", f"tiny:{name}") for name in ("llama", "mpt")
    }


@pytest.fixture
def folder(written, request):
    """The folder of a way, by its name."""
    return describe(written["llama"], getattr(request, "param", "bird"))


def describe(folder, way, preprocessor=True):
    """Let a folder say that it was evaluated in one of the ways."""
    vis, text, chat = WAYS[way]
    node = {"name": "git_llm_image_eval", **vis}
    description = json.loads((folder / DESCRIPTION).read_text())
    description["settings"] = {
        "vis_processor": node,
        "text_processor": {"name": "git_llm_instruction", **text},
        "chat_template": chat,
    }
    path = folder / "image_encoder" / "preprocessor_config.json"
    path.unlink(missing_ok=True)
    if preprocessor:
        path.write_text(json.dumps(GitLLMImageEvalProcessor.from_config(node).transform.as_preprocessor_config()))
    description["checksums"] = {
        name: value for name, value in description.get("checksums", {}).items() if "preprocessor" not in name
    }
    (folder / DESCRIPTION).write_text(json.dumps(description))
    return folder


def config_of(path, folder, *options):
    return Config(argparse.Namespace(cfg_path=str(path), options=[f"model.folder={folder}", *options])).config


def write(tmp_path, datasets, **model):
    path = tmp_path / "config.yaml"
    model = {"arch": "git_llm", "model_type": "opt_350m", **model}
    path.write_text(yaml.safe_dump({"model": model, "datasets": datasets, "run": {"task": "m3it"}}))
    return path


def processor(config, data, kind, phase="eval"):
    node = config.datasets[data][kind][phase]
    return registry.get_processor_class(node.name).from_config(node)


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize("preprocessor", [True, False], ids=["with its file", "by its settings"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", ["llama", "mpt"])
def test_pixels_and_prompts_are_those_of_the_folder(written, family, way, preprocessor, tmp_path, caplog):
    folder = describe(written[family], way, preprocessor)
    config = config_of(write(tmp_path, {"m3it": {}}), folder)
    describe(folder, way)  # who asks outside of LAVIS has the file
    pipeline = Pipeline.from_pretrained(folder, device="cpu")
    assert torch.equal(processor(config, "m3it", "vis_processor")(PICTURE), pipeline.transform(PICTURE))
    assert torch.equal(processor(config, "m3it", "vis_processor", "train")(PICTURE), pipeline.transform(PICTURE))
    for question in ("how many?", ""):
        assert processor(config, "m3it", "text_processor")(question) == pipeline.prompt(question)
    model = registry.get_model_class("git_llm").from_config(config.model)
    assert model.text_encoder.chat_template == pipeline.text_encoder.chat_template
    assert (model.text_encoder.chat_template is not None) is WAYS[way][2]
    assert not warnings_of(caplog)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
@pytest.mark.parametrize("folder", ["boat", "bell"], indirect=True)
def test_shipped_evaluations_leave_them_to_the_folder(path, folder, request, caplog):
    if "model.folder" not in path.read_text():
        pytest.skip("its own demonstration's")
    config = config_of(path, folder)
    (data,) = config.datasets
    transform = Pipeline.from_pretrained(folder, device="cpu").transform
    assert torch.equal(processor(config, data, "vis_processor")(PICTURE), transform(PICTURE))
    text = (config.datasets[data].get("text_processor") or {}).get("eval", {})
    own = json.loads((folder / DESCRIPTION).read_text())["settings"]
    if text.get("name") == "git_llm_instruction":
        assert text.get("template") == own["text_processor"].get("template")
    asked = path.stem in ("nlvr2", "snli_ve")  # of which the instruction is the task itself
    assert len(warnings_of(caplog)) == asked
    if instruction := config.model.get("instruction"):
        model = registry.get_model_class("git_llm").from_config(config.model)
        assert model.prompt == build_prompt(own["text_processor"].get("template", "article"), instruction, "")


@pytest.mark.parametrize(
    ("said", "field", "ours", "folders"),
    [
        ({"vis_processor": {"eval": {"name": "git_llm_image_eval", "image_size": 56}}}, "image_size", "56", "48"),
        ({"vis_processor": {"eval": {"normalization": "clip"}}}, "mean and std", "0.4815", "0.485"),
        ({"vis_processor": {"eval": {"resize": "shortest_edge"}}}, "resize", "shortest_edge", "squash"),
        ({"vis_processor": {"eval": {"resampling": "lanczos"}}}, "resampling", "lanczos", "bicubic"),
        ({"text_processor": {"eval": {"template": "article"}}}, "template", "article", "plain"),
        ({"vis_processor": {"eval": {"name": "clip_image_eval"}}}, "name", "clip_image_eval", "git_llm_image_eval"),
        ({"text_processor": {"eval": {"name": "blip_question"}}}, "name", "blip_question", "git_llm_instruction"),
    ],
)
def test_what_the_configuration_names_is_used_and_told(folder, tmp_path, caplog, said, field, ours, folders):
    config = config_of(write(tmp_path, {"m3it": said}), folder)
    (kind,) = said
    for key, value in said[kind]["eval"].items():
        assert config.datasets.m3it[kind].eval[key] == value
    (message,) = warnings_of(caplog)
    assert f"datasets.m3it.{kind}.eval.{field} is " in message and str(folder) in message
    told = message.partition(f"{field} is ")[2]
    assert ours in told.partition(", and ")[0] and folders in told.partition(", and ")[2]
    assert "\n" not in message


def test_options_are_the_authors_word_too(folder, caplog):
    path = next(path for path in SHIPPED if path.stem == "vqav2")
    config = config_of(path, folder, "datasets.coco_vqa.vis_processor.eval.image_size=80", "model.chat_template=true")
    assert processor(config, "coco_vqa", "vis_processor")(PICTURE).shape == (3, 80, 80)
    (message,) = warnings_of(caplog)
    assert "image_size is 80, and 48" in message and "chat_template is true, and false" in message
    assert registry.get_model_class("git_llm").from_config(config.model).text_encoder.chat_template is not None


def test_the_same_value_is_no_change(folder, tmp_path, caplog):
    same = {
        "vis_processor": {"eval": {"image_size": 48, "normalization": "imagenet"}},
        "text_processor": {"eval": {"template": "plain"}},
    }
    config_of(write(tmp_path, {"m3it": same}, chat_template=False, prompt="Name it. Answer:"), folder)
    assert not warnings_of(caplog)


@pytest.mark.parametrize(
    ("data", "pictures", "prompts"),
    [
        ("ok_vqa", "git_llm_image_eval", "git_llm_instruction"),
        ("snli_ve", "git_llm_image_eval", "git_llm_instruction"),
        ("msvd_qa", "git_llm_video_eval", "git_llm_instruction"),
        ("coco_caption", "git_llm_image_eval", None),  # its texts are answers
        ("flickr30k", "git_llm_image_eval", None),
        ("imagenet", "git_llm_image_eval", None),
    ],
)
def test_data_sets_of_the_host_that_name_none_get_the_folders(folder, tmp_path, caplog, data, pictures, prompts):
    config = config_of(write(tmp_path, {data: {}}), folder)
    assert config.datasets[data].vis_processor.eval.name == pictures
    assert processor(config, data, "vis_processor").transform.image_size == 48
    text = (config.datasets[data].get("text_processor") or {}).get("eval") or {}
    assert text.get("name") == prompts and text.get("template") == (prompts and "plain")
    assert not warnings_of(caplog)


@pytest.mark.parametrize(
    ("prompt", "template"),
    [
        ("##Instruction: Say it. ##Question:  ##Answer:", "article"),
        ("what is it? Answer:", "plain"),
        ("a photo of", None),
        ("", None),
    ],
)
def test_a_prompt_of_another_template_is_told(written, tmp_path, caplog, prompt, template):
    assert find_template(prompt) == template
    for way in WAYS:
        caplog.clear()
        folder = describe(written["llama"], way)
        config_of(write(tmp_path, {"m3it": {}}, prompt=prompt), folder)
        own = WAYS[way][1].get("template", "article")
        assert len(warnings_of(caplog)) == (template is not None and template != own)


@pytest.mark.parametrize("template", TEMPLATES)
def test_prompts_of_templates_are_known_by_their_marks(template):
    found = find_template(build_prompt(template, "Look.", "why?"))
    assert found == (None if template == "question" else template)


@pytest.mark.parametrize("folder", WAYS, indirect=True)
def test_the_zoo_takes_a_folder_for_a_type(folder):
    model, image, text = load_model_and_preprocess("git_llm", str(folder), is_eval=True)
    pipeline = Pipeline.from_pretrained(folder, device="cpu")
    for phase in ("train", "eval"):
        assert torch.equal(image[phase](PICTURE), pipeline.transform(PICTURE))
        assert text[phase]("how many?") == pipeline.prompt("how many?")
    weights = dict(pipeline.model.state_dict())
    assert all(torch.equal(value, weights[name]) for name, value in model.model.state_dict().items())
    assert type(load_model("git_llm", str(folder))) is type(model)


def test_other_models_and_no_folder_are_left_alone(tmp_path, caplog):
    path = write(tmp_path, {"m3it": {}})
    config = Config(argparse.Namespace(cfg_path=str(path), options=[])).config
    assert OmegaConf.to_container(config.datasets.m3it.vis_processor.eval) == {"name": "git_llm_image_eval"}
    config = config_of(path, tmp_path / "nowhere")
    assert OmegaConf.to_container(config.datasets.m3it.vis_processor.eval) == {"name": "git_llm_image_eval"}
    assert not warnings_of(caplog)


TENS = "\n".join(f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 10 if n else ['1'] * 10)}]" for n in range(7))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"{TENS}\nmodel: {{folder: m, arch: git_llm, more: *x6}}", "its aliases make more than 100000 values"),
        ("model: &m {arch: git_llm, folder: m, again: *m}", "refers to itself by an alias"),
        (f"model: {{arch: git_llm, folder: {'[' * 60}{']' * 60}}}", "is nested more than 40 deep"),
        ("- model\n- run", "must hold the sections"),
    ],
)
def test_a_file_that_is_no_configuration_is_told_before_lavis_reads_it(text, told, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=told):
        Config(argparse.Namespace(cfg_path=str(path), options=[]))
