"""The simulated device finds what a GPU would wait for, computes what a CPU computes, and refuses to mix devices."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from tests.simulated_device import DEVICE, NAME, held, on_device, simulated_device


def there(value):
    return value.pin_memory().to(DEVICE, non_blocking=True)


def numbers():
    return there(torch.arange(6.0).view(2, 3))


READS = {
    "a number": lambda t: t.sum().item(),
    "a truth": lambda t: bool(t.any()),
    "numbers as a list": lambda t: t.tolist(),
    "a comparison": lambda t: torch.equal(t, t),
    "a copy": lambda t: t.cpu(),
    "a copy into another": lambda t: torch.empty(2, 3).copy_(t),
    "where it is not zero": lambda t: t.nonzero(),
    "by a mask": lambda t: t[t > 2],
    "under a mask": lambda t: t.masked_select(t > 2),
    "each once": lambda t: t.unique(),
    "as often as it says": lambda t: t.repeat_interleave(t[0].long(), dim=1),
    "an index of the host": lambda t: t[torch.tensor([0, 1])],
    "an index that is a list": lambda t: t[..., [1]],
    "a branch": lambda t: 1 if t.sum() > 3 else 0,
}
SENDS = {
    "from ordinary memory": lambda t: t + torch.ones(3).to(DEVICE, non_blocking=True),
    "and waits": lambda t: t + torch.ones(3).pin_memory().to(DEVICE),
    "a list": lambda t: t + torch.tensor([1.0, 2.0, 3.0], device=DEVICE),
    "into another": lambda t: t.copy_(torch.ones(2, 3)),
}
GOES_ON = {
    "made there": lambda t, there: t + torch.zeros(3, device=t.device) + torch.arange(3, device=t.device),
    "a mask that chooses": lambda t, there: torch.where(t > 2, t, 0.0).masked_fill(t > 4, 1.0),
    "an index there": lambda t, there: t[there(torch.tensor([1, 0]))].index_select(1, there(torch.tensor([2]))),
    "a number of the host": lambda t, there: t * 2 + 1.5,
    "written in place": lambda t, there: t.view(-1).index_fill_(0, there(torch.tensor([0, 5])), 7.0),
    "repeated": lambda t, there: t.repeat_interleave(2, dim=0).clamp(min=1),
}


@pytest.mark.parametrize("what", [*READS, *SENDS])
def test_what_a_gpu_waits_for_is_found_with_its_line(what):
    with simulated_device() as stops:
        (READS | SENDS)[what](numbers())
    assert len(stops) == 1
    assert stops[0].file == __file__ and "lambda t" in Path(__file__).read_text().splitlines()[stops[0].line - 1]


@pytest.mark.parametrize("what", GOES_ON)
def test_what_a_gpu_does_not_wait_for_is_none_and_right(what):
    with simulated_device() as stops:
        found = held(GOES_ON[what](numbers(), there))
        assert not stops
    assert torch.equal(found, GOES_ON[what](torch.arange(6.0).view(2, 3), lambda value: value))


@pytest.mark.parametrize(
    "mix",
    [
        lambda t: t + torch.ones(3),
        lambda t: F.linear(t, torch.ones(2, 3)),
        lambda t: torch.cat([t, torch.ones(1, 3)]),
        lambda t: torch.where(torch.ones(3).bool(), t, t),
    ],
)
def test_devices_do_not_mix(mix):
    with simulated_device(), pytest.raises(RuntimeError, match="two devices|on the CPU"):
        mix(numbers())


def test_modules_train_there_as_here_and_share_what_they_shared():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Embedding(7, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 7, bias=False))
    net[2].weight = net[0].weight
    ids, targets = torch.tensor([[1, 2], [3, 4]]), torch.tensor([2, 3, 4, 5])
    loss = F.cross_entropy(net(ids).flatten(0, 1), targets)
    loss.backward()
    expected = {name: p.grad.clone() for name, p in net.named_parameters()}
    net.zero_grad()
    on_device(net)
    assert net[2].weight is net[0].weight and net[0].weight.device.type == NAME
    with simulated_device() as stops:
        again = F.cross_entropy(net(there(ids)).flatten(0, 1), there(targets))
        again.backward()
        assert not stops
        assert again.item() == loss.item() and len(stops) == 1
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(held(parameter.grad), expected[name], msg=name)


def test_a_stop_of_a_backward_pass_names_its_step():
    class Reads(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            return value * 1

        @staticmethod
        def backward(ctx, gradient):
            return gradient * float(gradient.sum())

    with simulated_device() as stops:
        value = numbers().requires_grad_()
        Reads.apply(value).sum().backward()
    assert ["Reads" in str(stop) for stop in stops] == [True]


def test_autocast_lowers_products_and_keeps_losses():
    with simulated_device(), torch.autocast(NAME, dtype=torch.bfloat16):
        product = F.linear(numbers(), there(torch.ones(4, 3)))
        assert product.dtype == torch.bfloat16
        assert F.cross_entropy(product, there(torch.tensor([0, 1]))).dtype == torch.float32
        assert product.softmax(-1).dtype == torch.float32


def test_nobody_who_looks_for_a_device_finds_it():
    assert not torch.accelerator.is_available() and not torch.cuda.is_available()
    assert torch.ones(1).device.type == "cpu"
