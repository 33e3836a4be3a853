"""The m3it_wds data set: the items of m3it, dealt out to ranks and workers, at the same place after a stop."""

import logging
import multiprocessing
import pickle
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import webdataset as wds
from lavis.datasets.builders import load_dataset
from lavis.datasets.data_utils import concat_datasets, reorg_datasets_by_split
from lavis.runners.runner_iter import RunnerIter
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from gitllm_plugin.datasets.builders import m3it_builder  # noqa: F401 - registers them
from gitllm_plugin.datasets.datasets.m3it_shards import M3ITShards
from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.m3it.catalog import get_preset
from gitllm_plugin.m3it.group import Group, Text
from gitllm_plugin.m3it.problems import RowError
from gitllm_plugin.m3it.shards.make import make_shards
from gitllm_plugin.m3it.shards.plan import Settings
from gitllm_plugin.m3it.tree import find_tree
from gitllm_plugin.processors import git_llm_image, git_llm_instruction  # noqa: F401 - registers them
from tests.m3it_files import encode, write_m3it_jsonl
from tests.m3it_shards import make_groups, write_shards
from tests.photos import open_photo

IMAGE = {"image_size": 8}


def write_data(folder) -> None:
    """The same rows twice: as `a.jsonl` and `b.jsonl`, and as shards."""
    groups = make_groups(folder / "a.jsonl", "a", "train", rows=28, texts_per_image=3)
    groups += make_groups(folder / "b.jsonl", "b", "train", rows=5, seed=1, images_per_row=2)
    groups += [Group(g.config, "val", g.number, g.images, g.texts) for g in groups]
    write_shards(folder / "shards", groups)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("m3it_wds")
    write_data(folder)
    return folder


def load(folder, name: str = "m3it_wds", **keys) -> dict[str, M3ITShards]:
    if name == "m3it_wds":
        keys.setdefault("build_info", {"shards": str(folder / "shards")})
    node = {"vis_processor": {"train": IMAGE, "eval": IMAGE}, **keys}
    path = folder / "data.yaml"
    OmegaConf.save(OmegaConf.create({"datasets": {name: node}}), path)
    return load_dataset(name, str(path))


def loader_of(stream: M3ITShards, batch_size: int, workers: int) -> DataLoader:
    stream.set_batch_size(batch_size)
    return DataLoader(stream, batch_size=batch_size, num_workers=workers, collate_fn=stream.collater)


def take(stream: M3ITShards, batches: int, batch_size: int = 4, workers: int = 0) -> list[list[str]]:
    """The ids of the next batches, each noted as trained on."""
    iterator = iter(loader_of(stream, batch_size, workers))
    taken = []
    for _ in range(batches):
        batch = next(iterator)
        stream.note_batch(batch)
        taken.append(batch["instance_id"])
    return taken


@pytest.mark.parametrize("texts_per_image", [1, 2, 16, "all"])
def test_items_are_those_of_the_map_style_data_set(data, texts_per_image):
    keys = {"texts_per_image": texts_per_image, "eval_texts_per_image": texts_per_image}
    storage = {"train": {"storage": str(data / "[ab].jsonl")}, "val": {"storage": str(data / "[ab].jsonl")}}
    by_row = load(data, "m3it", build_info={"annotations": storage}, **keys)
    by_shard = load(data, **keys)
    for split in ("train", "val"):
        expected = [by_row[split][index] for index in range(len(by_row[split]))]
        stream = iter(by_shard[split])
        items = [next(stream) for _ in range(len(by_shard[split]))]
        assert len(items) == len(expected)
        if split == "train":
            items.sort(key=lambda item: [text["instance_id"] for text in item["texts"]])
            expected.sort(key=lambda item: [text["instance_id"] for text in item["texts"]])
        for item, other in zip(items, expected, strict=True):
            assert item["texts"] == other["texts"]
            assert torch.equal(item["image"], other["image"])
            assert item["image"].dtype == torch.uint8


def test_shards_of_a_tree_have_the_items_of_the_tree(tmp_path):
    """`gitllm m3it shard` in between: texts of one image are one record, whose images keep their bytes."""
    for name, keys in (("toy", {"texts_per_image": 3}), ("pairs", {"images_per_row": 2})):
        write_m3it_jsonl(tmp_path / "tree" / name / "train.jsonl", rows=9, config=name, **keys)
    make_shards(find_tree(tmp_path / "tree", ["toy", "pairs"]), tmp_path / "shards", Settings(20_000))
    info = {"root": str(tmp_path / "tree"), "configs": ["toy", "pairs"], "index_folder": str(tmp_path / "index")}
    by_row = load(tmp_path, "m3it_instruct", build_info=info, texts_per_image=2)["train"]
    by_shard = load(tmp_path, texts_per_image=2)["train"]
    assert len(by_shard.table.shards) > 2
    ids = [text["instance_id"] for item in by_row for text in item["texts"]]
    stream = iter(by_shard)
    items = {item["texts"][0]["instance_id"]: item for item in (next(stream) for _ in range(len(by_shard)))}
    assert len(ids) == len(set(ids)) == 18
    assert len(items) == len(by_row) == 6 + 9
    for expected in by_row:
        found = items[expected["texts"][0]["instance_id"]]
        assert found["texts"] == expected["texts"]
        assert torch.equal(found["image"], expected["image"])


def test_lavis_takes_it(data):
    splits = load(data)
    assert isinstance(splits["train"], wds.DataPipeline)
    assert (len(splits["train"]), splits["train"].num_examples) == (33, 33)
    chain = concat_datasets(reorg_datasets_by_split({"m3it_wds": splits}))["train"]
    batch = next(iter(DataLoader(chain, batch_size=3, num_workers=1)))  # as the host does, with torch's own collate
    assert batch["image"].shape[0] == len(batch["text_input"]) == len(batch["image_mean"]) == 3
    assert splits["train"].describe()["configs"] == {"a": 28, "b": 5}


def evaluate_as_rank(rank: int, world: int, folder, workers: int, results) -> None:
    store = f"file://{folder}/store-{world}-{workers}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    stream = load(folder, texts_per_image=1, eval_texts_per_image=1)["val"]
    loader = loader_of(stream, batch_size=4, workers=workers)
    results.put((rank, len(loader), [batch["instance_id"] for batch in loader]))
    dist.destroy_process_group()


@pytest.mark.parametrize("workers", [0, 2])
def test_two_ranks_and_two_workers_share_evaluation_exactly(tmp_path, workers):
    write_data(tmp_path)
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    ranks = [context.Process(target=evaluate_as_rank, args=(r, 2, tmp_path, workers, results)) for r in range(2)]
    for process in ranks:
        process.start()
    found = sorted(results.get() for _ in ranks)
    for process in ranks:
        process.join()
    ids = [name for _, _, batches in found for batch in batches for name in batch]
    assert len(ids) == len(set(ids)) == 33
    assert [length for _, length, _ in found] == [5, 4]  # 17 and 16 items
    assert [[len(batch) for batch in batches] for _, _, batches in found] == [[4, 4, 4, 4, 1], [4, 4, 4, 4]]


def test_batches_do_not_depend_on_the_number_of_workers(data):
    expected = take(load(data)["train"], batches=20, workers=0)  # more than two epochs
    for workers in (1, 3):
        assert take(load(data)["train"], batches=20, workers=workers) == expected
    names = [name for batch in expected for name in batch]
    assert sorted(names[:33]) == sorted(names[33:66])
    assert names[:33] != names[33:66]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_training_resumes_at_the_very_next_sample(data, workers):
    expected = take(load(data)["train"], batches=14)
    first = load(data)["train"]
    assert take(first, batches=5, workers=workers) == expected[:5]
    state = pickle.loads(pickle.dumps(first.state_dict()))
    second = load(data)["train"]
    second.load_state_dict(state)
    assert take(second, batches=9, workers=3 - workers) == expected[5:]
    assert second.state_dict()["items"] == 14 * 4


def as_rank(stream: M3ITShards, rank: int, world: int) -> M3ITShards:
    stream._ranks = (rank, world)
    return stream


def test_each_rank_may_evaluate_on_everything(data):
    stream = as_rank(load(data, eval_texts_per_image=1)["val"], 1, 2)
    assert len(stream) == len(list(stream)) == 16
    stream.set_shared(False)
    assert len(stream) == len(list(stream)) == 33


def test_another_number_of_ranks_goes_on_with_the_next_sample(data):
    everything = [name for batch in take(load(data)["train"], batches=12, batch_size=4) for name in batch]
    both = [take(as_rank(load(data)["train"], rank, 2), batches=3, batch_size=4) for rank in (0, 1)]
    for step in range(3):
        together = {name for rank in both for name in rank[step]}
        assert together == set(everything[8 * step : 8 * step + 8])
    stopped = as_rank(load(data)["train"], 1, 2)
    take(stopped, batches=3, batch_size=4)
    alone = load(data)["train"]
    alone.load_state_dicts([stopped.state_dict()] * 2)
    assert [name for batch in take(alone, batches=4, batch_size=6) for name in batch] == everything[24:48]


def test_a_stream_can_be_pickled_into_workers(data):
    stream = as_rank(load(data)["train"], 1, 2)
    stream.set_batch_size(3)
    stream.skip_batches(2)
    copy = pickle.loads(pickle.dumps(stream))
    assert take(copy, batches=4, batch_size=3) == take(stream, batches=4, batch_size=3)


def test_a_loader_of_another_batch_size_is_noticed(data):
    stream = load(data)["train"]
    stream.set_batch_size(3)
    batch = next(iter(DataLoader(stream, batch_size=4)))
    with pytest.raises(DataError, match=r"a batch of 4 items, but the stream was told 3: call set_batch_size\(4\)"):
        stream.note_batch(batch)


def test_a_state_of_other_data_is_said_to_be_one(data, caplog):
    state = load(data)["train"].state_dict()
    stream = load(data, seed=7, weights={"a": 1, "b": 1})["train"]
    with caplog.at_level(logging.WARNING):
        stream.load_state_dict({**state, "items": 9})
    assert "ordered otherwise than before (seed, configs changed)" in caplog.text
    assert stream.state_dict()["items"] == 9


def test_runners_without_state_count_batches(data):
    expected = take(load(data)["train"], batches=6)
    stream = load(data)["train"]
    stream.set_batch_size(4)
    stream.skip_batches(2)
    assert take(stream, batches=4) == expected[2:]


def test_the_hosts_runner_evaluates_as_often_as_it_likes_and_resumes(data):
    """`create_loaders` of LAVIS's runners, with what it makes of a training stream before."""
    runner = object.__new__(RunnerIter)
    runner.start_iters = 2
    runner.config = SimpleNamespace(run_cfg={"use_dist_eval_sampler": False})
    splits = load(data)
    datasets = concat_datasets(reorg_datasets_by_split({"m3it_wds": splits}))
    train, val = runner.create_loaders(
        [datasets["train"], datasets["val"]], 0, [4, 5], [True, False], [None, splits["val"].collater]
    )
    assert next(train)["instance_id"] == take(load(data)["train"], batches=3)[2]
    assert not splits["val"].shared
    for _ in range(2):
        ids = [name for batch in val for name in batch["instance_id"]]
        assert len(ids) == len(set(ids)) == 33
    assert len(val) == len(list(val))


def test_shards_on_a_server_through_worker_processes(data, tmp_path):
    handler = partial(SimpleHTTPRequestHandler, directory=str(data / "shards"))
    handler.log_message = lambda *args: None
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        info = {"shards": f"http://127.0.0.1:{server.server_address[1]}"}
        remote = load(data, build_info=info, cache_dir=str(tmp_path / "cache"))["train"]
        found = take(remote, batches=8, workers=2)
        server.shutdown()
    assert found == take(load(data)["train"], batches=8)


def test_random_crops_belong_to_the_position(data):
    keys = {"vis_processor": {"train": {**IMAGE, "random_resized_crop": [0.2, 0.6]}, "eval": IMAGE}}

    def images(workers: int) -> torch.Tensor:
        stream = load(data, build_info={"shards": str(data / "shards"), "configs": "a"}, **keys)["train"]
        iterator = iter(loader_of(stream, 4, workers))
        return torch.cat([next(iterator)["image"] for _ in range(10)])

    torch.manual_seed(0)
    first = images(0)
    assert torch.equal(images(2), first)
    assert not torch.equal(first[:28].sort(0)[0], first[28:].sort(0)[0])  # epochs differ in their crops


def test_shares_of_configurations(data):
    stream = load(data, weights={"a": 3, "b": 1}, items_per_epoch=8)["train"]
    names = [name for batch in take(stream, batches=6) for name in batch]
    for epoch in range(3):
        assert sum(name.startswith("b") for name in names[8 * epoch : 8 * epoch + 8]) == 2
    assert len(stream) == 8
    assert stream.describe()["per_epoch"] == {"a": 6, "b": 2}


@pytest.fixture
def damaged(tmp_path):
    """Ten photographs, of which one breaks off, in three shards, of which the last breaks off in its second record."""
    photo = encode(open_photo(64, 48), "JPEG")
    broken = photo[: len(photo) // 2]
    groups = [
        Group("p", split, n, (broken if n == 1 else photo,), (Text(f"p{n}", "p", "Say.", "", ("x",)),))
        for split in ("train", "val")
        for n in range(10)
    ]
    manifest = write_shards(tmp_path / "shards", groups)
    for split in ("train", "val"):
        shard = manifest.configs["p"][split].shards[2]
        path = tmp_path / "shards" / shard.file
        path.write_bytes(path.read_bytes()[: 512 * int(shard.record_blocks.split()[0]) + 700])
    return tmp_path


def test_damage_stops_a_run(damaged):
    with pytest.raises(DataError, match="1 of 3 shards of train are damaged:\n.*000002.tar has .* bytes\nCopy them"):
        load(damaged)
    stream = load(damaged, on_error="skip")["val"]
    stream.on_error = "stop"
    items = iter(stream)
    next(items)
    with pytest.raises(RowError, match="example 'p1' in p/val/000000.tar: the image is broken"):
        next(items)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_goes_without_what_is_damaged(damaged, workers, caplog):
    stream = load(damaged, on_error="skip")["val"]
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            ids = [name for batch in loader_of(stream, 4, workers) for name in batch["instance_id"]]
            assert sorted(ids) == [f"p{n}" for n in (0, 2, 3, 4, 5, 6, 7, 8)]
            assert stream.count_skipped() == {"image_truncated": 1, "shard": 1}
    if workers == 0:
        assert "Skipped: example 'p1' in p/val/000000.tar: the image is broken" in caplog.text
        assert "Split val: worker 0 could not read items: {'image_truncated': 1, 'shard': 1}" in caplog.text


def test_training_takes_the_next_item_instead(damaged, caplog):
    with caplog.at_level(logging.WARNING):
        batches = take(load(damaged, on_error="skip")["train"], batches=5, batch_size=2)
    assert [len(batch) for batch in batches] == [2] * 5
    names = [name for batch in batches for name in batch]
    assert set(names) == {f"p{n}" for n in (0, 2, 3, 4, 5, 6, 7, 8)}
    assert "Skipped: example 'p1' in p/train/000000.tar: the image is broken" in caplog.text
    for workers in (1, 3):
        assert take(load(damaged, on_error="skip")["train"], 5, 2, workers) == batches


def test_nothing_that_can_be_read(damaged, monkeypatch):
    monkeypatch.setattr("gitllm_plugin.datasets.datasets.m3it_shards.MAX_REPLACEMENTS", 20)
    for path in (damaged / "shards" / "p" / "train").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="20 items one after another could not be read: {'shard': 20}"):
        next(iter(load(damaged, on_error="skip")["train"]))


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"build_info": {}}, "names no shards.\nSet datasets.m3it_wds.build_info.shards to the folder or URL"),
        ({"build_info": {"shard": "x"}}, r"unknown key 'shard' \(did you mean 'shards'\?\)"),
        ({"on_error": "ignore"}, "on_error is 'ignore', expected stop or skip"),
        ({"shuffle_shards": 0}, "datasets.m3it_wds.shuffle_shards is 0, expected 1 or more"),
        ({"seed": -1}, "datasets.m3it_wds.seed is -1, expected 0 or more"),
        ({"texts_per_image": 0}, "datasets.m3it_wds.texts_per_image is 0"),
        ({"temperatur": 2}, r"unknown key 'temperatur' \(did you mean 'temperature'\?\)"),
        ({"weights": {"a": 1}}, "datasets.m3it_wds: weights: 'b' has no weight"),
    ],
)
def test_wrong_configuration(data, keys, message):
    with pytest.raises(ConfigError, match=message):
        load(data, **keys)


@pytest.mark.parametrize(
    "choice, message",
    [
        ({"configs": ["a", "c*"]}, r"there are no shards of c\*, but of a, b; make them, or choose among these"),
        ({"preset": "chinese"}, "there are no shards of fm-iqa, .*mmchat, but of a, b; make them"),
        ({"preset": "everything"}, "unknown preset 'everything'; there are: .*article_exp3"),
        ({"preset": "chinese", "configs": "a"}, "has a preset and configs; give one of them"),
        ({"configs": 3}, "configs is 3, expected a name or a list"),
        ({"splits": ["train", "test"]}, "no records of test; a, b have train, val"),
    ],
)
def test_wrong_choice(data, choice, message):
    with pytest.raises(ConfigError, match=message):
        load(data, build_info={"shards": str(data / "shards"), **choice})


def test_choice_of_configurations_and_splits(data):
    splits = load(data, build_info={"shards": str(data / "shards"), "configs": "[b]", "splits": "val"})
    assert list(splits) == ["val"]
    assert splits["val"].describe()["configs"] == {"b": 5}


def test_choice_by_preset(tmp_path):
    """A preset takes its own out of what the shards hold."""
    kvqa = [entry.name for entry in get_preset("kvqa")]
    groups = [
        group for name in ("coco", *kvqa) for group in make_groups(tmp_path / f"{name}.jsonl", name, "test", rows=2)
    ]
    write_shards(tmp_path / "shards", groups)
    chosen = load(tmp_path, build_info={"shards": str(tmp_path / "shards"), "preset": "kvqa"})["test"]
    assert sorted(chosen.table.config_shards) == sorted(kvqa)
    assert len(kvqa) >= 4
