"""What cannot be read is counted over all workers, and told without filling the log."""

import logging

import torch
from torch.utils.data import DataLoader, Dataset

from gitllm_plugin.datasets.skipping import Skipped
from gitllm_plugin.m3it.problems import RowError


class _Broken(Dataset):
    """120 items, of which none can be read."""

    def __init__(self):
        self.skipped = Skipped()

    def __len__(self):
        return 120

    def __getitem__(self, index):
        self.skipped.note(RowError("image_truncated", "the image is broken", f"row {index}"))
        return torch.zeros(1)


def test_the_sum_is_told_at_each_power_of_ten(caplog):
    data = _Broken()
    with caplog.at_level(logging.WARNING):
        list(DataLoader(data, batch_size=8))
    told = [line for line in caplog.messages if line.startswith("Skipped:")]
    sums = [line for line in caplog.messages if line.startswith("So far")]
    assert len(told) == 10
    assert sums == [
        f"So far this rank could not read {n} items: {{'image_truncated': {n}}}" for n in (10, 100)
    ]  # fmt: skip


def test_the_main_process_sees_what_workers_count():
    data = _Broken()
    list(DataLoader(data, batch_size=8, num_workers=2))
    assert data.skipped.by_kind() == {"image_truncated": 120}
    assert data.skipped.total == 120
