"""Models of four kinds compared: equal sizes, the same pictures, steps and score."""

import contextlib
import json
import math

import pytest
import torch
from omegaconf import OmegaConf

import gitllm_plugin
from examples.compare.__main__ import MODELS, config_of, main
from examples.compare.data import write_data
from examples.compare.shapes import build, small_lavis, write_folders

SMALL = ["run.steps=3", "run.batch_size=4", "data.train=8", "data.test=5"]


@pytest.fixture(scope="module")
def shared():
    return config_of("shared")


@pytest.fixture(scope="module")
def models(tmp_path_factory, shared):
    gitllm_plugin.register()
    folder = tmp_path_factory.mktemp("shapes")
    write_folders(folder, shared.sizes)
    with contextlib.chdir(folder), small_lavis(shared.sizes):
        given = {"folder": str(folder)}
        return {name: build(OmegaConf.merge(shared, given, config_of(name)).model, 0) for name in MODELS}


def rows_of(text):
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_command_prints_a_row_for_each_model(capsys):
    assert main(["--options", *SMALL]) == 0
    header, *rows = rows_of(capsys.readouterr().out)
    assert header == ["model", "parameters", "images/s of a core", "training loss", "exact match", "ROUGE-L"]
    assert [row[0] for row in rows] == ["GIT-LLM", "GIT", "BLIP", "BLIP-2"]
    for _, parameters, speed, loss, exact, rouge in rows:
        assert int(parameters.replace(",", "")) > 200_000 and int(speed) > 0 and 0 < float(loss) < 10
        assert 0 <= float(exact.rstrip("%")) <= 100 and 0 <= float(rouge) <= 1


@pytest.mark.slow
def test_numbers_are_the_same_every_time(capsys):
    def once():
        assert main(["--only", "git", "blip2", "--options", *SMALL]) == 0
        return [row[:2] + row[3:] for row in rows_of(capsys.readouterr().out)]

    assert once() == once()


@pytest.mark.parametrize("name", MODELS)
def test_sizes_are_equal_and_everything_learns(name, models, shared):
    model, sizes = models[name], shared.sizes
    assert all(parameter.requires_grad for parameter in model.parameters())
    patches = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    assert [(each.out_channels, each.kernel_size) for each in patches] == [(sizes.width, (sizes.patch,) * 2)]
    norms = {tuple(each.normalized_shape) for each in model.modules() if isinstance(each, torch.nn.LayerNorm)}
    assert norms == {(sizes.width,)}
    batch = {"image": torch.rand(2, 3, sizes.image, sizes.image), "text_input": ["a picture of a red circle"] * 2}
    assert math.isfinite(model.train()(batch)["loss"].item())


@pytest.mark.parametrize("seed", [0, 1, 5])
def test_no_pair_of_the_test_was_learnt(tmp_path, seed):
    write_data(tmp_path / "data", {"train": 40, "test": 40}, seed)
    captions = {
        split: {row["caption"] for row in json.loads((tmp_path / "data" / f"{split}.json").read_text())}
        for split in ("train", "test")
    }
    assert len(captions["test"]) > 20 and not captions["train"] & captions["test"]
    assert len(list((tmp_path / "data" / "images").iterdir())) == 80
