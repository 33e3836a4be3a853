"""What models, data, streams and tasks may offer the runner, and the page that says how to write one's own."""

import functools
import inspect
import re
from pathlib import Path

import pytest
from torch import nn

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.host.locate import prepare
from gitllm_plugin.protocols import (
    PROTOCOLS,
    BatchingStream,
    CountedData,
    CountingTask,
    LayeredModel,
    RescalableStream,
    ResumableStream,
    TextsEncoder,
    check_offers,
    members,
    offers,
    weight_of_loss,
)

prepare()

PAGE = Path(__file__).parents[1] / "docs" / "adding.md"
ALL = [protocol for protocols in PROTOCOLS.values() for protocol in protocols]


def whole(protocol: type, without: str | None = None) -> object:
    """An object with all members of a protocol, or all but one."""
    values = {name: (lambda self, *args: None) if is_method else 0 for name, is_method in members(protocol).items()}
    values.pop(without, None)
    return type("Mine", (), values)()


@pytest.mark.parametrize("protocol", ALL, ids=lambda protocol: protocol.__name__)
def test_all_of_a_protocol_is_offered_and_nothing_is_not(protocol):
    assert members(protocol)
    assert offers(whole(protocol), protocol)
    assert not offers(object(), protocol) and not offers(None, protocol)


HALVES = [(protocol, name) for protocol in ALL for name in members(protocol) if len(members(protocol)) > 1]


@pytest.mark.parametrize(("protocol", "missing"), HALVES, ids=[f"{p.__name__}-{name}" for p, name in HALVES])
def test_half_of_a_protocol_is_refused_with_what_there_is_and_what_is_missing(protocol, missing):
    half = whole(protocol, without=missing)
    if not any(name in vars(protocol) for name in members(protocol) if name != missing):
        assert not offers(half, protocol)  # what it has belongs to the protocol that this one extends
        return
    with pytest.raises(ConfigError, match=rf"^Mine has .*, but not {missing}(\(\))?: a {protocol.__name__} "):
        offers(half, protocol)


def test_a_resumable_stream_need_not_be_rescalable_but_a_rescalable_one_is_resumable():
    assert not offers(whole(ResumableStream), RescalableStream)

    class Rescaling:
        def load_state_dicts(self, states): ...

    with pytest.raises(ConfigError, match=r"has load_state_dicts\(\), but not state_dict\(\), load_state_dict\(\)"):
        check_offers(Rescaling(), "stream")


def test_an_attribute_is_no_method():
    class VisionTransformer(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([nn.Linear(1, 1)])

    class Encoder:
        tokenizer = object()

    assert not offers(VisionTransformer(), LayeredModel)
    assert not offers(Encoder(), TextsEncoder)


class Collator:
    def __call__(self, items):
        return {"mine": items}


@pytest.mark.parametrize(
    "collater",
    [Collator(), lambda items: {"mine": items}, functools.partial(lambda name, items: {name: items}, "mine")],
    ids=["object", "function", "partial"],
)
def test_whatever_can_be_called_makes_batches(collater):
    from gitllm_plugin.runners.loaders import LoaderSettings

    class Data(list):
        pass

    data = Data([1, 2])
    data.collater = collater
    assert list(LoaderSettings(batch_size=2).loader(data)) == [{"mine": [1, 2]}]


def test_the_classes_of_this_package_offer_what_is_theirs():
    from gitllm_plugin.datasets.datasets.m3it_dataset import M3ITDataset
    from gitllm_plugin.datasets.datasets.m3it_shards import M3ITShards
    from gitllm_plugin.modeling import TextEncoder
    from gitllm_plugin.models.git_llm import GitLLMForLavis
    from gitllm_plugin.tasks.dpo import PreferenceTask
    from gitllm_plugin.tasks.m3it import M3ITTask

    def all_of(cls: type, kind: str) -> bool:
        return all(hasattr(cls, name) for protocol in PROTOCOLS[kind] for name in members(protocol))

    assert all_of(GitLLMForLavis, "model") and all_of(PreferenceTask, "task")
    assert all_of(M3ITShards, "stream")
    assert hasattr(TextEncoder, "prompts_and_answers")
    assert hasattr(M3ITDataset, "collater") and members(CountedData).keys() <= vars(M3ITDataset).keys()
    for cls, kinds in ((GitLLMForLavis, ["model"]), (M3ITTask, ["task"]), (M3ITShards, ["data set", "stream"])):
        for protocol in (protocol for kind in kinds for protocol in PROTOCOLS[kind]):
            for name, is_method in members(protocol).items():
                if is_method and hasattr(cls, name):
                    asked, found = (list(inspect.signature(getattr(c, name)).parameters) for c in (protocol, cls))
                    assert len(asked) == len(found), f"{cls.__name__}.{name}{found} is asked for as {asked}"


def test_the_runner_refuses_halves_before_it_makes_anything(tmp_path):
    from tests.runners import tiny_run

    data = tiny_run.TinyStream(tiny_run.TinyData(4))
    data.state_dict = lambda: 0
    with pytest.raises(ConfigError, match=r"TinyStream has state_dict\(\), but not load_state_dict\(\)"):
        tiny_run.build_runner(tmp_path / "run", data={"train": data})
    model = tiny_run.TinyModel()
    model.trainable_state_dict = lambda: {}
    with pytest.raises(ConfigError, match=r"TinyModel has trainable_state_dict\(\), but not load_trainable_state_dict"):
        tiny_run.build_runner(tmp_path / "run", model=model)
    assert not (tmp_path / "run").exists()


def test_half_a_text_encoder_is_refused_at_the_start(tmp_path):
    from tests.runners import tiny_run

    class Encoder(nn.Module):
        def prompts_and_answers(self, prompts, answers): ...

    model = tiny_run.TinyModel()
    model.text_encoder = Encoder()
    with pytest.raises(ConfigError, match=r"Encoder has prompts_and_answers\(\), but not tokenizer: a TextsEncoder"):
        tiny_run.build_runner(tmp_path / "run", model=model)


def test_a_map_style_data_set_is_not_asked_what_streams_are(tmp_path):
    from tests.runners import tiny_run

    class Stateful(tiny_run.TinyData):
        def state_dict(self):
            return {}

        @property
        def examples(self):
            raise AssertionError("computed only to see whether it is there")

        num_examples = examples

    assert tiny_run.build_runner(tmp_path, data={"train": Stateful(4)}, valid_splits=[], test_splits=[])


def row(protocol: type, name: str) -> str:
    """The line of the page's table about a member."""
    owner = next(cls for cls in protocol.__mro__ if name in {**vars(cls), **vars(cls).get("__annotations__", {})})
    member = vars(owner).get(name)
    signature = ""
    if inspect.isfunction(member):
        given = re.sub(r"\(self(, )?", "(", str(inspect.signature(member)))
        signature = given.replace("'", "")
    else:
        member = member.fget if isinstance(member, property) else None
    meaning = " ".join((inspect.getdoc(member) or "").split()).replace("``", "`")
    meaning = re.sub(r":\w+:(`[^`]*`)", r"\1", meaning)
    if owner is not protocol:
        meaning = f"Needed as well, see {owner.__name__}."
    return f"| {protocol.__name__} | `{name}{signature}` | {meaning or 'An attribute, needed beside the methods.'} |"


def test_the_page_has_every_protocol_as_the_code_says_it():
    page = PAGE.read_text(encoding="utf-8")
    needed = [(protocol, name) for protocol in ALL for name in members(protocol)]
    missing = [line for line in (row(*pair) for pair in needed) if line not in page]
    assert not missing, "to be put into docs/adding.md:\n" + "\n".join(missing)
    tables = re.findall(r"^\| (\w+) \| `(\w+)", page, re.MULTILINE)
    assert tables == [(protocol.__name__, name) for protocol, name in needed], "in this order, and no others"


def test_the_code_of_the_page_trains_stops_and_goes_on(tmp_path):
    from tests.runners import tiny_run

    own = PAGE.read_text(encoding="utf-8").partition("## Your own classes")[2]
    blocks = re.findall(r"```python\n(.*?)```", own, re.DOTALL)
    defined: dict = {"__name__": "page"}
    for block in blocks:
        exec(block, defined)  # noqa: S102 - our own page
    stream, task = defined["Numbers"](), defined["CountedTask"]()
    assert offers(stream, ResumableStream) and offers(stream, BatchingStream)
    settings = {"max_epoch": None, "iters_per_inner_epoch": 2, "valid_splits": [], "test_splits": []}
    for iterations, first in ((3, 0), (5, 3 * 4)):
        stream, model = defined["Numbers"](), defined["OwnModel"]()
        runner = tiny_run.build_runner(
            tmp_path, model=model, data={"train": stream}, max_iters=iterations, resume_ckpt_path="auto", **settings
        )
        runner.task = task
        runner.train()
        assert stream.first == first and stream.taken == iterations * 4
        assert [group["lr_scale"] for group in runner.optimizer.param_groups] == [1.0, 0.1]
    assert runner.position.iters == 5


@pytest.mark.parametrize(
    ("outputs", "weight"),
    [
        ({"num_supervised_tokens": 7, "supervised_weight": 0.25}, 0.25),
        ({"num_supervised_tokens": 7}, 7.0),
        ({}, 1.0),
        ({"num_supervised_tokens": 0}, 0.0),
    ],
)
def test_a_loss_weighs_what_it_was_divided_by(outputs, weight):
    assert weight_of_loss({"loss": 1.5, **outputs}) == weight


def test_hosts_tasks_hand_on_what_a_model_counts_and_take_models_that_count_nothing():
    from gitllm_plugin.tasks.host_task import CountedTraining

    counted = {"loss": 2.0, "num_supervised_tokens": 3, "supervised_weight": 0.5}
    task = CountedTraining()
    assert offers(task, CountingTask)
    assert task.train_outputs(lambda samples: {**counted, "logits": None}, {}) == counted
    assert task.train_outputs(lambda samples: {"loss": 2.0}, {}) == {"loss": 2.0, "num_supervised_tokens": 1}
