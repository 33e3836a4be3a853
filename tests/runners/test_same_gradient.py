"""Any split of a batch into accumulated pieces and ranks trains as the whole batch does.

Loss and gradient of the whole are autograd's, of one forward pass; those of the split are the training loop's.
"""

import copy
import functools

import pytest
import torch

from gitllm_plugin.common import ranks
from gitllm_plugin.tasks.m3it import M3ITTask
from gitllm_plugin.tasks.settings import M3ITTaskSettings
from tests.split_batches import (
    FAMILIES,
    WEIGHTS,
    Threads,
    batch_of,
    loop_gradient,
    make_model,
    make_pictures,
    plain_gradient,
    random_split,
)

SPLITS = [(1, 2), (1, 5), (2, 1), (2, 2), (3, 2)]
"""Ranks, and pieces of each."""


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """A name and a model of it in float64; LLaMA's norms compute in float32 all the same."""
    return request.param, make_model(request.param, tmp_path_factory.mktemp("git")).double()


def compare(model, pictures, split, dtype, monkeypatch, **settings):
    """The relative differences of loss and gradient, one process and the whole batch against ranks and pieces."""
    expected_loss, expected = plain_gradient(model, batch_of(pictures, dtype))
    copies = [copy.deepcopy(model) for _ in split]
    with monkeypatch.context() as patch:
        found = Threads(patch, len(split)).run(
            lambda rank: loop_gradient(copies[rank], [batch_of(p, dtype) for p in split[rank]], **settings)
        )
    for loss, gradient in found:
        assert len(gradient) == len(expected), "other parameters were used"
        yield abs(loss - expected_loss) / abs(expected_loss), float((gradient - expected).norm() / expected.norm())


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(("world", "pieces"), SPLITS)
def test_every_split_has_the_gradient_of_the_whole(family, weights, world, pieces, monkeypatch):
    name, model = family
    seed = 100 * world + 10 * pieces + WEIGHTS.index(weights)
    pictures = make_pictures(seed, weights, plain=name == "git")
    split = random_split(pictures, world, pieces, seed)
    for loss, gradient in compare(model, pictures, split, torch.float64, monkeypatch):
        assert loss < 1e-6 and gradient < 1e-6


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", 1e-5), ("bf16", 0.05)])
@pytest.mark.parametrize("weights", ["none", "of_annotators", "below_one"])
def test_in_the_precisions_of_training_within_their_rounding(tmp_path, weights, precision, allowed, monkeypatch):
    model = make_model("tiny_llama", tmp_path)
    autocast = functools.partial(torch.autocast, "cpu", torch.bfloat16, enabled=precision == "bf16")
    pictures = make_pictures(7, weights, plain=False)
    split = random_split(pictures, 2, 2, seed=7)
    for loss, gradient in compare(model, pictures, split, torch.float32, monkeypatch, autocast=autocast):
        assert loss < allowed and gradient < allowed


@pytest.mark.parametrize("weights", WEIGHTS)
def test_the_split_matters_where_means_are_only_averaged(tmp_path, weights):
    """What the tests above would find: the mean of the pieces' means is another gradient."""
    model = make_model("tiny_opt", tmp_path).double()
    pictures = make_pictures(3, weights, plain=True)
    _, expected = plain_gradient(model, batch_of(pictures, torch.float64))
    pieces = [plain_gradient(model, batch_of(part, torch.float64))[1] for part in (pictures[:1], pictures[1:])]
    assert float((sum(pieces) / 2 - expected).norm() / expected.norm()) > 1e-3


def test_answers_that_all_weigh_nothing_change_nothing(tmp_path):
    model = make_model("tiny_llama", tmp_path)
    batch = batch_of(make_pictures(1, "of_annotators", plain=True))
    loss, gradient = loop_gradient(model, [{**batch, "weight": torch.zeros_like(batch["weight"])}] * 2)
    assert loss == 0 and not gradient.any()


def test_one_of_several_questions_about_a_picture_has_its_picture_too(tmp_path):
    """Weighted answers behind ``image_index``: as the same questions with their pictures repeated."""
    model = make_model("tiny_opt", tmp_path)
    pictures = make_pictures(5, "of_annotators", plain=True)
    batch = batch_of(pictures)
    repeated = {key: value for key, value in batch.items() if key not in ("image_index", "num_images")}
    repeated["image"] = batch["image"][batch["image_index"]]
    assert len(repeated["image"]) > len(batch["image"])
    torch.testing.assert_close(model(batch)["loss"], model(repeated)["loss"])


@pytest.mark.parametrize("weights", WEIGHTS)
def test_the_validation_loss_is_that_of_the_whole_split(family, weights, monkeypatch):
    """Whatever the batches and the ranks, some of them uneven."""
    name, model = family
    pictures = make_pictures(11, weights, plain=name == "git", count=7)
    expected = model(batch_of(pictures, torch.float64))["loss"].item()
    task = M3ITTask(M3ITTaskSettings(metrics=()))

    def evaluate(parts):
        return [
            task.evaluation(model, [with_names(batch_of(batch, torch.float64)) for batch in part]) for part in parts
        ]

    for world, size in ((1, 1), (1, 3), (1, 7), (2, 2), (3, 1)):
        shares = [pictures[rank::world] for rank in range(world)]
        found = evaluate([[s[at : at + size] for at in range(0, len(s), size)] for s in shares])
        monkeypatch.setattr(ranks, "gather_objects", lambda value, found=found: found)
        monkeypatch.setattr(task, "_write", lambda *unused: None)
        assert task.after_evaluation(found[0], "val", 0)["loss"] == pytest.approx(expected, rel=1e-6)


def with_names(batch):
    """With what the task writes of every example."""
    names = [f"{number}: {text}" for number, text in enumerate(batch["text_input"])]
    return {
        **batch,
        "instance_id": names,
        "config": ["own"] * len(names),
        "question": names,
        "references": [["-"]] * len(names),
    }
