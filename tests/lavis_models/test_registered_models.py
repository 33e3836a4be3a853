"""Every model that LAVIS registers works here, and computes what it computed with transformers 4.26."""

import math

import pytest
import torch

from tests.lavis_models import recipes, trial

NAMES = sorted([*recipes.RECIPES, *(recipes.OF_MAIN if trial.ON_MAIN else ()), "git", "git_llm"])
COMPARED = [
    name
    for name, recipe in recipes.RECIPES.items()
    if recipe.same_numbers and not (trial.ON_MAIN and name in trial.OTHER_ON_MAIN)
]
# Models whose losses ask for other processes: alone, there are none.
ASK_FOR_RANKS = ("alpro_retrieval", "blip2", "blip_retrieval", "clip")


@pytest.fixture(scope="module")
def outcomes():
    return trial.try_all()


def test_every_registered_model_is_tried():
    assert sorted({*trial.registered()} - trial.NOT_TRIED) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_it_is_built_trained_and_asked(name, outcomes):
    outcome = outcomes[name]
    if outcome.why_not:
        assert f"pip install {recipes.recipe_of(name).needs}" in outcome.why_not
        return
    assert set(outcome.result["used"]) == set(outcome.asked)
    if trained := outcome.result.get("trained"):
        assert math.isfinite(trained["loss"])
        assert trained["changed"] > 0
    else:
        assert recipes.recipe_of(name).samples is None


@pytest.mark.parametrize("name", COMPARED)
def test_numbers_are_those_of_transformers_4_26(name, outcomes):
    assert outcomes[name].compared
    assert outcomes[name].differing == []


@pytest.mark.skipif(trial.ON_MAIN, reason="the page's table is of the release")
def test_the_page_has_the_table(outcomes):
    text = trial.PAGE.read_text(encoding="utf-8")
    written = text.partition(trial.BEGIN)[2].partition(trial.END)[0]
    assert written == trial.table(outcomes), "run: python -m tests.lavis_models.trial"


@pytest.mark.parametrize("name", ASK_FOR_RANKS)
def test_a_process_alone_trains_it(name):
    with trial.workshop() as folder:
        model = recipes.build(name, folder)
        assert math.isfinite(recipes.train(name, model)["loss"])


def test_differences_are_seen():
    numbers = {"mean": 1.0, "some": [0.5, 0.25]}
    assert trial.differences(numbers, numbers) == []
    assert trial.differences(numbers | {"mean": 1.0001}, numbers) == [".mean: 1.0001 for 1.0"]
    assert trial.differences(numbers | {"some": [0.5, math.nan]}, numbers) == [".some[1]: nan for 0.25"]
    assert trial.differences(["a", "b"], ["a", "c"]) == ["[1]: 'b' for 'c'"]
    assert trial.differences({"some": [0.5]}, numbers) != []


def test_parameters_depend_on_their_names_alone():
    first, second = torch.nn.Linear(3, 4), torch.nn.Linear(3, 4)
    recipes.fill(first)
    recipes.fill(second)
    assert torch.equal(first.weight, second.weight)
    assert not torch.equal(first.weight[0], first.weight[1])
