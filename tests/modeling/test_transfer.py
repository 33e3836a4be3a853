"""Between host and device: one copy, nothing lost on the way."""

from dataclasses import dataclass

import pytest
import torch

from gitllm_plugin.modeling.transfer import to_device, to_host
from tests.simulated_device import DEVICE, NAME, held, simulated_device

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Inner:
    places: torch.Tensor
    count: int


@dataclass(frozen=True)
class Outer:
    mask: torch.Tensor
    parts: tuple[Inner, ...]
    weights: torch.Tensor | None = None


def made():
    parts = (Inner(torch.tensor([3, 1]), 2), Inner(torch.tensor([], dtype=torch.long), 0))
    return Outer(torch.tensor([[True, False]]), parts, torch.tensor([0.1, 1e-30, 3e38]))


def test_on_a_cpu_nothing_is_copied():
    value = made()
    assert to_device(value, CPU) is value
    assert to_host(value.mask, None, value.weights)[0] is value.mask


@pytest.mark.parametrize("value", [torch.tensor([1, 2]), (torch.ones(2, 3), None, "x"), {"a": torch.zeros(0, 4)}])
def test_plain_values_arrive(value):
    with simulated_device() as stops:
        found = to_device(value, DEVICE)
    assert not stops
    expected = [part for part in _flat(value)]
    for one, other in zip(_flat(found), expected, strict=True):
        if isinstance(other, torch.Tensor):
            assert one.device.type == NAME and torch.equal(held(one), other)
        else:
            assert one is other


def _flat(value):
    return list(value.values()) if isinstance(value, dict) else list(value) if isinstance(value, tuple) else [value]


def test_dataclasses_arrive_whole_with_their_numbers():
    value = made()
    with simulated_device() as stops:
        found = to_device(value, DEVICE)
    assert not stops and [part.count for part in found.parts] == [2, 0]
    for one, other in (
        (found.mask, value.mask),
        (found.weights, value.weights),
        (found.parts[0].places, value.parts[0].places),
        (found.parts[1].places, value.parts[1].places),
    ):
        assert one.device.type == NAME and one.dtype == other.dtype and torch.equal(held(one), other)


def test_what_is_there_already_stays():
    with simulated_device():
        one = to_device(torch.tensor([5]), DEVICE)
        assert to_device((one, torch.tensor([6])), DEVICE)[0] is one


@pytest.mark.parametrize(
    "values",
    [
        [torch.tensor([2**62, -5]), None, torch.tensor([[True], [False]])],
        [torch.tensor([0.1, float("inf"), float("nan")]), torch.tensor([1, 0], dtype=torch.int32)],
        [torch.tensor([0.5], dtype=torch.bfloat16), torch.tensor(1e300, dtype=torch.float64)],
    ],
)
def test_the_way_back_is_one_transfer_and_exact(values):
    with simulated_device() as stops:
        there = to_device(tuple(values), DEVICE)
        found = to_host(*there)
    assert len(stops) == 1
    for one, other in zip(found, values, strict=True):
        if other is None:
            assert one is None
            continue
        assert one.dtype == other.dtype and one.shape == other.shape and one.device == CPU
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
