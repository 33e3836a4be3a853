"""Features that were computed before: the same loss as images, and nothing but what the model's encoder made."""

import copy
import itertools
import logging
import pickle
import subprocess
import sys

import pytest
import torch
from omegaconf import OmegaConf

import gitllm_plugin
from gitllm_plugin.datasets.builders.m3it_builder import M3ITWdsBuilder
from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.host import launch
from gitllm_plugin.m3it.group import Group, Text
from gitllm_plugin.m3it.problems import RowError
from gitllm_plugin.m3it.shards import features as features_module
from tests.m3it_shards import make_groups, write_shards
from tests.small_run import ENVIRONMENT

MODEL = {
    "arch": "git_llm",
    "model_type": "tiny_opt",
    "image_encoder": "tiny:clip",
    "max_images": 2,
    "dtype": "float32",
    "lora": {"dropout": 0.0},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    gitllm_plugin.register()
    folder = tmp_path_factory.mktemp("features")
    groups = make_groups(folder / "a.jsonl", "a", "train", rows=14, texts_per_image=3)
    groups += make_groups(folder / "b.jsonl", "b", "train", rows=3, seed=1, images_per_row=2)
    write_shards(folder / "shards", groups)
    write_config(folder)
    assert launch.write_features(folder / "run.yaml").startswith("train: 3 shards encoded, 0 had")
    return folder


def node(folder, **build_info):
    sizes = {"image_size": 32}
    info = {"shards": str(folder / "shards"), **build_info}
    return {"build_info": info, "vis_processor": {"train": sizes, "eval": sizes}, "texts_per_image": "all"}


def write_config(folder, on_error="stop", model=MODEL, **build_info):
    run = {"task": "m3it", "runner": "git_llm", "init_lr": 0.01, "max_iters": 3, "max_epoch": 1, "batch_size_train": 2}
    run |= {"output_dir": str(folder / "output"), "device": "cpu", "train_splits": ["train"], "valid_splits": []}
    config = {
        "model": model,
        "datasets": {"m3it_wds": {**node(folder, **build_info), "on_error": on_error}},
        "run": run,
    }
    OmegaConf.save(OmegaConf.create(config), folder / "run.yaml")


def features_of(folder):
    (found,) = (folder / "shards").glob("features-*")
    return found


def stream_of(folder, **build_info):
    return M3ITWdsBuilder(OmegaConf.create(node(folder, **build_info))).build_datasets()["train"]


def batches(stream, count=4):
    items = iter(stream)
    return [stream.collater([next(items), next(items)]) for _ in range(count)]


def build_model(**changes):
    from gitllm_plugin.models.git_llm import GitLLMForLavis

    torch.manual_seed(0)
    return GitLLMForLavis.from_config({**MODEL, "language_model": "tiny:opt", "trainable": "proj+lora", **changes})


def test_the_loss_is_that_of_images_whose_features_were_rounded(folder):
    model = build_model()
    rounded = copy.deepcopy(model)
    encoder = rounded.model.image_encoder
    forward = encoder.forward
    encoder.forward = lambda pixels: forward(pixels).bfloat16().float()
    for with_features, with_pixels in zip(
        batches(stream_of(folder, features=True)), batches(stream_of(folder)), strict=True
    ):
        assert with_features["instance_id"] == with_pixels["instance_id"]
        assert with_features["image"].dtype == torch.bfloat16 and with_features["image"].shape[-3:] == (1, 17, 48)
        loss = model(with_features)["loss"]
        torch.testing.assert_close(loss, rounded(with_pixels)["loss"], atol=1e-6, rtol=0)
        torch.testing.assert_close(loss, model(with_pixels)["loss"], atol=1e-2, rtol=0)
    assert with_features["image"].ndim in (4, 5)


def test_encoding_again_does_nothing_until_a_file_is_gone(folder):
    assert launch.write_features(folder / "run.yaml").startswith("train: 0 shards encoded, 3 had")
    (features_of(folder) / "b" / "train" / "000000.features.json").unlink()
    with pytest.raises(DataError, match=r"b/train/000000.tar has no features in .*run `gitllm m3it features`"):
        stream_of(folder, features=True)
    assert launch.write_features(folder / "run.yaml").startswith("train: 1 shards encoded, 2 had")


def test_training_reads_features_and_encodes_no_image(folder, monkeypatch, caplog):
    from gitllm_plugin.modeling.vision import ImageEncoder

    write_config(folder, features=str(folder / "shards"))
    with pytest.raises(ConfigError, match="another image encoder made"):
        launch.train(folder / "run.yaml", ["model.vision_layer=-2"])
    assert not (folder / "output").exists()  # it is noticed before anything is done
    monkeypatch.setattr(ImageEncoder, "num_tokens", lambda *args: pytest.fail("an image was encoded"))
    with caplog.at_level(logging.INFO):
        launch.train(folder / "run.yaml")
    assert list((folder / "output").rglob("checkpoint_latest.pth"))
    write_config(folder)


def test_workers_open_files_for_themselves(folder):
    stream = stream_of(folder, features=True)
    first = next(iter(stream))
    again = next(iter(pickle.loads(pickle.dumps(stream))))
    assert torch.equal(first["image"], again["image"]) and first["image_encoder"] == again["image_encoder"]


@pytest.mark.parametrize("kind", ["siglip", "dinov2", "vit"])
@pytest.mark.parametrize("made", ["linear_norm", "linear"])
def test_features_from_before_the_final_norm_and_behind_it_are_not_taken_for_each_other(made, kind, folder, tmp_path):
    """A projection without a norm of its own reads the encoder's, and the other does not."""
    model = {**MODEL, "image_encoder": f"tiny:{kind}", "projection": made}
    write_config(folder, model=model, features=str(tmp_path))
    try:
        launch.write_features(folder / "run.yaml")
    finally:
        write_config(folder)
    (batch,) = batches(stream_of(folder, features=str(tmp_path)), 1)
    settings = {"image_encoder": f"tiny:{kind}", "projection": made}
    assert build_model(**settings)(batch)["loss"] > 0
    other = "linear" if made == "linear_norm" else "linear_norm"
    theirs, ours = ("", ", behind its final norm") if made == "linear_norm" else (", behind its final norm", "")
    with pytest.raises(
        ConfigError,
        match=f"another image encoder made .*\n  theirs: .* layer -1{theirs}, s.*\n.*: .* layer -1{ours}, s",
    ):
        build_model(**settings | {"projection": other})(batch)


def test_features_of_another_encoder_processor_or_for_a_trained_encoder_are_refused(folder):
    (batch,) = batches(stream_of(folder, features=True), 1)
    with pytest.raises(
        ConfigError, match=r"another image encoder made .*:\n  theirs: .* layer -1, .*\n  this model's: .* layer -2"
    ):
        build_model(vision_layer=-2)(batch)
    with pytest.raises(ConfigError, match="features .* computed before, but the image encoder is trained"):
        build_model(trainable="proj+vit")(batch)
    other = node(folder, features=True)
    other["vis_processor"]["train"] = {"image_size": 32, "normalization": "siglip"}
    with pytest.raises(DataError, match="were made with the image processor .* but this run has"):
        M3ITWdsBuilder(OmegaConf.create(other)).build_datasets()
    other["vis_processor"]["train"] = {"image_size": 32, "horizontal_flip": True}
    with pytest.raises(ConfigError, match="features of images are made once, so the image processor has to be"):
        M3ITWdsBuilder(OmegaConf.create(other)).build_datasets()


def test_features_that_break_off_are_named(folder):
    stream = stream_of(folder, features=True)
    path = features_of(folder) / "a" / "train" / "000000.features"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 4])
    try:
        with pytest.raises(RowError, match="its features end before they should"):
            batches(stream, 8)
        with pytest.raises(DataError, match=r"000000.features is missing or has not [\d,]+ bytes"):
            stream_of(folder, features=True)
    finally:
        path.write_bytes(whole)


def files_of(folder):
    """Contents by name, of what is in a folder besides locks."""
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock"
    }


def test_parts_and_workers_write_the_same_files(folder, tmp_path):
    options = [f"datasets.m3it_wds.build_info.features={tmp_path}", "run.num_workers=2"]
    found = [launch.write_features(folder / "run.yaml", options, share=(part, 2)) for part in (1, 0, 0)]
    starts = ("train: 1 shards encoded, 0 had", "train: 2 shards encoded, 0 had", "train: 0 shards encoded, 2 had")
    assert all(text.startswith(start) for text, start in zip(found, starts, strict=True))
    assert files_of(tmp_path / features_of(folder).name) == files_of(features_of(folder))


UNEXPECTED = """
import sys
from unittest import mock
from gitllm_plugin.host import launch
from gitllm_plugin.modeling import ImageEncoder

with mock.patch.object(ImageEncoder, "forward", side_effect=RuntimeError("out of memory")):
    launch.write_features(sys.argv[1], ["run.num_workers=1"])
"""


def test_an_unexpected_error_ends_encoding_with_its_workers(folder, tmp_path):
    """The traceback holds the loader's iterator, and with it workers that wait for work."""
    OmegaConf.save(OmegaConf.merge(OmegaConf.load(folder / "run.yaml"), features_in(tmp_path)), tmp_path / "run.yaml")
    command = [sys.executable, "-W", "ignore", "-c", UNEXPECTED, str(tmp_path / "run.yaml")]
    finished = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=100)
    assert finished.returncode == 1 and finished.stderr.endswith("RuntimeError: out of memory\n"), finished.stderr


def features_in(folder):
    return OmegaConf.create({"datasets": {"m3it_wds": {"build_info": {"features": str(folder / "features")}}}})


def test_encoders_share_a_folder_and_a_run_reads_its_own(folder, tmp_path):
    options = [f"datasets.m3it_wds.build_info.features={tmp_path}"]
    other = [*options, "model.vision_layer=-2"]
    for chosen in (options, other):
        assert launch.write_features(folder / "run.yaml", chosen).startswith("train: 3 shards encoded")
    assert launch.write_features(folder / "run.yaml", options).startswith("train: 0 shards encoded, 3 had")
    stream = stream_of(folder, features=str(tmp_path))
    with pytest.raises(ConfigError, match="features of several image encoders, and this run's runner does not choose"):
        next(iter(stream))
    for model in (build_model(), build_model(vision_layer=-2)):
        stream.use_model(model)
        (batch,) = batches(stream, 1)
        model(batch)
    with pytest.raises(ConfigError, match="features .* computed before, but the image encoder is trained"):
        stream.use_model(build_model(trainable="proj+vit"))
    with pytest.raises(ConfigError, match="features of images, which this model does not take"):
        stream.use_model(torch.nn.Linear(1, 1))


def test_what_a_killed_process_leaves_is_removed_and_never_believed(folder, tmp_path, monkeypatch):
    options = [f"datasets.m3it_wds.build_info.features={tmp_path}"]
    launch.write_features(folder / "run.yaml", options)
    (found,) = tmp_path.glob("features-*")
    whole = files_of(found)
    damaged = found / "a" / "train" / "000000.features"
    damaged.write_bytes(b"short")
    (damaged.parent / ".000000.features.elsewhere.7.partial").write_bytes(b"half")
    write = features_module.write_atomically

    def killed(path, *args, **kwargs):
        if path.name == "000000.features.json":
            raise KeyboardInterrupt
        write(path, *args, **kwargs)

    monkeypatch.setattr(features_module, "write_atomically", killed)
    with pytest.raises(KeyboardInterrupt):  # between the two files
        launch.write_features(folder / "run.yaml", options)
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"a/train/000000.tar has no features"):
        stream_of(folder, features=str(tmp_path))
    assert launch.write_features(folder / "run.yaml", options).startswith("train: 1 shards encoded, 2 had")
    assert files_of(found) == whole


@pytest.fixture
def damaged(tmp_path):
    """Of three shards, the first has a broken picture, the second is missing, the third has text alone."""
    groups = make_groups(tmp_path / "a.jsonl", "a", "train", rows=8)
    groups[1] = Group("a", "train", 1, (groups[1].images[0][:60],), groups[1].texts)
    text = Text("t", "a", "Say a word.", "", ("red",))
    groups += [Group("a", "train", number, (), (text,)) for number in (8, 9)]
    write_shards(tmp_path / "shards", groups)
    (tmp_path / "shards" / "a" / "train" / "000001.tar").rename(tmp_path / "away.tar")
    return tmp_path


def test_what_cannot_be_read_is_left_out_with_on_error_skip(damaged):
    write_config(damaged, on_error="skip")
    config = damaged / "run.yaml"
    for encoded, found in ((2, 0), (1, 1)):  # the missing shard is looked for again
        assert launch.write_features(config).startswith(
            f"train: {encoded} shards encoded, {found} had features of this encoder, 1 have no images; "
            f"LEFT OUT: {5 if encoded == 2 else 4} records that could not be read"
        )
    stream = M3ITWdsBuilder(OmegaConf.create({**node(damaged, features=True), "on_error": "skip"})).build_datasets()
    items = list(itertools.islice(stream["train"], 10))
    assert {item["texts"][0]["instance_id"] for item in items} == {"a-0-0", "a-0-2", "a-0-3", "t"}
    assert stream["train"].count_skipped().keys() == {"image_truncated", "shard"}
    assert all((item["image"] is None) == (item["texts"][0]["instance_id"] == "t") for item in items)

    (damaged / "away.tar").rename(damaged / "shards" / "a" / "train" / "000001.tar")
    assert launch.write_features(config).startswith("train: 1 shards encoded, 1 had")
    write_config(damaged)
    with pytest.raises(RowError, match="000000.tar, record 1"):
        launch.write_features(config)
    with pytest.raises(RowError, match="000000.tar, record 1"):
        list(itertools.islice(stream_of(damaged, features=True), 10))


@pytest.mark.slow
def test_a_model_spread_over_two_processes_takes_features(folder):
    write_config(folder, features=True)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*torchrun, "-m", "gitllm_plugin", "train", "--cfg-path", str(folder / "run.yaml"), "--options"]
    try:
        for layer, message in ((-1, "Done in "), (-2, "another image encoder made than this model's")):
            options = ["run.sharding=fsdp", f"model.vision_layer={layer}", f"run.output_dir={folder / 'spread'}"]
            done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=280)
            assert (done.returncode == 0) == (layer == -1) and message in done.stderr, done.stderr
    finally:
        write_config(folder)
