"""Batches by tokens: near to the budget, balanced over ranks, every item once, and the same after any interruption."""

import itertools
import json
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch.utils.data import Dataset, IterableDataset

import gitllm_plugin
from gitllm_plugin.common import ranks
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.host import launch
from gitllm_plugin.modeling.build import build_git_llm
from gitllm_plugin.models.git_llm import GitLLMForLavis
from gitllm_plugin.runners.length import Position
from gitllm_plugin.runners.loaders import LoaderSettings
from gitllm_plugin.runners.token_batches import EndlessItems, TokenBudget, TokenData, fill
from gitllm_plugin.runners.training_data import TrainingData, training_data
from tests.m3it_shards import make_groups, write_shards
from tests.small_run import ENVIRONMENT, TINY_LORA, write_small_run

START = Position()


def lengths(kind: str, count: int, seed: int = 0) -> list[int]:
    """Tokens of items as data sets have them: a picture of 257 tokens, and one or several texts."""
    draw = random.Random(seed)
    of_kind = {
        "captions": lambda: 257 + max(8, round(draw.gauss(24, 8))),
        "conversations": lambda: 257 + sum(round(draw.lognormvariate(3.4, 0.6)) for _ in range(draw.randint(1, 6))),
        "texts": lambda: 8 + round(draw.lognormvariate(4, 0.9)),
        "paragraphs": lambda: draw.choice((0, 257, 514)) + draw.randint(20, 400),
    }
    return [of_kind[kind]() for _ in range(count)]


KINDS = ("captions", "conversations", "texts", "paragraphs")


class Sized(Dataset):
    """Items that are so many tokens, and a random number."""

    def __init__(self, tokens: Sequence[int]):
        self.tokens = tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict:
        return {"number": index, "tokens": self.tokens[index], "drawn": random.random()}

    def collater(self, items: list[dict]) -> dict:
        return {key: [item[key] for item in items] for key in items[0]}


class Numbered(IterableDataset):
    """The same as an endless stream that knows positions, over and over in its order."""

    def __init__(self, tokens: Sequence[int]):
        self.items = Sized(tokens)
        self.collater = self.items.collater
        self.first = 0

    def __len__(self) -> int:
        return len(self.items) // ranks.world_size()

    def items_at(self, positions: Sequence[int]) -> list[dict]:
        return [{**self.items[p % len(self.items)], "drawn": p} for p in positions]

    def start_at(self, position: int) -> None:
        self.first = position

    def __iter__(self) -> Iterator[dict]:
        worker = torch.utils.data.get_worker_info()
        mine, others = (worker.id, worker.num_workers) if worker else (0, 1)
        start, stride = self.first + ranks.rank(), ranks.world_size()
        batch = mine
        while True:
            for place in range(4 * batch, 4 * batch + 4):
                yield from self.items_at([start + place * stride])
            batch += others

    def state_dict(self) -> dict:
        return {"items": self.first}

    def load_state_dict(self, state: dict) -> None:
        self.first = state["items"]


def count(batch: dict) -> int:
    return sum(batch["tokens"])


def data_of(tokens: Sequence[int], budget: int, kind: type = Sized, workers: int = 0) -> TokenData:
    return TokenData(kind(tokens), LoaderSettings(8, workers), seed=3, budget=TokenBudget(budget, count))


def take(data: TrainingData, number: int) -> list[dict]:
    """The next batches, each trained on."""
    found = []
    batches = data.batches(START)
    for _ in range(number):
        found.append(next(batches))
        data.note(found[-1])
    return found


@pytest.fixture
def as_rank(monkeypatch):
    """Let this process be one of several."""

    def become(rank: int, world: int) -> None:
        monkeypatch.setattr(ranks, "rank", lambda: rank)
        monkeypatch.setattr(ranks, "world_size", lambda: world)

    return become


@pytest.mark.parametrize("seed", range(20))
def test_a_batch_begins_with_the_first_item_and_keeps_the_budget(seed):
    tokens = lengths(KINDS[seed % 4], 40, seed)
    budget = random.Random(seed).choice((600, 1500, 2048, 8192))
    chosen = fill(tokens, budget)
    assert chosen[0] == 0 and len(set(chosen)) == len(chosen)
    assert sum(tokens[number] for number in chosen) <= budget or len(chosen) == 1
    room = budget - sum(tokens[number] for number in chosen)
    assert all(tokens[number] > room for number in range(40) if number not in chosen)


def test_what_is_larger_than_the_budget_is_alone():
    assert fill([900, 10, 20], 500) == [0]
    assert fill([10, 900, 20], 500) == [0, 2]
    assert fill([500], 500) == [0]


@pytest.mark.parametrize("source", [Sized, Numbered])
@pytest.mark.parametrize("kind", KINDS)
def test_ranks_read_as_much_as_each_other_in_every_step(kind, source, as_rank):
    tokens, world, steps = lengths(kind, 700), 4, 20
    found = []
    for rank in range(world):
        as_rank(rank, world)
        found.append([count(batch) for batch in take(data_of(tokens, 4096, source), steps)])
    for of_ranks in zip(*found, strict=True):
        assert max(of_ranks) <= 4096 and min(of_ranks) >= 0.95 * max(of_ranks)
    assert sum(map(sum, found)) > 0.95 * 4096 * world * steps


@pytest.mark.parametrize("source", [Sized, Numbered])
def test_every_item_comes_once_in_a_pass_and_none_waits_for_long(source, as_rank):
    tokens = lengths("conversations", 96)
    found: Counter[int] = Counter()
    for rank in range(3):
        as_rank(rank, 3)
        read = [number for batch in take(data_of(tokens, 2048, source), 40) for number in batch["number"]]
        found.update(read[:64])  # two passes of this rank's share of 32
        late = [number for number in range(0 if source is Sized else rank, 96, 1 if source is Sized else 3)]
        assert source is Sized or set(read[:60]) >= set(late[:20])
    if source is Sized:
        assert len(found) == 96 and max(found.values()) <= 3


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("source", [Sized, Numbered])
def test_it_goes_on_with_the_very_next_batch_from_any_place(source, workers, as_rank):
    as_rank(1, 2)
    tokens = lengths("paragraphs", 50)
    whole = take(data_of(tokens, 2048, source), 24)
    for stop in (1, 2, 7, 13) if workers == 0 else (5,):
        begun = data_of(tokens, 2048, source, workers)
        assert take(begun, stop) == whole[:stop]
        next(begun.batches(START))  # read ahead, and not trained on
        state = json.loads(json.dumps(begun.state_dict()))
        begun.close()
        resumed = data_of(tokens, 2048, source, workers)
        resumed.load_state_dicts([state, state])
        assert take(resumed, 24 - stop) == whole[stop:]
        resumed.close()


@pytest.mark.parametrize("source", [Sized, Numbered])
@pytest.mark.parametrize(("before", "after"), [(3, 2), (2, 3), (1, 4), (4, 1)])
def test_another_number_of_ranks_neither_drops_nor_repeats_an_item(before, after, source, as_rank):
    tokens = lengths("conversations", 200)
    states, seen = [], Counter()
    for rank in range(before):
        as_rank(rank, before)
        data = data_of(tokens, 2048, source)
        seen.update(number for batch in take(data, 3 + rank % 2) for number in batch["number"])
        states.append(data.state_dict())
    for rank in range(after):
        as_rank(rank, after)
        data = data_of(tokens, 2048, source)
        data.load_state_dicts(states)
        # Behind what is left of the first pass every rank reads on in the second: of it as much as of none.
        rest = data.state_dict()
        left = set(rest["held"]) | set(range(rest["next"], 200, after))
        order = EndlessItems(Sized(tokens), seed=3)
        seen.update(order[position]["number"] if source is Sized else position for position in left)
    assert seen == Counter(range(200))


def test_a_pass_is_estimated_and_alike_on_all_ranks(as_rank):
    tokens = lengths("captions", 1000)
    as_rank(0, 2)
    first = data_of(tokens, 4096).batches_per_epoch
    as_rank(1, 2)
    assert data_of(tokens, 4096).batches_per_epoch == first == pytest.approx(sum(tokens) / 4096 / 2, rel=0.05)


def test_the_place_of_another_kind_of_batches_is_told(caplog):
    data = data_of(lengths("captions", 10), 1000)
    for states in ([], [None], [{"items": 3}]):
        caplog.clear()
        data.load_state_dicts(states)
        assert "starts from its beginning" in caplog.text


def test_mixtures_are_of_tokens_and_resume():
    settings, budget = LoaderSettings(8), TokenBudget(2048, count)
    sets = {"a": {"train": Sized(lengths("captions", 40))}, "b": {"train": Numbered(lengths("texts", 90))}}

    def make():
        return training_data(sets, ["train"], {"a": 1, "b": 3}, settings, 5, budget)

    whole = take(make(), 16)
    assert [count(batch) > 1900 for batch in whole] == [True] * 16
    begun = make()
    take(begun, 5)
    state = begun.state_dict()
    resumed = make()
    resumed.load_state_dicts([state])
    assert take(resumed, 11) == whole[5:]
    unlike = training_data(sets, ["train"], None, settings, 5, budget)
    assert len(take(unlike, 4)) == 4


def test_streams_without_positions_start_over_and_those_with_half_of_them_are_refused():
    class Plain(IterableDataset):
        collater = Sized([]).collater

        def __iter__(self):
            return iter([Sized([700, 300, 600, 500])[n] for n in range(4)])

    data = TokenData(Plain(), LoaderSettings(8), 0, TokenBudget(1000, count))
    assert [batch["tokens"] for batch in data.batches(START)] == [[700, 300], [600], [500]]
    assert data.batches_per_epoch is None and data.state_dict()["source"] is None

    class Resumable(Plain):
        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

    with pytest.raises(ConfigError, match="run.tokens_per_batch needs items that can be read again, .*Resumable"):
        TokenData(Resumable(), LoaderSettings(8), 0, TokenBudget(1000, count))


@pytest.mark.parametrize("family", ["llama", "opt", "mpt"])
@pytest.mark.parametrize("frames", [1, 3])
def test_the_tokens_that_are_counted_are_those_that_the_model_reads(family, frames):
    from gitllm_plugin.modeling import make_text_encoder

    git_llm, tokenizer = build_git_llm(f"tiny:{family}", "tiny:clip", max_images=3, trainable="proj")
    model: Any = cast(Any, GitLLMForLavis)(git_llm, make_text_encoder(git_llm.language_model, tokenizer))
    real = [frames, max(1, frames - 1)]
    samples = {
        "image": torch.zeros(2, frames, 3, 32, 32) if frames > 1 else torch.zeros(2, 3, 32, 32),
        "image_index": torch.tensor([0, 0, 1]),
        "text_input": ["what color is it?", "a longer question: " * 4, "is it red?"],
        "text_output": ["red", "a red circle", "no"],
        **({"num_images": torch.tensor(real)} if frames > 1 else {}),
    }
    seen = []
    handle = git_llm.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    model(samples)
    handle.remove()
    counted = model.count_tokens(samples)
    texts = model.text_encoder.prompts_and_answers(samples["text_input"], samples["text_output"]).attention_mask
    assert counted == int(texts.sum()) + sum(real) * 17
    if git_llm.decoder.attention_path == "stream":
        assert seen == [(1, counted)]


def shards_config(tmp_path):
    path = write_small_run(tmp_path, TINY_LORA, lr_sched="constant")
    content = OmegaConf.load(path)
    groups = make_groups(tmp_path / "train.jsonl", "toy", "train", rows=24, texts_per_image=2)
    groups += make_groups(tmp_path / "val.jsonl", "toy", "val", rows=7, seed=1)
    groups += make_groups(tmp_path / "test.jsonl", "toy", "test", rows=7, seed=2)
    write_shards(tmp_path / "shards", groups)
    content.datasets = {
        "m3it_wds": {
            "texts_per_image": 2,
            "vis_processor": content.datasets.m3it.vis_processor,
            "build_info": {"shards": str(tmp_path / "shards")},
        }
    }
    OmegaConf.save(content, path)
    return path


@pytest.mark.parametrize(("rank", "world"), [(0, 1), (1, 2), (2, 3)])
def test_shards_give_a_rank_the_items_of_its_positions(tmp_path, rank, world):
    gitllm_plugin.register()
    from lavis.datasets.builders import load_dataset
    from torch.testing._internal.distributed.fake_pg import FakeStore

    data = tmp_path / "data.yaml"
    OmegaConf.save({"datasets": OmegaConf.load(shards_config(tmp_path)).datasets}, data)
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    try:
        stream = load_dataset("m3it_wds", str(data))["train"]
        stream.set_batch_size(4)
        stream.start_at(6)
        read = list(itertools.islice(stream, 10))
        again = stream.items_at([6 + rank + world * place for place in range(10)])
        assert [item["texts"] for item in read] == [item["texts"] for item in again]
        assert all(torch.equal(a["image"], b["image"]) for a, b in zip(read, again, strict=True))
    finally:
        torch.distributed.destroy_process_group()


def lines_of(output) -> list[tuple[float, int]]:
    lines = map(json.loads, (output / "latest" / "metrics.jsonl").read_text().splitlines())
    return [(line["loss"], line["samples"]) for line in lines]


@pytest.mark.parametrize("kind", ["files", "shards"])
def test_a_run_that_was_stopped_goes_on_as_the_run_that_was_not(tmp_path, kind):
    files = kind == "files"
    config = write_small_run(tmp_path, TINY_LORA, lr_sched="constant") if files else shards_config(tmp_path)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = ["run.tokens_per_batch=260", "run.max_epoch=3", "run.valid_splits=[]", "run.test_splits=[]"]
    runner = launch.train(config, [*options, f"run.output_dir={whole}"])
    expected = lines_of(whole)
    assert len(expected) == 3 * runner.parts.length.iters_per_epoch > 8
    launch.train(config, [*options, f"run.output_dir={parts}", "run.max_iters=4"])
    assert lines_of(parts) == expected[:4]
    launch.train(config, [*options, f"run.output_dir={parts}", "run.resume_ckpt_path=auto"])
    assert lines_of(parts) == expected


@pytest.mark.slow
@pytest.mark.parametrize("place", [("step", 5), ("stepped", 7), ("unlinked", 2)])
def test_a_run_that_was_killed_goes_on_as_the_run_that_was_not(tmp_path, place):
    """SIGKILL before a step, behind a step's record, and in the middle of naming a checkpoint."""
    config = write_small_run(tmp_path, TINY_LORA, lr_sched="constant", save_every_steps=2)
    keys = ["run.tokens_per_batch=260", "run.max_epoch=3", "run.valid_splits=[]", "run.test_splits=[]"]
    script = str(Path(__file__).with_name("killed_run.py"))
    outputs = [tmp_path / "whole", tmp_path / "killed"]
    launch.train(config, [*keys, f"run.output_dir={outputs[0]}"])
    keys += [f"run.output_dir={outputs[1]}", "run.resume_ckpt_path=auto"]
    command = [sys.executable, script, place[0], str(place[1]), "train", "--cfg-path", str(config), "--options", *keys]
    killed = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    launch.train(config, keys)
    assert lines_of(outputs[1]) == lines_of(outputs[0])
    weights = [load_file(output / "latest" / "checkpoint_latest.safetensors") for output in outputs]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
