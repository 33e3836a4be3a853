"""LAVIS's own processors feed this package's data sets and models, as users of LAVIS have them in their files."""

import random

import numpy as np
import pytest
import torch
from lavis.common.registry import registry
from lavis.datasets.builders import load_dataset
from lavis.processors import load_processor
from omegaconf import OmegaConf

import gitllm_plugin
from tests.m3it_shards import make_groups, write_shards

gitllm_plugin.register()

from gitllm_plugin.datasets.collate import collate_groups  # noqa: E402
from gitllm_plugin.datasets.items import ItemMaker  # noqa: E402


@pytest.fixture
def batches(tmp_path):
    """The same data through LAVIS's processors, as rows and as shards."""
    write_shards(tmp_path / "shards", make_groups(tmp_path / "a.jsonl", "a", "train", rows=4))
    storage = {"train": {"storage": str(tmp_path / "a.jsonl")}}
    found = []
    for name, info in (("m3it", {"annotations": storage}), ("m3it_wds", {"shards": str(tmp_path / "shards")})):
        vis = {"name": "blip_image_eval", "image_size": 32}
        node = {
            "vis_processor": {"train": vis, "eval": vis},
            "text_processor": {"train": {"name": "blip_caption"}, "eval": {"name": "blip_caption"}},
            "build_info": info,
        }
        path = tmp_path / f"{name}.yaml"
        OmegaConf.save(OmegaConf.create({"datasets": {name: node}}), path)
        train = load_dataset(name, str(path))["train"]
        items = [item for item, _ in zip(train, range(4), strict=False)]
        items.sort(key=lambda item: item["texts"][0]["instance_id"])
        found.append(train.collater(items))
    return found


def test_their_pixels_and_prompts(batches):
    by_row, by_shard = batches
    assert by_row["image"].dtype == torch.float32
    assert "image_mean" not in by_row
    assert torch.equal(by_row["image"], by_shard["image"])
    assert by_row["text_input"] == by_shard["text_input"]
    assert by_row["text_input"][0] == "answer the question about the image what color is the square?"


def test_a_model_trains_and_answers_on_them(batches, tmp_path):
    from lavis.models import load_model

    torch.manual_seed(0)
    model = load_model("git_llm", "tiny_opt")
    loss = model(batches[1])["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    model.eval()
    assert len(model.generate(batches[1], max_length=3)) == 4


def test_their_random_crops_belong_to_the_position(tmp_path):
    """A stream seeds what it does not know, so that a resumed run sees the same crops."""
    groups = make_groups(tmp_path / "a.jsonl", "a", "train", rows=1)
    theirs = load_processor("clip_image_train", OmegaConf.create({"image_size": 32}))
    maker = ItemMaker(theirs, load_processor("git_llm_instruction"))
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    crops = [maker.make(groups[0], "x", seed)["image"] for seed in (1, 2, 1)]
    assert torch.equal(crops[0], crops[2])
    assert not torch.equal(crops[0], crops[1])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]


def test_processors_of_both_kinds_in_one_batch(batches, tmp_path):
    """Mixtures of data sets may have unlike processors: what is still uint8 is normalised on the way."""
    registered = registry.get_processor_class("git_llm_image_eval").from_config(OmegaConf.create({"image_size": 32}))
    prompt = load_processor("git_llm_instruction")
    groups = make_groups(tmp_path / "b.jsonl", "b", "train", rows=1)
    theirs = load_processor("blip_image_eval", OmegaConf.create({"image_size": 32}))
    items = [ItemMaker(vis, prompt).make(groups[0], "x") for vis in (registered, theirs)]
    batch = collate_groups(items)
    assert "image_mean" not in batch
    assert torch.allclose(batch["image"][0], batch["image"][1], atol=0.02)
