"""Items of shards, and the order and shares in which training takes them."""

from collections import Counter

import numpy as np
import pytest

from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.m3it.shards.folder import ShardFolder
from gitllm_plugin.m3it.shards.mixture import EpochOrder, ItemTable, choose_quotas
from tests.m3it_shards import make_groups, write_shards


@pytest.fixture
def groups(tmp_path):
    a = make_groups(tmp_path / "a.jsonl", "a", "train", rows=28, texts_per_image=3)  # 10 records, the last of one text
    b = make_groups(tmp_path / "b.jsonl", "b", "train", rows=5, seed=1)
    return [*a, *b]


@pytest.fixture
def manifest(tmp_path, groups):
    return write_shards(tmp_path / "shards", groups)


def table_of(manifest, texts_per_image=1, configs=("a", "b")) -> ItemTable:
    return ItemTable(manifest, configs, "train", texts_per_image)


@pytest.mark.parametrize("texts_per_image, counts", [(1, [28, 5]), (2, [19, 5]), (3, [10, 5]), (16, [10, 5])])
def test_items_are_records_or_parts_of_them(manifest, groups, tmp_path, texts_per_image, counts):
    table = table_of(manifest, texts_per_image)
    assert [len(table.config_items(name)) for name in "ab"] == counts
    folder = ShardFolder(str(tmp_path / "shards"))
    texts = []
    for number in range(len(table)):
        item = table[number]
        group = folder.read(item)
        assert 1 <= len(group.texts[item.texts]) <= texts_per_image
        texts += group.texts[item.texts]
    assert texts == [text for group in groups for text in group.texts]
    assert (table.num_records, table.num_texts) == (15, 33)


def test_a_configuration_without_the_split_is_passed_over(manifest):
    assert list(table_of(manifest, configs=("b",)).config_shards) == ["b"]
    with pytest.raises(DataError, match="none of a, b has a split 'val'"):
        ItemTable(manifest, ("a", "b"), "val", 1)


def order_of(manifest, quotas=None, **keys) -> EpochOrder:
    table = table_of(manifest)
    quotas = quotas or choose_quotas({name: len(table.config_items(name)) for name in table.config_shards})
    return EpochOrder(table, quotas, **{"seed": 1, "shuffle_shards": 2, **keys})


def test_by_default_an_epoch_has_every_item_once(manifest):
    order = order_of(manifest)
    epochs = [order.of_epoch(epoch) for epoch in (0, 1)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(33))] * 2
    assert not np.array_equal(*epochs)
    assert np.array_equal(order_of(manifest).of_epoch(1), epochs[1])
    assert not np.array_equal(order_of(manifest, seed=2).of_epoch(1), epochs[1])


def test_positions_run_on_from_epoch_to_epoch(manifest):
    order = order_of(manifest)
    assert [order.item_at(position) for position in (40, 0, 33)] == [
        order.of_epoch(1)[7],
        order.of_epoch(0)[0],
        order.of_epoch(1)[0],
    ]
    assert order.item_at(32, further=1) == order.of_epoch(0)[0]


def test_shares_are_exact_in_every_epoch_and_no_item_is_favoured(manifest):
    order = order_of(manifest, quotas={"a": 8, "b": 12})
    seen = Counter()
    for epoch in range(7):
        items = order.of_epoch(epoch)
        assert sum(items < 28) == 8 and len(items) == 20
        seen.update(items.tolist())
    assert {seen[item] for item in range(28)} == {2}  # 7 x 8 are two passes of 28
    assert {seen[item] for item in range(28, 33)} == {16, 17}  # 7 x 12 are 16.8 passes of 5


def test_configurations_are_mixed_throughout(manifest):
    small = order_of(manifest).of_epoch(0) >= 28
    assert small[:17].any() and small[17:].any()


def test_few_shards_are_open_at_a_time(manifest):
    order = order_of(manifest, shuffle_shards=1)
    items = order.of_epoch(0)
    shards = [order.table[int(item)].shard.file for item in items if item < 28]
    changes = sum(before != after for before, after in zip(shards, shards[1:], strict=False))
    assert changes == 2  # three files, one after the other


def test_quotas():
    counts = {"a": 900, "b": 90, "c": 10}
    assert choose_quotas(counts) == counts
    assert choose_quotas(counts, temperature=float("inf")) == {"a": 334, "b": 333, "c": 333}
    assert choose_quotas(counts, temperature=2) == {"a": 703, "b": 223, "c": 74}
    assert choose_quotas(counts, weights={"a": 1, "b": 2, "c": 1}, items_per_epoch=10) == {"a": 3, "b": 5, "c": 2}
    assert sum(choose_quotas({"a": 1, "b": 1, "c": 1}, items_per_epoch=1_000_003).values()) == 1_000_003


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"weights": {"a": 1}}, "'b' has no weight. Give each of a, b a number above 0"),
        ({"weights": {"a": 1, "b": 0}}, "'b' has the weight 0"),
        ({"weights": {"a": 1, "b": 1, "x": 1}}, "'x' is not among the data"),
        ({"weights": {"a": 1, "b": 1}, "temperature": 2.0}, "leave temperature out"),
        ({"temperature": 0}, "temperature is 0, expected more than 0"),
        ({"items_per_epoch": 0}, "items_per_epoch is 0, expected 1 or more"),
    ],
)
def test_wrong_mixture(keys, message):
    with pytest.raises(ConfigError, match=message):
        choose_quotas({"a": 5, "b": 5}, **keys)
