"""Runs on pictures in tiles: trained, gone on with, evaluated, exported and asked; and who refuses them by name."""

import itertools
import json

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

import gitllm_plugin
from gitllm_plugin import Pipeline
from gitllm_plugin.cli.main import main
from gitllm_plugin.conform import Reference
from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.hf.processor import GitLLMProcessor
from gitllm_plugin.host import launch
from gitllm_plugin.host.config_check import check_config
from gitllm_plugin.inference.asking import Decoding, Question
from gitllm_plugin.inference.attention import answer_attention
from gitllm_plugin.modeling.places import stack_images
from gitllm_plugin.vllm.checks import check_folder as check_for_vllm
from tests.m3it_files import COLORS, encode_png
from tests.small_run import TINY_LORA, write_small_run
from tests.tiny_folder import write_tiny_folder

gitllm_plugin.register()

from gitllm_plugin.datasets.features import describe_processor  # noqa: E402
from gitllm_plugin.models.git_llm import GitLLMForLavis  # noqa: E402
from gitllm_plugin.processors.git_llm_image import GitLLMImageEvalProcessor  # noqa: E402

SHAPES = [(32, 32), (64, 32), (32, 64), (70, 66), (130, 30), (20, 20)]
TILES = {"image_size": 32, "max_tiles": 4}
DECODING = Decoding(max_new_tokens=4)


def drawn(number: int) -> tuple[str, Image.Image]:
    """A picture of one of several shapes, half of it of a colour."""
    color, (width, height) = sorted(COLORS)[number % 4], SHAPES[number % len(SHAPES)]
    picture = Image.new("RGB", (width, height), (number * 9 % 256, 128, 128))
    picture.paste(COLORS[color], (0, 0, width // 2, height))
    return color, picture


def write_run(folder, model=None, tiles=TILES, **changes):
    path = write_small_run(folder, {**TINY_LORA, "tile_marks": True, **(model or {})}, **changes)
    for split in ("train", "val", "test"):
        file = folder / f"{split}.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for number, row in enumerate(rows):
            color, picture = drawn(number)
            row |= {"image_base64_str": encode_png(picture), "outputs": color}
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = OmegaConf.load(path)
    config.datasets.m3it.vis_processor = {"train": {**tiles, "horizontal_flip": True}, "eval": tiles}
    OmegaConf.save(config, path)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    runner = launch.train(write_run(folder))
    assert main(["export", str(runner.output_dir), str(folder / "model")]) == 0
    return runner, folder / "model"


@pytest.mark.parametrize(
    "attention", ["git", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("causal", "prompt"))]
)
def test_it_is_trained_and_gone_on_with(attention, tmp_path):
    node, auto = {"attention": attention, "model_type": "tiny_opt"}, ["run.resume_ckpt_path=auto"]
    config = write_run(tmp_path, node, lr_sched="constant")
    launch.train(config, [*auto, "run.max_epoch=1"])
    resumed = launch.train(config, auto)
    whole = launch.train(config, [f"run.output_dir={tmp_path / 'whole'}"])
    weights = whole.model.trainable_state_dict()
    assert weights["model.tile_embedding"].abs().sum() > 0
    for name, value in weights.items():
        assert torch.equal(value, resumed.model.trainable_state_dict()[name]), name


def test_batches_of_equal_tokens_count_every_tile(tmp_path):
    runner = launch.train(write_run(tmp_path, max_epoch=1), ["run.tokens_per_batch=400"])
    assert runner.model.model.tile_marks
    model = GitLLMForLavis.from_pretrained("tiny_llama")
    processor = GitLLMImageEvalProcessor.from_config(TILES)
    images = [processor.transform.images([drawn(number)[1]]) for number in range(4)]
    pixels, places = stack_images(*zip(*images, strict=True))
    samples = {"image": pixels, "num_images": places, "text_input": ["a"] * 4, "text_output": ["b"] * 4}
    alone = [
        model.count_tokens({"image": image[None], "num_images": place[None], "text_input": ["a"], "text_output": ["b"]})
        for image, place in images
    ]
    assert model.count_tokens(samples) == sum(alone)
    assert len(set(alone)) > 1


def test_a_folder_answers_as_its_run_did(trained):
    runner, folder = trained
    pipeline = Pipeline.from_pretrained(folder, "float32")
    assert pipeline.transform.max_tiles == 4 and pipeline.model.tile_marks
    pictures = [drawn(number)[1] for number in range(7)]
    questions = [Question((picture,), "what color is it?") for picture in pictures]
    together = pipeline.answers(questions, DECODING)
    assert together == [pipeline.answer(picture, "what color is it?", decoding=DECODING) for picture in pictures]
    of_run = runner.model.float().eval()
    processor = GitLLMImageEvalProcessor.from_config(TILES)
    images = [processor.transform.images([picture]) for picture in pictures]
    pixels, places = stack_images(*zip(*images, strict=True))
    prompts = [pipeline.prompt("what color is it?")] * 7
    samples = {"image": pixels, "num_images": places, "text_input": prompts}
    assert of_run.generate(samples, max_length=4) == together


def test_transformers_processor_gives_what_the_pipeline_reads(trained):
    pipeline, processor = Pipeline.from_pretrained(trained[1], "float32"), GitLLMProcessor.from_pretrained(trained[1])
    pictures = [drawn(number)[1] for number in range(5)]
    inputs = processor([[picture] for picture in pictures], ["what is it?"] * 5)
    images = [pipeline.images(picture) for picture in pictures]
    pixels, places = stack_images(*zip(*images, strict=True))
    assert torch.equal(inputs["pixel_values"], pixels) and torch.equal(inputs["num_images"], places)


def test_a_conversation_goes_on_behind_the_same_tiles(trained):
    pipeline, fresh = Pipeline.from_pretrained(trained[1], "float32"), Pipeline.from_pretrained(trained[1], "float32")
    turns = (("what color is it?", "red"),)
    reused = []
    for number in (1, 3, 3, 2):
        picture = drawn(number)[1]
        found = pipeline.answer(picture, "and this?", decoding=DECODING, turns=turns)
        fresh.remembered = type(fresh.remembered)()
        assert found == fresh.answer(picture, "and this?", decoding=DECODING, turns=turns)
        reused.append(pipeline.remembered.num_reused > 0)
    assert reused == [False, False, True, False]


@pytest.mark.parametrize("number", range(5))
def test_a_map_shows_the_whole_picture(trained, number):
    """Each patch of a tile or thumbnail counts where its centre lies in the picture."""
    pipeline, picture = Pipeline.from_pretrained(trained[1], "float32"), drawn(number)[1]
    found = answer_attention(pipeline, [picture], "what color is it?", "red").maps[0]
    pixels, places = pipeline.images(picture)
    rows, columns = pipeline.model.grid_shape(32, 32)
    text = pipeline.encode_answer("what color is it?", "red", None, pixels[None])
    first = int(text.labels[0].ne(-100).nonzero()[0, 0]) - 1
    weights = pipeline.model.attention_to_image(text.input_ids, pixels[None], None, places[None]).mean(0)[first]
    images = weights.unflatten(0, (len(places), -1))[:, -rows * columns :].unflatten(1, (rows, columns))
    wanted, (down, across) = torch.zeros(1, rows, columns), places[:, 1:].amax(0).tolist()
    for image, (_, row, column) in zip(images, places.tolist(), strict=True):
        for y, x in itertools.product(range(rows), range(columns)):
            top = (row - 1 + (y + 0.5) / rows) / down if row else (y + 0.5) / rows
            left = (column - 1 + (x + 0.5) / columns) / across if column else (x + 0.5) / columns
            wanted[0, int(top * rows), int(left * columns)] += image[y, x]
    torch.testing.assert_close(found, wanted)


def test_each_tile_takes_room(tmp_path):
    """The longest answer that fits beside one image does not beside as many tiles as a picture may have."""
    config = write_run(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    rows[2]["outputs"] = "and then " * 42
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["run.valid_splits=[]", "run.test_splits=[]", "run.max_epoch=1"]
    launch.train(config, [*options, "datasets.m3it.vis_processor.train.max_tiles=1"])
    with pytest.raises(DataError, match=r"train.jsonl:3.* fit beside 1 image"):
        launch.train(config, options)


@pytest.mark.parametrize(("told", "refused"), [
    (["model.arch=git", "model.model_type=base"], "git_llm alone"),
    (["datasets.m3it.vis_processor.eval.resize=shortest_edge"], "shows the whole picture"),
    (["datasets.m3it.vis_processor.train.max_tiles=0"], "max_tiles is 0"),
    (["model.tile_marks=rows"], "model.tile_marks is 'rows'"),
])  # fmt: skip
def test_a_configuration_that_cannot_be_is_told_at_once(told, refused, tmp_path):
    with pytest.raises(ConfigError, match=refused):
        check_config(write_run(tmp_path), told)


def test_others_refuse_a_model_of_tiles_by_name(trained, tmp_path, capsys):
    runner, folder = trained
    with pytest.raises(ConfigError, match=r"max_tiles=4\), which see each other"):
        settings = json.loads((folder / "git_llm.json").read_text())
        plain = write_tiny_folder(tmp_path / "plain")
        description = json.loads((plain / "git_llm.json").read_text()) | {"settings": settings["settings"]}
        (plain / "git_llm.json").write_text(json.dumps(description))
        check_for_vllm(plain)
    with pytest.raises(ConfigError, match=r"max_tiles=4\), and what is asked here"):
        Reference(folder)
    with pytest.raises(ConfigError, match="not of tiles; leave max_tiles out"):
        describe_processor(GitLLMImageEvalProcessor.from_config(TILES))
    assert main(["export", str(runner.output_dir), str(tmp_path / "stock"), "--to", "transformers"]) != 0
    assert "max_tiles=4" in capsys.readouterr().err and not (tmp_path / "stock").exists()


def test_llama_cpp_refuses_a_model_of_tiles_by_name(trained, tmp_path):
    for package in ("gguf", "onnx", "onnxscript", "onnxruntime", "xllamacpp"):
        pytest.importorskip(package, reason="pip install 'gitllm-plugin[llama-cpp]'")
    from gitllm_plugin.llama_cpp.export import write_llama_folder

    with pytest.raises(ConfigError, match=r"max_tiles=4\); for llama.cpp only models of whole pictures"):
        write_llama_folder(Pipeline.from_pretrained(trained[1], "float32"), tmp_path / "llama")
