"""The choice of precision and device, and what progress shows."""

import io
import json
import logging

import pytest
import torch
from tiny_run import TinyModel, build_runner

from gitllm_plugin.common.device import CPU_PRECISION
from gitllm_plugin.common.progress import Progress
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.modeling.pretrained import resolve_dtype
from gitllm_plugin.runners.precision import resolve_device, resolve_precision
from gitllm_plugin.runners.records import RecordsFile, take_out_lost_steps

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def as_torch_finds_it(monkeypatch):
    monkeypatch.delenv(CPU_PRECISION, raising=False)


@pytest.mark.parametrize(("said", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_environment_chooses_for_auto(monkeypatch, said, dtype):
    monkeypatch.setenv(CPU_PRECISION, said)
    assert resolve_precision("auto", CPU) is dtype
    assert resolve_dtype("auto") is dtype
    assert resolve_precision("fp32", CPU) is torch.float32


def test_another_choice_of_the_environment_is_refused(monkeypatch):
    monkeypatch.setenv(CPU_PRECISION, "BF16")
    with pytest.raises(ConfigError, match="GITLLM_CPU_PRECISION is 'BF16'; it may be fp32, bf16 or unset"):
        resolve_precision("auto", CPU)


def test_a_torch_that_does_not_tell_is_taken_for_one_without_bf16(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert resolve_precision("auto", CPU) is torch.float32


@pytest.mark.parametrize("feature", ["amx_bf16", "avx512_bf16"])
def test_auto_is_bf16_where_the_cpu_has_it(monkeypatch, feature):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {feature: True})
    assert resolve_precision("auto", CPU) is torch.bfloat16


def test_auto_is_fp32_elsewhere_and_asking_for_bf16_warns(monkeypatch, caplog):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert resolve_precision("auto", CPU) is torch.float32
    assert not caplog.records
    assert resolve_precision("bf16", CPU) is torch.bfloat16
    assert "emulation" in caplog.text


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == CPU
    with pytest.raises(ConfigError, match="finds no GPU"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto", local_rank=3) == torch.device("cuda", 3)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)


def test_without_a_terminal_a_line_appears_now_and_then(caplog):
    with caplog.at_level(logging.INFO), Progress("epoch 1/2", total=5, log_freq=2, at_end=True) as progress:
        for _ in range(5):
            progress.update(samples=4, loss="0.5")
    messages = [record.message for record in caplog.records]
    assert [message.split("  ")[0] for message in messages] == [f"epoch 1/2 [{done}/5]" for done in (2, 4, 5)]
    assert "loss 0.5" in messages[0] and "samples/s " in messages[0] and messages[-1].endswith("eta 00:00")


def test_what_is_left_is_told_of_the_whole_with_what_came_between(monkeypatch, caplog):
    """Two epochs of four iterations, ten seconds each, with an evaluation of forty seconds between them."""
    now = [1000.0]
    monkeypatch.setattr("gitllm_plugin.common.progress.time.monotonic", lambda: now[0])
    progress = Progress("epoch 1/2", total=8, log_freq=1, at_end=True)
    with caplog.at_level(logging.INFO):
        for epoch in (1, 2):
            progress.description = f"epoch {epoch}/2"
            with progress:
                for _ in range(4):
                    now[0] += 10.0
                    progress.update(samples=20)
            now[0] += 40.0
    told = [message.replace("  ", " ").split(" ") for message in caplog.messages]
    assert [(words[1], words[2], words[-1]) for words in told] == [
        *(
            ("1/2", f"[{done}/8]", f"0{left // 60}:{left % 60:02d}")
            for done, left in ((1, 70), (2, 60), (3, 50), (4, 40))
        ),
        *(("2/2", f"[{done}/8]", f"00:{left:02d}") for done, left in ((5, 54), (6, 33), (7, 15), (8, 0))),
    ]
    assert all("samples/s 2.0" in message for message in caplog.messages)  # of the epoch, without the evaluation


def test_where_a_result_follows_no_line_is_due_at_the_end(caplog):
    with caplog.at_level(logging.INFO), Progress("evaluation", total=3, log_freq=50) as progress:
        for _ in range(3):
            progress.update(samples=4)
    assert not caplog.records


def test_on_a_terminal_there_is_a_bar(monkeypatch, caplog):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with caplog.at_level(logging.INFO), Progress("epoch 1/2", total=2) as progress:
        progress.update(2, samples=4, loss="0.5")
    assert "epoch 1/2: 100%" in terminal.getvalue() and "loss=0.5" in terminal.getvalue()
    assert not caplog.records


def test_metrics_of_lost_steps_are_taken_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    take_out_lost_steps(path, epoch=1, step=2)  # nothing to take out
    steps = [{"epoch": 0, "step": 0}, {"epoch": 0, "step": 9}, {"epoch": 1, "step": 1}, {"epoch": 1, "step": 2}]
    path.write_text("".join(json.dumps(step) + "\n" for step in steps) + '{"ste')
    take_out_lost_steps(path, epoch=1, step=2)
    metrics = RecordsFile(path)
    metrics.write({"epoch": 1, "step": 2, "again": True})
    metrics.close()
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert found == [*steps[:3], {"epoch": 1, "step": 2, "again": True}]


def test_frozen_weights_in_bf16_compute_in_fp32_where_the_run_does(tmp_path, caplog):
    model = TinyModel()
    model.embedding.to(torch.bfloat16)
    with caplog.at_level(logging.INFO):
        runner = build_runner(tmp_path, model=model, precision="fp32", max_epoch=1)
        runner.train()
    assert {p.dtype for p in runner.model.parameters()} == {torch.float32}
    assert runner.model.lm_head.weight is runner.model.embedding.weight
    assert caplog.text.count("weights in torch.bfloat16 become float32") == 1


def test_weights_are_left_alone_where_nothing_has_to_change(tmp_path, caplog):
    model = TinyModel()
    model.embedding.to(torch.bfloat16)
    with caplog.at_level(logging.INFO):
        assert build_runner(tmp_path, model=model, precision="bf16").model.embedding.weight.dtype is torch.bfloat16
        assert build_runner(tmp_path, precision="fp32").model.embedding.weight.dtype is torch.float32
    assert "become float32" not in caplog.text
