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
        Name -> ``loss``; ``loss_difference``, as a share of the loss; and ``gradient_difference``: the norm of the
        difference over all trained parameters, as a share of the gradient's norm.
    """
    found: dict[str, dict[str, float]] = {}
    expected_loss, expected = 0.0, torch.empty(0)
    for name, loss in losses.items():
        value, gradient = _loss_and_gradient(model, loss, batch)
        if not found:
            expected_loss, expected = value, gradient
        found[name] = {
            "loss": value,
            "loss_difference": abs(value - expected_loss) / abs(expected_loss),
            "gradient_difference": float((gradient - expected).norm() / expected.norm()),
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


def _loss_and_gradient(model: GitLLM, loss: Loss, batch: Batch) -> tuple[float, Tensor]:
    """The loss, and the gradients of all trained parameters one after another, in float64."""
    model.zero_grad(set_to_none=True)
    value = loss(batch)
    value.backward()
    parts = [p.grad.flatten().double() for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    gradient = torch.cat(parts)
    assert torch.isfinite(gradient).all() and gradient.any()
    return value.item(), gradient
