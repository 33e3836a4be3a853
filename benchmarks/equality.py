"""Losses and gradients of all ways are compared before any of them is timed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from benchmarks.batches import Batch
from benchmarks.ways import Loss
from gitllm_plugin.modeling import GitLLM


def largest_differences(model: GitLLM, losses: Mapping[str, Loss], batch: Batch) -> dict[str, dict[str, float]]:
    """How far each way is from the first.

    Args:
        model: whose trained parameters are compared.
        losses: name -> way.
        batch: what they compute the loss of.

    Returns:
        Name -> ``loss``: the loss; ``loss_difference`` and ``gradient_difference``: the largest, relative to the
        loss and to the largest gradient of the same parameter.
    """
    found: dict[str, dict[str, float]] = {}
    expected_loss, expected = 0.0, {}
    for name, loss in losses.items():
        value, gradients = _loss_and_gradients(model, loss, batch)
        if not expected:
            expected_loss, expected = value, gradients
        worst = max(float((gradients[key] - grad).abs().max() / grad.abs().max()) for key, grad in expected.items())
        found[name] = {
            "loss": value,
            "loss_difference": abs(value - expected_loss) / abs(expected_loss),
            "gradient_difference": worst,
        }
    return found


def assert_equal(differences: Mapping[str, Mapping[str, float]], tolerance: float) -> None:
    """Refuse to go on with ways that compute something else.

    Raises:
        AssertionError: a difference above ``tolerance``.
    """
    for name, found in differences.items():
        for what in ("loss_difference", "gradient_difference"):
            assert found[what] <= tolerance, f"{name}: {what} is {found[what]:.1e}, allowed {tolerance:.0e}"


def _loss_and_gradients(model: GitLLM, loss: Loss, batch: Batch) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad(set_to_none=True)
    value = loss(batch)
    value.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    assert gradients and all(bool(torch.isfinite(grad).all()) for grad in gradients.values())
    return value.item(), gradients
