"""The benchmark of a GPU, on a device that is simulated: the first real run is not the first run."""

import argparse
import json
from typing import Any

import pytest
import torch

from benchmarks import bounds, gpu
from benchmarks.batches import random_batch
from benchmarks.flops import linear_gflop
from benchmarks.shapes import build
from benchmarks.ways import OURS, WAYS
from tests.simulated_device import DEVICE, OnDevice, on_device, simulated_device


def arguments_of(*words):
    parser = argparse.ArgumentParser()
    gpu.add_arguments(parser)
    return parser.parse_args(list(words))


def test_all_its_steps_run_on_another_device_than_the_cpu(tmp_path, monkeypatch):
    used = []

    def build_there(shape, device, dtype=torch.float32):
        assert torch.device(device) == DEVICE
        model = on_device(build(shape, "cpu", dtype))
        used.append(model)
        return model

    monkeypatch.setattr(gpu, "build", build_there)
    # Modules in another dtype: with the tensors of the device exchanged whole, not what torch sees of them.
    monkeypatch.setattr(torch.__future__, "_swap_module_params_on_conversion", True)
    with simulated_device():
        gpu.run(arguments_of("--dry-run", "--images", "2", "--rounds", "1", "--output", str(tmp_path)), str(DEVICE))
    found = json.loads((tmp_path / "gpu-dry-run.json").read_text())
    assert found["left_out"] == []
    steps = {"peaks", "equality", "ablation tiny-llama", "decoding tiny-llama", "fused kernels tiny-llama"}
    assert steps | {f"training {shape}" for shape in gpu.TINY} <= set(found)
    assert len(used) >= 8 and all(isinstance(p.data, OnDevice) for model in used for p in model.parameters())
    page = (tmp_path / "gpu-dry-run.md").read_text()
    assert page.count("images/s H100 at most") == page.count("peak GiB") > 4
    assert page.count("tokens/s H200 at most") == 2


@pytest.mark.parametrize("texts", [1, 5])
@pytest.mark.parametrize("shape", ["tiny-llama", "tiny-opt"])
def test_operations_are_those_of_a_step_that_are_counted_layer_by_layer(shape, texts):
    model = build(shape)
    batch = random_batch(model, 6, texts)
    loss = WAYS[OURS](model)
    counted = linear_gflop(lambda: loss(batch).backward())
    work = bounds.training_work(model, batch)
    # By hand: attention's products and the projection's gradient stand in one number and not in the other.
    config = model.language_model.config
    tokens = batch.num_real_tokens(17)
    lengths = batch.attention_mask.sum(1).tolist()
    scores = 6 * 17**2 + sum(length * (17 + (length + 1) / 2) for length in lengths)
    attention = 12 * config.num_hidden_layers * config.hidden_size * scores + 4 * 2 * 48 * 6 * 17**2
    assert tokens > 100
    assert work.flops - attention == pytest.approx(1e9 * counted, rel=0.3)  # LoRA is a tenth of so small a model
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    assert work.bytes > 2 * size


def test_a_bound_is_the_larger_of_two():
    card = bounds.Card(tflops=100, tb_per_second=2, gb=80)
    assert bounds.Work(1e14, 1e9).seconds(card) == pytest.approx(1.0)
    assert bounds.Work(1e9, 4e12).seconds(card) == pytest.approx(2.0)
    assert bounds.cells(bounds.Work(1e14, 1e9), 16)[0] == "100"


def test_one_token_moves_all_weights_once():
    model = build("tiny-llama", dtype=torch.bfloat16)
    one, many = (bounds.decoding_work(model, texts, 50) for texts in (1, 32))
    config: Any = model.language_model.config
    weights = bounds.decoder_weights(model) + config.vocab_size * config.hidden_size
    cache = 4 * config.num_hidden_layers * 50 * config.num_key_value_heads * config.head_dim
    assert one.bytes == 2 * weights + cache and many.bytes == 2 * weights + 32 * cache
    assert many.flops == 32 * one.flops == 64 * weights


def test_predictions_need_no_gpu_and_leave_columns_to_fill(tmp_path, capsys):
    gpu.run(arguments_of("--predict", "--dry-run", "--output", str(tmp_path)))
    page = (tmp_path / "gpu-predicted.md").read_text()
    assert page in capsys.readouterr().out
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| tiny")]
    assert len(rows) == 2 * 2 * len(gpu.TINY) and all(not row[-2].strip() for row in rows)
    assert "H100 989.4 TFLOP/s" in page and "H200" in page
