"""Declaring a node, and what follows from it."""

import copy
import math
import pickle
import subprocess
import sys
from typing import Annotated, Literal, get_args

import pytest
import torch
from omegaconf import OmegaConf
from pydantic import AfterValidator, Field, TypeAdapter

import gitllm_plugin
from gitllm_plugin.config import MISSING, OneOf, ReadIf, Rule, Says, changed, check, describe, node, read
from gitllm_plugin.config.model import BuildSettings, GitLLMSettings, LoraSettings
from gitllm_plugin.config.node import fields_of
from gitllm_plugin.config.run import LaunchSettings, RunSettings
from gitllm_plugin.errors import ConfigError

COLOURS = {"red": 1}


@node("shop.fruit")
class Fruit:
    """A fruit."""

    name: str
    """What it is called."""

    grams: Annotated[float, Field(gt=0, le=1000)] = 100.0
    """Of one."""

    colour: Annotated[str, OneOf(COLOURS)] = "red"
    """Its skin's."""


def _no_dots(text: str) -> str:
    if "." in text:
        raise ValueError(f"{text!r} has a dot")
    return text


@node("shop")
class Shop:
    """A shop."""

    count: Annotated[int, Field(ge=1)] = 3
    """How many
    there are."""

    open: bool = True
    """Whether one may enter."""

    size: Literal["small", "large"] | Annotated[int, Field(ge=5)] = "small"
    """Of the room."""

    hours: tuple[int, int] | None = (9, 18)
    """From, to; null for always."""

    sign: Annotated[str, AfterValidator(_no_dots)] = ""
    """On the door."""

    price: Annotated[dict[Literal["low", "high"], float] | None, ReadIf(("open",), bool, "where it is open")] = None
    """By season."""

    fruit: Fruit | None = None
    """Of the day."""

    shelf: dict[Annotated[str, AfterValidator(_no_dots)], Fruit | None] | None = None
    """By place."""

    owner: Annotated[str | None, Says("a person")] = None
    """Whose it is."""

    RULES = (
        Rule(("count", "size"), lambda count, size: ".count is too large" if count > 9 and size == "small" else None),
        Rule(("count",), lambda count: " is overfull" if count == 8 else None),
        Rule(("count",), lambda count: ": count and care" if count == 7 else None),
        Rule(("open", "town.curfew"), lambda is_open, curfew: "there is a curfew" if is_open and curfew else None),
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"count": "four"}, "shop.count is 'four', expected a whole number, 1 or more"),
        ({"count": 0}, "shop.count is 0, expected 1 or more"),
        ({"count": True}, "shop.count is True, expected a whole number, 1 or more"),
        ({"count": 1.5}, "shop.count is 1.5, expected a whole number, 1 or more"),
        ({"open": "yes"}, "shop.open is 'yes', expected true or false"),
        ({"open": 1}, "shop.open is 1, expected true or false"),
        ({"size": "huge"}, "shop.size is 'huge', expected one of small, large, or a whole number, 5 or more"),
        ({"size": 4}, "shop.size is 4, expected one of small, large, or 5 or more"),
        ({"hours": [9]}, "shop.hours is [9], expected a list of 2: a whole number each"),
        ({"hours": [9, "late"]}, "shop.hours has 'late', expected a whole number"),
        ({"sign": "a.b"}, "shop.sign: 'a.b' has a dot"),
        ({"sign": 5}, "shop.sign is 5, expected text"),
        ({"price": {"lo": 1}}, "shop.price.lo: unknown key 'lo' (did you mean 'low'?). Keys there are: low, high"),
        ({"price": {"low": "cheap"}}, "shop.price.low is 'cheap', expected a number"),
        ({"price": {"low": math.nan}}, "shop.price.low is nan, expected a number"),
        ({"fruit": 5}, "shop.fruit is 5, expected a mapping with the keys name, grams, colour"),
        ({"fruit": {}}, "shop.fruit.name is missing, expected text"),
        ({"fruit": {"name": "fig", "grams": 0}}, "shop.fruit.grams is 0, expected above 0 and 1000 or less"),
        ({"fruit": {"name": "fig", "colour": "rad"}}, "shop.fruit.colour is 'rad', expected red (did you mean 'red'?)"),
        ({"shelf": {"top": {"nam": "fig"}}}, "shop.shelf.top.nam: unknown key 'nam' (did you mean 'name'?)"),
        ({"shelf": {"a.b": {"name": "fig"}}}, "shop.shelf: 'a.b' has a dot"),
        ({"owner": 5}, "shop.owner is 5, expected a person"),
        ({"cuont": 5}, "shop.cuont: unknown key 'cuont' (did you mean 'count'?). Keys there are: count, fruit, hours"),
        ({"count": 10}, "shop.count is too large"),
        ({"count": 8}, "shop is overfull"),
        ({"count": 7}, "shop: count and care"),
        ({"sign": b"x"}, "shop.sign is b'x', expected text"),
    ],
)
def test_a_fault_names_the_key_the_value_and_what_is_allowed(given, expected):
    assert check(Shop, "shop", given).faults[0].startswith(expected)
    with pytest.raises(ConfigError) as caught:
        read(Shop, "shop", OmegaConf.create(given))
    assert str(caught.value).startswith(expected)
    with pytest.raises(ConfigError) as caught:
        Shop(**given)
    assert str(caught.value).startswith(expected)


def test_all_faults_come_at_once_and_rules_about_wrong_keys_are_not_asked():
    found = check(Shop, "shop", {"count": 10, "size": "huge", "open": "no", "fruit": {"nam": 1}}).faults
    assert [fault.split()[0] for fault in found] == ["shop.open", "shop.size", "shop.fruit.nam:", "shop.fruit.name"]


def test_values_become_their_types():
    shop = read(
        Shop, "shop", OmegaConf.create({"count": "1e1", "size": "7", "hours": [8.0, "20"], "price": {"low": 1}})
    )
    assert (shop.count, shop.size, shop.hours, shop.price) == (10, 7, (8, 20), {"low": 1.0})
    assert all(type(value) is int for value in (shop.count, shop.size, *shop.hours))
    fruit = read(Shop, "shop", {"fruit": {"name": "fig", "grams": "1e-3"}, "shelf": {"top": None}}).fruit
    assert fruit == Fruit(name="fig", grams=0.001)


def test_interpolations_of_omegaconf_are_followed():
    config = OmegaConf.create({"many": "12", "shop": {"count": "${many}", "size": "large"}})
    assert read(Shop, "shop", config.shop).count == 12


def test_null_is_the_default_but_where_it_means_something():
    shop = read(Shop, "shop", {"count": None, "hours": None})
    assert shop.count == 3 and shop.hours is None


def test_defaults_of_a_file_stand_below_and_null_takes_them_away():
    below = {"count": 6, "fruit": {"name": "fig", "grams": 7}, "price": {"low": 1.0}}
    values = check(Shop, "shop", {"fruit": {"grams": 9}, "price": None, "count": None}, defaults=below).values
    assert values["count"] == 6 and values["fruit"] == Fruit(name="fig", grams=9.0) and values["price"] is None
    assert check(Shop, "shop", {"fruit": None}, defaults=below).values["fruit"] is None


def test_rules_may_ask_what_is_known_beside_the_node():
    assert check(Shop, "shop", {}).faults == []
    assert check(Shop, "shop", {}, known={"town.curfew": True}).faults == ["there is a curfew"]


def test_a_value_that_nothing_reads_is_noted():
    assert check(Shop, "shop", {"open": False, "price": {"low": 1}}).notes == [
        "shop.price is {'low': 1}, which has no effect: it is read only where it is open, and open is False"
    ]
    assert check(Shop, "shop", {"open": False}).notes == check(Shop, "shop", {"price": {"low": 1}}).notes == []


def test_several_classes_may_read_one_node():
    given = {"count": 2, "name": "fig", "nmae": 1}
    checked = check([Shop, Fruit], "node", given)
    assert (checked.values["count"], checked.values["name"]) == (2, "fig")
    assert not {"count", "name"} & set(check([Shop, Fruit], "node", {"count": "x", "name": 5}).values)
    assert [fault.partition(":")[0] for fault in checked.faults] == ["node.nmae"]
    assert check(Fruit, "node", given, closed=False).faults == []
    assert read(Fruit, "node", given, closed=False) == Fruit(name="fig")


def test_a_class_that_derives_from_another_speaks_for_both():
    assert check([LaunchSettings, RunSettings], "run", {"device": 5}).faults == [
        "run.device is 5, expected auto, cpu, cuda or cuda:N"
    ]
    assert "device" not in check([LaunchSettings, RunSettings], "run", {"device": "cuda:x"}).values


def test_names_are_looked_up_when_they_are_needed(monkeypatch):
    monkeypatch.setitem(COLOURS, "blue", 2)
    assert Fruit(name="plum", colour="blue").colour == "blue"


def test_what_is_declared_can_be_asked_for():
    keys = {key.name: key for key in describe(Shop)}
    assert (keys["count"].default, keys["count"].allowed) == (3, "a whole number, 1 or more")
    assert keys["count"].meaning == "How many there are."
    assert keys["price"].read == "where it is open"
    assert keys["fruit"].nested is keys["shelf"].nested is Fruit
    assert describe(Fruit)[0].default is MISSING


def test_settings_are_values():
    lora = LoraSettings(targets=["q_proj"], rank="4")
    assert lora == LoraSettings(rank=4, targets=("q_proj",)) and hash(lora) == hash(copy.deepcopy(lora))
    assert pickle.loads(pickle.dumps(lora)) == lora
    settings = BuildSettings(lora={"rank": 2})
    assert settings.lora == LoraSettings(rank=2)
    assert changed(settings, max_images=3).lora is settings.lora
    with pytest.raises(ConfigError, match="model.max_images is 0, expected 1 or more"):
        changed(settings, max_images=0)
    with pytest.raises(AttributeError):
        lora.rank = 5


def test_settings_in_python_are_told_all_that_is_wrong():
    with pytest.raises(ConfigError) as caught:
        LoraSettings(rank=0, alpha="big", ranks=1)
    assert [line.split()[0] for line in str(caught.value).splitlines()] == [
        "model.lora.ranks:",
        "model.lora.rank",
        "model.lora.alpha",
    ]


def test_the_numbers_that_yaml_reads_as_text_are_numbers_in_a_run():
    run = read(RunSettings, "run", {"init_lr": "1e-3", "max_iters": "1e4", "batch_size_train": "8"})
    assert (run.init_lr, run.max_iters, run.batch_size_train) == (0.001, 10000, 8)


def test_a_model_has_a_source():
    assert check(GitLLMSettings, "model", {}).faults == [
        "model.language_model is missing; name one, or a model.folder that has both",
        "model.image_encoder is missing; name one, or a model.folder that has both",
    ]


def test_the_declarations_are_cheap_to_import():
    code = (
        "import sys, gitllm_plugin.config, gitllm_plugin.config.model, gitllm_plugin.config.run\n"
        "print(*sorted({'torch', 'lavis', 'omegaconf', 'transformers'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


def test_names_that_the_code_goes_by_are_those_that_are_declared():
    gitllm_plugin.register()  # the runners' files import LAVIS
    from gitllm_plugin.config.model import MODULES, Module
    from gitllm_plugin.config.run import STEP_SCHEDULES
    from gitllm_plugin.modeling.pretrained import DTYPES
    from gitllm_plugin.modeling.trainable import names_of_module
    from gitllm_plugin.runners import optimizer, parallel, precision, records, state

    def names(settings, key):
        schema = TypeAdapter(fields_of(settings)[key]).json_schema()
        return tuple(schema.get("items", schema)["enum"])

    assert names(RunSettings, "precision") == precision.PRECISIONS
    assert names(RunSettings, "sharding") == parallel.SHARDINGS
    assert names(RunSettings, "best") == state.ORDERS
    assert names(RunSettings, "trackers") == records.TRACKERS
    assert tuple(optimizer.DECAYS) == STEP_SCHEDULES
    assert names(BuildSettings, "dtype") == ("auto", *DTYPES)
    assert get_args(Module) == MODULES
    assert all(isinstance(names_of_module(torch.nn.Linear(1, 1), module), set) for module in MODULES)
