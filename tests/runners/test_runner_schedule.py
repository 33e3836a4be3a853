"""Learning rates by step, and parameter groups."""

import pytest
import torch
from torch import nn

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.runners.optimizer import StepSchedule, build_optimizer, learning_rate, parameter_groups

SETTINGS = {"total_steps": 12, "warmup_steps": 2, "init_lr": 3.0, "min_lr": 1.0}


@pytest.mark.parametrize(
    ("decay", "halfway", "end"), [("cosine", 2.0, 1.0), ("linear", 2.0, 1.0), ("constant", 3.0, 3.0)]
)
def test_rates_rise_then_decay(decay, halfway, end):
    def rate(step):
        return learning_rate(step, decay=decay, **SETTINGS)

    assert [rate(step) for step in (0, 1, 2)] == pytest.approx([1.0, 2.0, 3.0])
    assert rate(7) == pytest.approx(halfway)
    assert rate(12) == rate(99) == pytest.approx(end)


def test_warm_up_starts_at_its_own_rate():
    rates = [learning_rate(step, decay="constant", warmup_lr=1.5, **SETTINGS) for step in range(3)]
    assert rates == pytest.approx([2.0, 2.5, 3.0])


def test_groups_keep_their_own_scale():
    class Model(nn.Linear):
        def optimizer_groups(self, weight_decay):
            return [
                {"params": [self.weight], "weight_decay": weight_decay, "lr_scale": 0.1},
                {"params": [self.bias], "weight_decay": 0.0, "lr_scale": 2.0},
            ]

    optimizer = build_optimizer(Model(2, 2), lr=0.5, weight_decay=0.1, beta2=0.99)
    schedule = StepSchedule(optimizer, "constant", total_steps=4, warmup_steps=0, init_lr=0.5, min_lr=0.0)
    schedule.set_for(step=0, epoch=0, epoch_iter=0)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 1.0])


def test_only_trainable_matrices_decay():
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 2).requires_grad_(False))
    decayed, others = parameter_groups(model, weight_decay=0.1)
    assert decayed["params"] == [model[0].weight] and decayed["weight_decay"] == 0.1
    assert len(others["params"]) == 3 and others["weight_decay"] == 0.0


def test_a_negative_warm_up_rate_is_refused():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))])
    with pytest.raises(ConfigError, match="warmup_lr is -1"):
        StepSchedule(optimizer, "cosine", 4, 1, init_lr=1.0, min_lr=0.0, warmup_lr=-1)
