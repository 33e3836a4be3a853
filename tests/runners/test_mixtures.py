"""Shares of a mixture are exact at any time, and what comes next follows from what has been."""

import random
from collections import Counter
from fractions import Fraction

import pytest
import torch
from tiny_run import TinyData, TinyStream
from torch.utils.data import Dataset

from gitllm_plugin.runners.length import Position
from gitllm_plugin.runners.loaders import LoaderSettings
from gitllm_plugin.runners.training_data import next_in_turn, training_data

SETTINGS = LoaderSettings(batch_size=2)


@pytest.mark.parametrize("seed", range(25))
def test_shares_are_kept_to_within_one_draw(seed):
    draw = random.Random(seed)
    weights = {str(n): Fraction(draw.choice([1, 3, 7, 50, draw.randint(1, 999)])) for n in range(draw.randint(2, 9))}
    shares = {name: weight / sum(weights.values()) for name, weight in weights.items()}
    counts = dict.fromkeys(shares, 0)
    for drawn in range(1, 400):
        counts[next_in_turn(shares, counts)] += 1
        assert all(abs(counts[name] - share * drawn) < 1 for name, share in shares.items())


class Captions(Dataset):
    """Items of another form than those of `TinyData`, with a collater of their own."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return {"caption": f"caption {index}"}

    def collater(self, items):
        return {"caption": [item["caption"] for item in items]}


class Labels(Captions):
    """Items that have a label besides."""

    def __getitem__(self, index):
        return {**super().__getitem__(index), "label": index}

    def collater(self, items):
        return {**super().collater(items), "label": torch.tensor([item["label"] for item in items])}


def kind_of(batch):
    return "labels" if "label" in batch else "captions" if "caption" in batch else "tiny"


def first(data, count, at=0):
    batches = data.batches(Position(epoch_iter=at))
    return [kind_of(next(batches)) for _ in range(count)]


def of(ratios, **datasets):
    return training_data({name: {"train": each} for name, each in datasets.items()}, ["train"], ratios, SETTINGS, 7)


def test_without_ratios_an_epoch_has_every_batch_of_all_kinds_once():
    data = of(None, tiny=TinyData(12), captions=Captions(20), labels=Labels(6))
    assert data.batches_per_epoch == 6 + 10 + 3
    for _ in range(3):
        batches = data.batches(Position())
        epoch = [next(batches) for _ in range(data.batches_per_epoch)]
        assert Counter(map(kind_of, epoch)) == {"tiny": 6, "captions": 10, "labels": 3}
        assert sorted(label for batch in epoch for label in batch.get("label", torch.empty(0)).tolist()) == list(
            range(6)
        )


def test_data_sets_of_one_class_are_one():
    data = of(None, one=Captions(5), other=Captions(6))
    assert not data.streaming
    assert data.batches_per_epoch == 5


@pytest.mark.parametrize(
    ("ratios", "shares"),
    [
        ({"tiny": 3, "captions": 1, "labels": 1}, {"tiny": 12, "captions": 4, "labels": 4}),
        ({"tiny": 0.1, "captions": 0.3, "labels": 0.6}, {"tiny": 2, "captions": 6, "labels": 12}),
        ({"tiny": 1e-3, "captions": 5e-4, "labels": 1e-3}, {"tiny": 8, "captions": 4, "labels": 8}),
    ],
)
def test_with_ratios_twenty_batches_have_exactly_their_shares(ratios, shares):
    data = of(ratios, tiny=TinyData(12), captions=Captions(20), labels=Labels(6))
    assert data.batches_per_epoch == 19
    assert Counter(first(data, 20)) == shares


def test_a_stream_takes_as_many_turns_as_all_others_together():
    data = of(None, stream=TinyStream(TinyData(8)), captions=Captions(20), labels=Labels(10))
    assert data.batches_per_epoch is None
    assert Counter(first(data, 30)) == {"tiny": 15, "captions": 10, "labels": 5}


@pytest.mark.parametrize("stopped_after", [1, 7, 23])
def test_it_goes_on_behind_what_was_trained_on(stopped_after):
    ratios = {"tiny": 2, "captions": 1.5, "labels": 0.5}

    def made():
        return of(ratios, tiny=TinyData(12), captions=Captions(20), labels=Labels(6))

    whole = made().batches(Position())
    wanted = [str(next(whole)) for _ in range(40)]
    cut = made()
    batches = cut.batches(Position())
    for _ in range(stopped_after):
        cut.note(next(batches))
    ahead = [next(batches), next(batches)]  # read and never trained on
    assert ahead
    resumed = made()
    resumed.load_state_dicts([cut.state_dict()])
    rest = resumed.batches(Position(epoch_iter=stopped_after))
    assert [str(next(rest)) for _ in range(40 - stopped_after)] == wanted[stopped_after:]
