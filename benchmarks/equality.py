"""Losses and gradients of all ways are compared before any of them is timed.

In float64: of the gradient of 24 layers with random weights, float32 has three digits, whatever the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.batches import Batch
from benchmarks.ways import Loss
from gitllm_plugin.modeling import GitLLM

TOLERANCE = 1e-5
"""Of losses and of gradients' norms, relative: softmax and norms of some decoders, and the loss, stay in float32."""


def largest_differences(
    model: GitLLM, ways: Mapping[str, Callable[[GitLLM], Loss]], batch: Batch
) -> dict[str, dict[str, float]]:
    """Say how far each way is from the first.

    Args:
        model: in float32, whose trained parameters are compared.
        ways: name -> what makes a function from a batch to its loss.
        batch: what they compute the loss of.

    Returns:
        Name -> ``loss``; ``loss_difference``, as a share of the loss; and ``gradient_difference``: the norm of the
        difference over all trained parameters, as a share of the gradient's norm.
    """
    with _in_float64(model):
        double = replace(batch, pixel_values=batch.pixel_values.double())
        return differences_to_the_first(model, {name: make(model) for name, make in ways.items()}, double)


def differences_to_the_first(model: GitLLM, losses: Mapping[str, Loss], batch: Batch) -> dict[str, dict[str, float]]:
    """Give the same in the model's own precision, in which ways differ by rounding."""
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


@contextmanager
def _in_float64(model: GitLLM) -> Iterator[None]:
    model.double()
    try:
        yield
    finally:
        model.float()  # the very values of before


def assert_equal(differences: Mapping[str, Mapping[str, float]], tolerance: float = TOLERANCE) -> None:
    """Refuse to go on with ways that compute something else.

    Raises:
        AssertionError: a difference above ``tolerance``.
    """
    for name, found in differences.items():
        for what in ("loss_difference", "gradient_difference"):
            assert found[what] <= tolerance, f"{name}: {what} is {found[what]:.1e}, allowed {tolerance:.0e}"


def _loss_and_gradient(model: GitLLM, loss: Loss, batch: Batch) -> tuple[float, Tensor]:
    """Give the loss, and the gradients of all trained parameters one after another."""
    model.zero_grad(set_to_none=True)
    value = loss(batch)
    value.backward()
    parts = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    gradient = torch.cat(parts)
    assert torch.isfinite(gradient).all() and gradient.any()
    return value.item(), gradient
