"""Floating-point operations of linear layers, counted: they say how much of a difference in time is arithmetic."""

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile

_LINEAR = {"aten::mm", "aten::addmm", "aten::conv2d"}


def linear_gflop(step: Callable[[], object]) -> float:
    """10^9 operations of the linear layers in one call of ``step``, backward pass included; attention is left out."""
    with profile(activities=[ProfilerActivity.CPU], with_flops=True) as profiled:
        step()
    return sum(event.flops for event in profiled.key_averages() if event.key in _LINEAR) / 1e9
