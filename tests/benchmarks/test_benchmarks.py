"""The benchmarks run, on tiny shapes; what they compare is equal."""

import argparse
import json

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import cpu, decoding, features, gpu, preferences
from benchmarks.batches import random_batch
from benchmarks.equality import assert_equal, largest_differences
from benchmarks.flops import linear_gflop
from benchmarks.memory import peak_memory
from benchmarks.shapes import build
from benchmarks.ways import ABLATION, FEATURES, OURS, WAYS, training_step


@pytest.mark.parametrize("texts_per_image", [1, 3])
@pytest.mark.parametrize("shape", ["tiny-opt", "tiny-llama", "tiny-mpt"])
def test_the_articles_way_and_ours_give_equal_losses_and_gradients(shape, texts_per_image):
    model = build(shape)
    batch = random_batch(model, 2, texts_per_image)
    assert_equal(largest_differences(model, {**WAYS, **ABLATION}, batch))
    assert model.language_model.dtype == model.projection.weight.dtype == torch.float32


@pytest.mark.parametrize("way", [*WAYS, FEATURES])
def test_operations_are_those_that_torch_counts(way):
    model = build("tiny-llama")
    loss, batch = {**WAYS, **ABLATION}[way](model), random_batch(model, 2, 2)
    step = training_step(model, loss)
    step(batch)  # features are encoded
    with profile(activities=[ProfilerActivity.CPU], with_flops=True) as profiled:
        step(batch)
    linear = ("aten::mm", "aten::addmm", "aten::conv2d")
    expected = sum(event.flops for event in profiled.key_averages() if event.key in linear)
    assert linear_gflop(lambda: step(batch)) * 1e9 == expected


def test_unequal_ways_are_refused():
    with pytest.raises(AssertionError, match="ours: gradient_difference is 1.0e-03, allowed 1e-05"):
        assert_equal({"ours": {"loss_difference": 0.0, "gradient_difference": 1e-3}})


def test_cpu_benchmark_writes_json_and_a_page(tmp_path):
    parser = argparse.ArgumentParser()
    cpu.add_arguments(parser)
    arguments = [
        "--shape",
        "tiny-opt",
        "--images",
        "2",
        "--images-of-five",
        "1",
        "--rounds",
        "1",
        "--memory-images",
        "0",
    ]
    cpu.run(parser.parse_args([*arguments, "--output", str(tmp_path)]))
    found = json.loads((tmp_path / "cpu-tiny-opt.json").read_text())
    assert [case["texts_per_image"] for case in found["cases"]] == [1, 5]
    for case in found["cases"]:
        assert set(case["ways"]) == {*WAYS, FEATURES}
        assert all(way["samples_per_processor_second"] > 0 for way in case["ways"].values())
    assert (tmp_path / "cpu-tiny-opt.md").read_text().count("| article, padded to 512 ") == 2


def test_peak_memory_is_of_a_process_of_its_own():
    found = peak_memory("tiny-opt", OURS, 1, 1)
    assert 0 < found["above_weights_gib"] < found["peak_gib"] < 2


def test_decoding_benchmark_gives_equal_tokens(tmp_path):
    parser = argparse.ArgumentParser()
    decoding.add_arguments(parser)
    arguments = ["--shape", "tiny-opt", "--batch", "2", "--new-tokens", "3", "--rounds", "1", "--no-compile"]
    decoding.run(parser.parse_args([*arguments, "--output", str(tmp_path)]))
    (case,) = json.loads((tmp_path / "decoding-tiny-opt.json").read_text())["cases"]
    assert {way["share_of_equal_tokens"] for way in case["ways"].values()} == {1.0}


def test_features_benchmark_reads_and_trains(tmp_path):
    parser = argparse.ArgumentParser()
    features.add_arguments(parser)
    arguments = ["--shape", "tiny-opt", "--photos", "4", "--rounds", "1", "--output", str(tmp_path)]
    features.run(parser.parse_args(arguments))
    found = json.loads((tmp_path / "features-tiny-opt.json").read_text())
    assert found["feature_bytes"] == 17 * 48 * 2
    for part in ("read", "read and encode", "training step"):
        assert found[part]["times_as_fast"]["median"] > 0
    assert (tmp_path / "features-tiny-opt.md").read_text().count("| training step ") == 1


def test_gpu_benchmark_goes_through_all_its_parts_on_tiny_shapes(tmp_path):
    parser = argparse.ArgumentParser()
    gpu.add_arguments(parser)
    arguments = ["--dry-run", "--images", "5", "--rounds", "1", "--output", str(tmp_path)]
    gpu.run(parser.parse_args(arguments))
    found = json.loads((tmp_path / "gpu-dry-run.json").read_text())
    for part in (
        "peaks",
        "equality",
        "ablation tiny-llama",
        "decoding tiny-llama",
        *(f"training {n}" for n in gpu.TINY),
    ):
        assert found[part], part
    assert found["left_out"] == []
    case = found["training tiny-llama"]["cases"][1]
    assert case["texts_per_image"] == 5 and case["attention_path"] == "stream" and case["out_of_memory"] == []
    decoder = build("tiny-llama").language_model
    weights = sum(p.numel() for name, p in decoder.model.layers.named_parameters() if p.ndim == 2)
    assert case["decoder_weights"] == weights


def test_gpu_benchmark_without_a_gpu_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    parser = argparse.ArgumentParser()
    gpu.add_arguments(parser)
    with pytest.raises(SystemExit, match="torch finds no GPU; --dry-run goes through all steps"):
        gpu.run(parser.parse_args([]))


def test_pairs_read_together_have_fewer_tokens(tmp_path):
    parser = argparse.ArgumentParser()
    preferences.add_arguments(parser)
    given = ["--layers", "1", "--pairs", "1", "--rounds", "1", "--output", str(tmp_path)]
    preferences.run(parser.parse_args(given))
    found = json.loads((tmp_path / "preferences.json").read_text())["shapes"]
    for together, apart in (shape["tokens"] for shape in found.values()):
        assert together <= 0.6 * apart
    assert "| 256 image tokens" in (tmp_path / "preferences.md").read_text()
