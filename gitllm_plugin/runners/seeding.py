"""Random numbers that depend on where in a run they are drawn, and the states of the generators."""

import random
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset


def seed_everything(*position: int) -> None:
    """Seed Python, NumPy and torch from a position such as `(seed, rank, epoch, iteration)`.

    Each forward pass is seeded afresh, so a run resumed anywhere draws what the uninterrupted run drew, whatever
    was drawn in between: by worker processes or none, by an evaluation, by building the model.
    """
    seed = int(np.random.SeedSequence(position).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class SeededItems(Dataset):
    """A map-style data set whose items draw their random numbers from seed, epoch and index alone.

    So augmentation is the same with any number of worker processes and ranks, and after resuming.

    Args:
        dataset: Map-style.
        seed: Of the run.

    Attributes:
        epoch: To be set before workers start.
    """

    def __init__(self, dataset: Dataset, seed: int):
        self.dataset: Any = dataset
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        """The item, drawn as the epoch determines."""
        seed_everything(self.seed, self.epoch, index)
        return self.dataset[index]


def random_state() -> dict[str, Any]:
    """The states of this process's generators, as plain values and tensors."""
    version, python, gauss = random.getstate()
    name, keys, *rest = np.random.get_state()
    state = {
        "python": [version, torch.tensor(python), gauss],
        "numpy": [str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Put what `random_state` gave back; a GPU's is left out where there is none."""
    version, python, gauss = state["python"]
    random.setstate((version, tuple(python.tolist()), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
